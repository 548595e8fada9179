// The kernels that make values of codes and codes of values: a lane for each element, so that a
// warp has a block of elements that share exponents. They bound how long it takes to save and to
// load, not how long a step takes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "bits.h"
#include "coded_states.h"
#include "codes.h"
#include "cuda_memory.h"
#include "cuda_warp.h"

namespace cuda_engine {

constexpr int convert_threads = 256;

template <int bytes>
using CodeOf = std::conditional_t<bytes == 1, std::uint8_t, std::uint16_t>;

// Calls `use` with the code of this kind of values.
template <int bytes, typename Use>
__device__ __forceinline__ auto with_code(Values kind, const Use& use) {
  if (kind == Values::of_both_signs) return use(codes::Code<Values::of_both_signs, bytes>{});
  if (kind == Values::safe_too_large) return use(codes::Code<Values::safe_too_large, bytes>{});
  return use(codes::Code<Values::safe_too_small, bytes>{});
}

template <int bytes>
__global__ void __launch_bounds__(convert_threads)
    decode_kernel(const __grid_constant__ CodedStates states) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * convert_threads + threadIdx.x;
  if (i >= states.numel) return;
  std::uint32_t coded[max_states];
#pragma unroll
  for (int k = 0; k < max_states; ++k) {
    if (k >= states.num_states) break;
    coded[k] = load<1>(static_cast<const CodeOf<bytes>*>(states.codes[k]) + i).elements[0];
    if (k > 0 && states.borrows(k)) {
      coded[k] |= coded[k - 1] >> 7 << 8;
      coded[k - 1] &= 0x7fu;
    }
  }
  const std::uint8_t* const exponents = states.exponents + i / codes::block * states.num_states;
#pragma unroll
  for (int k = 0; k < max_states; ++k) {
    if (k >= states.num_states) break;
    const std::int32_t exponent = load<1>(exponents + k).elements[0];
    const float value = with_code<bytes>(
        states.kinds[k], [&](auto code) { return code.decode(coded[k], exponent); });
    if constexpr (bytes == 1) {  // bfloat16 holds all of it
      const auto upper = static_cast<std::uint16_t>(bit_cast<std::uint32_t>(value) >> 16);
      store<1>(static_cast<std::uint16_t*>(states.values[k]) + i, Pack<std::uint16_t, 1>{upper});
    } else {
      store<1>(static_cast<float*>(states.values[k]) + i, Pack<float, 1>{value});
    }
  }
}

// `Format` is that of the values.
template <int bytes, typename Format>
__global__ void __launch_bounds__(convert_threads)
    encode_kernel(const __grid_constant__ CodedStates states) {
  using Storage = typename Format::storage;
  constexpr std::uint32_t half = 1u << 31;  // as random bits, these round to the nearest
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * convert_threads + threadIdx.x;
  const bool exists = i < states.numel;
  std::uint8_t* const exponents = states.exponents + i / codes::block * states.num_states;
  std::uint32_t coded[max_states];
#pragma unroll
  for (int k = 0; k < max_states; ++k) {
    if (k >= states.num_states) break;
    float value = 0;  // past the end: does not affect the exponent
    if (exists) {
      value = Format::load(load<1>(static_cast<const Storage*>(states.values[k]) + i).elements[0]);
    }
    const std::uint32_t rank = largest_of<warp_size>(
        with_code<bytes>(states.kinds[k], [&](auto code) { return code.rank(value); }));
    const std::int32_t exponent =
        with_code<bytes>(states.kinds[k], [&](auto code) { return code.exponent(rank); });
    coded[k] = with_code<bytes>(states.kinds[k],
                                [&](auto code) { return code.encode(value, exponent, half); });
    if (exists && i % codes::block == 0) {
      store<1>(exponents + k, Pack<std::uint8_t, 1>{static_cast<std::uint8_t>(exponent)});
    }
    if (k > 0 && states.borrows(k)) coded[k - 1] |= coded[k] >> 8 << 7;
  }
  if (!exists) return;
#pragma unroll
  for (int k = 0; k < max_states; ++k) {
    if (k >= states.num_states) break;
    const auto code = static_cast<CodeOf<bytes>>(coded[k]);
    store<1>(static_cast<CodeOf<bytes>*>(states.codes[k]) + i, Pack<CodeOf<bytes>, 1>{code});
  }
}

}  // namespace cuda_engine
