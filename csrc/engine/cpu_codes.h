// FiniteCode's encode in fewer operations still, for groups of blocks: whoever calls it has asked
// serves() of every block. The bits are the same. FiniteCode's own, which CUDA takes for blocks of
// any exponent, costs a CPU's step in the caches more, on AVX2 as on AVX-512.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../host_device.h"
#include "bits.h"
#include "finite_codes.h"

namespace codes {

template <Values values, int bytes>
struct GroupCode : FiniteCode<values, bytes> {
  using Base = FiniteCode<values, bytes>;
  using Base::is_signed, Base::keeps_smallest, Base::bits, Base::shift, Base::top;
  static constexpr std::uint32_t step = 1u << shift;
  static constexpr std::uint32_t sign = 1u << (bits - 1);  // of a signed code

  // Of a block, the largest gives rank(), and nothing is selected on the way: modulo 2^32, less
  // than 0 is more the smaller the magnitude, but for 0 itself.
  HOST_DEVICE static std::uint32_t order(std::uint32_t magnitude) {
    return keeps_smallest ? 0u - magnitude : magnitude;
  }
  HOST_DEVICE static std::uint32_t rank_of(std::uint32_t order) {
    return keeps_smallest && order != 0 ? inf_bits + order : order;
  }

  // 2^-24 of the value of code 1; of a block of zeros, for which any will do, not the smallest
  // there is: on many processors a product that small takes a hundred times as long.
  HOST_DEVICE static float unit(std::uint32_t order, std::uint32_t offset) {
    return bit_cast<float>(order == 0 ? 0x3f800000u : offset + step) * 0x1p-24f;
  }

  // Whether encode() serves a block of this order, if it is of finite values: one of a signed state
  // not with the smallest exponent, whose unit is no float32, unless all is 0.
  HOST_DEVICE static bool serves(std::uint32_t order) {
    return !is_signed || order == 0 || Base::exponent(order) > 1;
  }

  HOST_DEVICE static std::uint32_t encode(float x, std::uint32_t offset,
                                          [[maybe_unused]] float unit, std::uint32_t random) {
    const std::uint32_t magnitude = Base::pattern(x);
    const std::uint32_t dithered = magnitude + (random >> (32 - shift)) - offset;
    // 1 at most for what is less than the value of code 1, 1 at least for the rest.
    std::int32_t code = static_cast<std::int32_t>(dithered) >> shift;
    code = code < 1 ? 1 : code;
    if constexpr (is_signed) {
      // The threshold in one product, exact since its factor is.
      const float threshold = static_cast<float>(static_cast<std::int32_t>(random >> 8)) * unit;
      const bool counts = bit_cast<float>(magnitude) > threshold;  // all from code 1 upwards do
      code |= static_cast<std::int32_t>((bit_cast<std::uint32_t>(x) >> (32 - bits)) & sign);
      code = counts ? code : 0;
    } else {
      if constexpr (keeps_smallest) code = code > top ? top : code;
      // 0 for 0; no other magnitude is less than its code.
      code = std::min(code, static_cast<std::int32_t>(magnitude));
    }
    return static_cast<std::uint32_t>(code);
  }
};

}  // namespace codes
