// What Code of codes.h does, in the fewest instructions that give the same bits where all values of
// a block are finite, none is negative but of a signed state, and the exponent is the block's own.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "bits.h"
#include "codes.h"

namespace codes {

template <Values values, int bytes>
struct FiniteCode : Code<values, bytes> {
  using Base = Code<values, bytes>;
  using Base::is_signed;
  using Base::keeps_smallest;
  using Base::shift;
  using Base::top;

  // Of a code without its sign. Values above `top` say that the code is none of a finite value.
  HOST_DEVICE static std::int32_t magnitude(std::uint32_t code) {
    return static_cast<std::int32_t>(is_signed ? code & ((1u << (Base::bits - 1)) - 1) : code);
  }

  // Of a value that this code serves: below that of inf.
  HOST_DEVICE static std::uint32_t pattern(float x) {
    return bit_cast<std::uint32_t>(x) & (is_signed ? 0x7fffffffu : 0xffffffffu);
  }

  // What the codes of a block count from: the pattern that code 0 would stand for.
  HOST_DEVICE static std::uint32_t offset(std::int32_t exponent) {
    return (static_cast<std::uint32_t>(exponent) << 23) - (1u << shift);
  }

  HOST_DEVICE static float decode_from(std::uint32_t code, std::uint32_t offset) {
    const auto counted = static_cast<std::uint32_t>(magnitude(code));
    std::uint32_t decoded = counted == 0 ? 0 : counted * (1u << shift) + offset;
    if constexpr (is_signed) decoded |= (code << (32 - Base::bits)) & 0x80000000u;
    return bit_cast<float>(decoded);
  }
  HOST_DEVICE static float decode(std::uint32_t code, std::int32_t exponent) {
    return decode_from(code, offset(exponent));
  }

  // The exponent leaves no value but one that is to be kept small a code above the last, as long as
  // no more than 2^shift - 1 is added to it.
  HOST_DEVICE static std::uint32_t encode(float x, std::int32_t exponent, std::uint32_t random) {
    const auto magnitude = static_cast<std::int32_t>(pattern(x));
    const std::int32_t base = exponent << 23;
    const auto dither = static_cast<std::int32_t>(random >> (32 - shift));
    std::int32_t code = (magnitude + dither + ((1 << shift) - base)) >> shift;
    if constexpr (is_signed) {
      const float threshold = static_cast<float>(static_cast<std::int32_t>(random >> 8)) * 0x1p-24f;
      const bool rounds_up = bit_cast<float>(magnitude) > threshold * bit_cast<float>(base);
      code = code < 1 ? 1 : code;
      code |= static_cast<std::int32_t>(bit_cast<std::uint32_t>(x) >> 31) << (Base::bits - 1);
      code = magnitude < base && !rounds_up ? 0 : code;
    } else {
      if constexpr (keeps_smallest) code = code > top ? top : code;
      const std::int32_t least = magnitude < 1 ? magnitude : 1;
      code = code < least ? least : code;
    }
    return static_cast<std::uint32_t>(code);
  }
};

}  // namespace codes
