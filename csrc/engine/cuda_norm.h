// The kernels of the sum of squares: a block for each segment of the gradients, then one block for
// the segments' sums. Both add in the order that row.h gives, so the bits are the CPU's.
//
// A thread owns four neighbouring lanes of the 1,024, so that one access of 128 bits feeds all of
// them, and has 64 bytes under way while it adds another 64: a block 16 KiB at least. It waits at
// one barrier, when the lanes' sums pass through shared memory to the first warp; the blocks
// beside it read on.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

#include "cuda_memory.h"
#include "cuda_warp.h"
#include "row.h"
#include "storage.h"

namespace cuda_engine {

constexpr int sum_threads = 256;
constexpr int lanes_of_thread = segment_lanes / sum_threads;
constexpr int bytes_under_way = 64;  // of a thread

using LaneSums = Pack<double, lanes_of_thread>;

// What an element adds to a sum. A fused multiply-add rounds once where a product and a sum round
// twice, but this product is exact: 24 bits squared are 48 of a double's 53, and the exponent
// stays far from its ends. So the bits are the same, at half the work of the slow unit.
template <typename Format>
struct Square {
  using Storage = typename Format::storage;
  __device__ __forceinline__ static double add(double sum, Storage element) {
    const double value = Format::load(element);
    return std::fma(value, value, sum);
  }
};

struct Itself {
  using Storage = double;
  __device__ __forceinline__ static double add(double sum, double element) { return sum + element; }
};

// The four lanes of a thread, and what they take in before they add.
template <typename Term, bool aligned>
struct Lanes {
  using T = typename Term::Storage;
  static constexpr int rounds = bytes_under_way / (lanes_of_thread * sizeof(T));
  static constexpr int batch_size = rounds * segment_lanes;
  using Taken = Pack<T, lanes_of_thread>;
  struct Batch {
    Taken taken[rounds];
  };

  const T* from;
  LaneSums sums{};

  // Four neighbours in one access, where the address allows it.
  __device__ __forceinline__ Taken take(std::int64_t i) const {
    if constexpr (aligned) {
      return load<lanes_of_thread>(from + i);
    } else {
      Taken taken;
#pragma unroll
      for (int e = 0; e < lanes_of_thread; ++e)
        taken.elements[e] = load<1>(from + i + e).elements[0];
      return taken;
    }
  }

  __device__ __forceinline__ Batch take_batch(std::int64_t i) const {
    Batch batch;
#pragma unroll
    for (int r = 0; r < rounds; ++r) batch.taken[r] = take(i + r * segment_lanes);
    return batch;
  }

  __device__ __forceinline__ void add(const Taken& taken) {
#pragma unroll
    for (int e = 0; e < lanes_of_thread; ++e) {
      sums.elements[e] = Term::add(sums.elements[e], taken.elements[e]);
    }
  }

  __device__ __forceinline__ void add(const Batch& batch) {
#pragma unroll
    for (int r = 0; r < rounds; ++r) add(batch.taken[r]);
  }
};

// The sums of this thread's lanes over `count` elements. A batch is under way while the one before
// it is added: left to itself, the compiler loads shortly before it adds, to save registers.
template <typename Term, bool aligned, typename T = typename Term::Storage>
__device__ __forceinline__ LaneSums sum_lanes(const T* from, std::int64_t count) {
  Lanes<Term, aligned> lanes{from};
  constexpr int batch_size = Lanes<Term, aligned>::batch_size;
  const std::int64_t in_batches = count / batch_size * batch_size;
  std::int64_t i = threadIdx.x * lanes_of_thread;
  if (i < in_batches) {
    auto batch = lanes.take_batch(i);
#pragma unroll 1
    for (i += batch_size; i < in_batches; i += batch_size) {
      const auto next = lanes.take_batch(i);
      lanes.add(batch);
      batch = next;
    }
    lanes.add(batch);
  }
#pragma unroll 1
  for (; i + lanes_of_thread <= count; i += segment_lanes) lanes.add(lanes.take(i));
#pragma unroll
  for (int e = 0; e < lanes_of_thread; ++e) {
    if (i + e < count) {
      lanes.sums.elements[e] = Term::add(lanes.sums.elements[e], load<1>(from + i + e).elements[0]);
    }
  }
  return lanes.sums;
}

// All lanes' sums added up, upper half to lower half, until one is left: in thread 0. To be called
// by all threads of a block, once.
__device__ __forceinline__ double sum_of_lanes(const LaneSums& sums) {
  constexpr int warps = sum_threads / warp_size;
  __shared__ LaneSums shared[sum_threads];
  shared[threadIdx.x] = sums;
  __syncthreads();
  if (threadIdx.x >= warp_size) return 0;

  LaneSums column[warps];  // the lanes of the threads that are whole warps away
#pragma unroll
  for (int w = 0; w < warps; ++w) column[w] = shared[w * warp_size + threadIdx.x];
#pragma unroll
  for (int half = warps / 2; half > 0; half /= 2) {
#pragma unroll
    for (int w = 0; w < half; ++w) {
#pragma unroll
      for (int e = 0; e < lanes_of_thread; ++e) {
        column[w].elements[e] += column[w + half].elements[e];
      }
    }
  }
  double (&lanes)[lanes_of_thread] = column[0].elements;
#pragma unroll
  for (int half = warp_size / 2; half > 0; half /= 2) {
#pragma unroll
    for (int e = 0; e < lanes_of_thread; ++e) {
      lanes[e] += __shfl_down_sync(whole_warp, lanes[e], half);
    }
  }
#pragma unroll
  for (int half = lanes_of_thread / 2; half > 0; half /= 2) {
#pragma unroll
    for (int e = 0; e < half; ++e) lanes[e] += lanes[e + half];
  }
  return lanes[0];
}

template <typename Term, typename T = typename Term::Storage>
__device__ __forceinline__ double block_sum(const T* from, std::int64_t count) {
  const bool aligned =
      reinterpret_cast<std::uintptr_t>(from) % alignof(Pack<T, lanes_of_thread>) == 0;
  return sum_of_lanes(aligned ? sum_lanes<Term, true>(from, count)
                              : sum_lanes<Term, false>(from, count));
}

// Of the segment that has the block's number.
template <typename Format, typename Table>
__global__ void __launch_bounds__(sum_threads)
    segments_kernel(const __grid_constant__ Table table, double* partials) {
  using Storage = typename Format::storage;
  const std::int64_t segment = blockIdx.x;
  const GradRow row = table.rows[row_of(table, segment)];
  const std::int64_t begin = (segment - row.first_segment) * segment_size;
  const double sum = block_sum<Square<Format>>(static_cast<const Storage*>(row.grad) + begin,
                                               min(row.numel - begin, segment_size));
  if (threadIdx.x == 0) partials[segment] = sum;
}

static __global__ void __launch_bounds__(sum_threads)
    total_kernel(const double* partials, std::int64_t num_segments, double* out) {
  const double sum = block_sum<Itself>(partials, num_segments);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace cuda_engine
