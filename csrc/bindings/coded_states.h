// The states of one parameter as Python hands them over: addresses in lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "../engine/coded_states.h"

// Throws std::invalid_argument where the lists do not fit together or an engine would refuse them.
inline CodedStates coded_states(const std::vector<int>& kinds, int num_bytes,
                                const std::vector<std::uintptr_t>& codes, std::uintptr_t exponents,
                                const std::vector<std::uintptr_t>& values, std::int64_t numel) {
  if (kinds.size() > max_states || codes.size() != kinds.size() || values.size() != kinds.size()) {
    throw std::invalid_argument(
        "each state has a kind, codes and values, and there are at most " +
        std::to_string(max_states) + " states; got " + std::to_string(kinds.size()) + " kinds, " +
        std::to_string(codes.size()) + " codes and " + std::to_string(values.size()) + " values");
  }
  CodedStates states{};
  states.num_states = static_cast<int>(kinds.size());
  states.bytes = num_bytes;
  states.exponents = reinterpret_cast<std::uint8_t*>(exponents);
  states.numel = numel;
  for (std::size_t k = 0; k < kinds.size(); ++k) {
    states.kinds[k] = static_cast<Values>(kinds[k]);
    states.codes[k] = reinterpret_cast<void*>(codes[k]);
    states.values[k] = reinterpret_cast<void*>(values[k]);
  }
  check(states);
  return states;
}
