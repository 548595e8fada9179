// Warps: their size, and what their threads find out together.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cuda_engine {

constexpr int warp_size = 32;
constexpr unsigned whole_warp = 0xffffffff;

// The largest value of `threads` neighbours, a power of two; all threads of the warp take part.
template <int threads>
__device__ __forceinline__ std::uint32_t largest_of(std::uint32_t value) {
#pragma unroll
  for (int distance = 1; distance < threads; distance *= 2) {
    value = max(value, __shfl_xor_sync(whole_warp, value, distance));
  }
  return value;
}

}  // namespace cuda_engine
