// Storage formats of parameters and gradients: how a stored element becomes a compute value and
// back. Widening is exact; narrowing rounds once, to nearest even. Without branches, so that loops
// over these vectorise.
#pragma once

#include <cstdint>

#include "../host_device.h"
#include "bits.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

struct Float32 {
  using storage = float;
  using compute = float;
  HOST_DEVICE static float load(float x) { return x; }
  HOST_DEVICE static float store(float x) { return x; }
};

struct Float64 {
  using storage = double;
  using compute = double;
  HOST_DEVICE static double load(double x) { return x; }
  HOST_DEVICE static double store(double x) { return x; }
};

struct BFloat16 {
  using storage = std::uint16_t;
  using compute = float;

  HOST_DEVICE static float load(std::uint16_t x) {
    return bit_cast<float>(static_cast<std::uint32_t>(x) << 16);
  }

  HOST_DEVICE static std::uint16_t store(float x) {
#ifdef __CUDA_ARCH__
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
    const auto bits = bit_cast<std::uint32_t>(x);
    const std::uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const std::uint32_t quiet_nan = bits | 0x00400000u;  // rounding could carry a NaN into inf
    return static_cast<std::uint16_t>((x != x ? quiet_nan : rounded) >> 16);
#endif
  }
};

struct Float16 {
  using storage = std::uint16_t;
  using compute = float;

  HOST_DEVICE static float load(std::uint16_t x) {
#ifdef __CUDA_ARCH__
    return __half2float(__ushort_as_half(x));
#else
    const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000u) << 16;
    const std::uint32_t magnitude = x & 0x7fffu;
    // Read in float's own fields, a half is 2^112 too small; the product is exact, subnormals too.
    const float scaled = bit_cast<float>(magnitude << 13) * 0x1p112f;
    const std::uint32_t inf_or_nan = (magnitude << 13) | 0x7f800000u;
    const auto finite = bit_cast<std::uint32_t>(scaled);
    return bit_cast<float>((magnitude >= 0x7c00u ? inf_or_nan : finite) | sign);
#endif
  }

  HOST_DEVICE static std::uint16_t store(float x) {
#ifdef __CUDA_ARCH__
    return __half_as_ushort(__float2half_rn(x));
#else
    const auto bits = bit_cast<std::uint32_t>(x);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    // Normal halves: round away 13 fraction bits, then move the exponent's bias from 127 to 15.
    const std::uint32_t normal =
        (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    // Subnormal halves are multiples of 2^-24, the spacing of floats just above one half.
    const std::uint32_t subnormal =
        bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<std::uint32_t>(0.5f);
    std::uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= (143u << 23) ? 0x7c00u : half;  // 2^16 and above, inf with it
    half = magnitude > 0x7f800000u ? 0x7e00u : half;    // NaN
    return static_cast<std::uint16_t>(half | sign);
#endif
  }
};
