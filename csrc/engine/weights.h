// How weights are stored that are bfloat16 parameters and yet move by less than bfloat16 shows.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "bits.h"

namespace weights {

HOST_DEVICE std::uint32_t pattern_of(float x) {
  return x != x ? 0x7fc00000u
                : bit_cast<std::uint32_t>(x);  // a NaN that no rounding can carry away
}

// A float32 as the nearest bfloat16, halves away from zero, and the 16 bits that this lacks.
struct Split {
  HOST_DEVICE static float load(std::uint16_t param, std::int16_t remainder) {
    return bit_cast<float>((static_cast<std::uint32_t>(param) << 16) +
                           static_cast<std::uint32_t>(static_cast<std::int32_t>(remainder)));
  }
  HOST_DEVICE static std::uint16_t param(std::uint32_t pattern) {
    return static_cast<std::uint16_t>((pattern + 0x8000u) >> 16);
  }
  HOST_DEVICE static std::int16_t remainder(std::uint32_t pattern) {
    return static_cast<std::int16_t>(pattern & 0xffffu);  // modulo 2^16, and so signed by itself
  }
};

// A bfloat16, up or down at random, with nothing kept; inf and NaN stay.
struct Stochastic {
  HOST_DEVICE static std::uint16_t param(std::uint32_t pattern, std::uint32_t random) {
    const bool is_finite = (pattern & 0x7fffffffu) < 0x7f800000u;
    return static_cast<std::uint16_t>((pattern + (is_finite ? random >> 16 : 0u)) >> 16);
  }
};

}  // namespace weights
