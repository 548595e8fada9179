// States in one or two bytes an element: floats cut out of float32's bits, around an exponent that
// a block of elements shares, rounded at random so that the mean is exact.
//
// A code counts float32 bit patterns from 2^(exponent - 127) upwards in steps of 2^shift, so that
// 2^fraction codes make an octave. Every value that a code can stand for lies on one grid, whatever
// the exponent: to code a decoded value again, in other blocks, loses nothing within their range.
// Code 0 is zero, the last two are inf and NaN.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "../rules/values.h"
#include "bits.h"

namespace codes {

// Elements that share an exponent: neighbours in memory, counted from a tensor's first.
constexpr int block = 32;

constexpr std::uint32_t inf_bits = 0x7f800000u;

// How values of a kind are coded in `bytes` bytes. In one byte, the signed kind has 7 bits and
// lends its byte's upper one to the state behind it, which is to be safe too large and has 9:
// second moments change slowest and are the first to suffer from steps too long.
template <Values values, int bytes>
struct Code {
  static_assert(bytes == 1 || bytes == 2, "codes take one byte or two");
  static constexpr bool is_signed = values == Values::of_both_signs;
  static constexpr bool keeps_smallest = values == Values::safe_too_small;

  static constexpr int bits = bytes == 2 ? 16 : is_signed ? 7 : keeps_smallest ? 8 : 9;
  // Two bytes hold 32 octaves of a state that is never negative: an element without a gradient has
  // a bound of lr / eps, and its neighbours are to keep theirs.
  static constexpr int fraction = bytes == 2 ? 11 : is_signed ? 3 : keeps_smallest ? 4 : 6;
  static constexpr int shift = 23 - fraction;
  static constexpr std::int32_t top = (1 << (bits - is_signed)) - 3;  // of finite values

  // The largest rank of a block's elements decides its exponent; 0 has no say.
  HOST_DEVICE static std::uint32_t rank(float x) {
    const std::uint32_t magnitude = bit_cast<std::uint32_t>(x) & 0x7fffffffu;
    const bool counts = magnitude < inf_bits && magnitude != 0;
    return counts ? (keeps_smallest ? inf_bits - magnitude : magnitude) : 0;
  }

  // The exponent of a block, 1 to 254: the smallest under which its largest value, rounded up, has
  // a code; or the largest under which its smallest value has one.
  HOST_DEVICE static std::int32_t exponent(std::uint32_t rank) {
    if constexpr (keeps_smallest) {
      const auto found = static_cast<std::int32_t>((inf_bits - rank) >> 23);
      return rank == 0 || found < 1 ? 1 : found;
    } else {
      const std::int32_t above =
          (static_cast<std::int32_t>(rank) + (1 << shift) - 1) - (top << shift);
      const std::int32_t found = (above >> 23) + 1;
      return found < 1 ? 1 : found;
    }
  }

  // Rounded up where the upper bits of `random` say so. Out of the block's range: a value too large
  // becomes the largest; one too small the smallest, or, of a signed state, that or zero at random.
  HOST_DEVICE static std::uint32_t encode(float x, std::int32_t exponent, std::uint32_t random) {
    const auto pattern = bit_cast<std::uint32_t>(x);
    const auto magnitude = static_cast<std::int32_t>(pattern & 0x7fffffffu);
    const std::int32_t base = exponent << 23;
    const auto dither = static_cast<std::int32_t>(random >> (32 - shift));
    // No value overflows: a magnitude and a base are each at least 0.
    std::int32_t code = ((magnitude - base + dither) >> shift) + 1;
    if constexpr (is_signed) {
      const float threshold = static_cast<float>(static_cast<std::int32_t>(random >> 8)) * 0x1p-24f;
      const bool rounds_up = bit_cast<float>(magnitude) > threshold * bit_cast<float>(base);
      code = magnitude < base ? static_cast<std::int32_t>(rounds_up) : code;
    } else {
      code = code < 1 ? 1 : code;
      code = magnitude == 0 ? 0 : code;
    }
    code = code > top ? top : code;
    code = magnitude == static_cast<std::int32_t>(inf_bits) ? top + 1 : code;
    code = magnitude > static_cast<std::int32_t>(inf_bits) ? top + 2 : code;
    if constexpr (is_signed) {
      const bool has_sign = code != 0 && code != top + 2;
      code |= has_sign ? static_cast<std::int32_t>(pattern >> 31) << (bits - 1) : 0;
    }
    return static_cast<std::uint32_t>(code);
  }

  HOST_DEVICE static float decode(std::uint32_t code, std::int32_t exponent) {
    const auto magnitude =
        static_cast<std::int32_t>(is_signed ? code & ((1u << (bits - 1)) - 1) : code);
    std::uint32_t pattern = (static_cast<std::uint32_t>(exponent) << 23) +
                            (static_cast<std::uint32_t>(magnitude - 1) << shift);
    pattern = magnitude == 0 ? 0 : pattern;
    pattern = magnitude == top + 1 ? inf_bits : pattern;
    pattern = magnitude == top + 2 ? 0x7fc00000u : pattern;
    if constexpr (is_signed) pattern |= code >> (bits - 1) << 31;
    return bit_cast<float>(pattern);
  }
};

}  // namespace codes
