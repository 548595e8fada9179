// How the tensors of a batch are stored; adamod_fused/formats.py has the same names.
#pragma once

#include <stdexcept>
#include <string>

enum class StateFormat { fp32, in_16_bits, in_8_bits };
enum class WeightFormat { plain, split, stochastic };

constexpr const char* state_format_names[] = {"fp32", "16bit", "8bit"};  // as they are numbered
constexpr const char* weight_format_names[] = {"plain", "split", "stochastic"};

struct Formats {
  StateFormat states;
  WeightFormat weights;

  bool are_plain() const { return states == StateFormat::fp32 && weights == WeightFormat::plain; }
  std::string state_name() const { return state_format_names[static_cast<int>(states)]; }
  std::string weight_name() const { return weight_format_names[static_cast<int>(weights)]; }

  // Throws std::invalid_argument for a name that there is not.
  static Formats named(const std::string& states, const std::string& weights) {
    return {find<StateFormat>("state_format", state_format_names, states),
            find<WeightFormat>("weight_format", weight_format_names, weights)};
  }

 private:
  template <typename Format, int count>
  static Format find(const std::string& what, const char* const (&names)[count],
                     const std::string& name) {
    std::string known;
    for (int i = 0; i < count; ++i) {
      if (name == names[i]) return static_cast<Format>(i);
      known += (i == 0 ? "" : i + 1 < count ? ", " : " or ") + std::string(names[i]);
    }
    throw std::invalid_argument(what + " must be " + known + ", got " + name);
  }
};
