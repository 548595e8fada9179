// How the parameters of a coded row lie in memory: as plain floats, or bfloat16 for float32
// weights.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "storage.h"
#include "weights.h"

namespace cuda_engine {

template <typename Stored>
struct Plain {
  using Format = Stored;
  using Storage = typename Format::storage;
  static constexpr bool is_plain = true;
  static constexpr bool has_remainder = false;
  static constexpr bool is_random = false;

  HOST_DEVICE static float load(Storage param, std::int16_t) { return Format::load(param); }
  HOST_DEVICE static void store(float x, std::uint32_t, Storage& param, std::int16_t&) {
    param = Format::store(x);
  }
};

struct Split {
  using Format = BFloat16;
  using Storage = Format::storage;
  static constexpr bool is_plain = false;
  static constexpr bool has_remainder = true;
  static constexpr bool is_random = false;

  HOST_DEVICE static float load(Storage param, std::int16_t remainder) {
    return weights::Split::load(param, remainder);
  }
  HOST_DEVICE static void store(float x, std::uint32_t, Storage& param, std::int16_t& remainder) {
    const std::uint32_t pattern = weights::pattern_of(x);
    param = weights::Split::param(pattern);
    remainder = weights::Split::remainder(pattern);
  }
};

struct Stochastic {
  using Format = BFloat16;
  using Storage = Format::storage;
  static constexpr bool is_plain = false;
  static constexpr bool has_remainder = false;
  static constexpr bool is_random = true;

  HOST_DEVICE static float load(Storage param, std::int16_t) { return Format::load(param); }
  HOST_DEVICE static void store(float x, std::uint32_t random, Storage& param, std::int16_t&) {
    param = weights::Stochastic::param(weights::pattern_of(x), random);
  }
};

}  // namespace cuda_engine
