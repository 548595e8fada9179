// The CUDA kernel for rows whose states or weights are coded; the one for plain ones is in
// cuda_kernel.h.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda_coded_streams.h"
#include "cuda_memory.h"
#include "cuda_tuning.h"
#include "cuda_warp.h"
#include "row.h"

namespace cuda_engine {

// What a block of threads does for the chunk of this number in the whole table. Chunks are counted
// from a row's first element, as blocks of elements are: only where all streams begin at a 128-bit
// boundary does a thread take a group of neighbours. A warp takes the elements that do not fill
// groups of all its threads one block at a time, and so, for the rest of the chunk, where it met
// states that groups do not serve.
template <typename Rule, typename Weights, int bytes, typename Table>
__device__ __forceinline__ void update_coded_chunk(const Table& table, float grad_scale,
                                                   std::int64_t number) {
  using Streams = CodedStreams<Rule, Weights, bytes>;
  constexpr int warp_group = warp_size * Streams::group;
  constexpr int round = tuning.block_threads * Streams::group;
  static_assert(tuning.chunk_size % codes::block == 0, "a block lies in one chunk");

  const int index = row_of(table, number);
  const Row row = table.rows[index];
  const Coded coded = table.coded[index];
  const typename Rule::Scalars scalars = table.scalars[row.scalars];
  const Streams streams(row, coded);
  const Randomness random(coded, static_cast<std::uint32_t>(scalars.step));

  const std::int64_t begin = (number - row.first_chunk) * tuning.chunk_size;
  const std::int64_t end = min(begin + tuning.chunk_size, row.numel);
  const bool one_upper_half = !Streams::is_random || random.one_upper_half(begin, end);
  const bool vectorized = streams.all_aligned() && one_upper_half;
  const std::int64_t tail = vectorized ? end - (end - begin) % warp_group : begin;

  const int lane = threadIdx.x % warp_size;
  const int warp = threadIdx.x / warp_size;
  std::int64_t i = begin + warp * warp_group;
#pragma unroll 1
  for (; i < tail; i += round) {
    if (!streams.update_group(scalars, grad_scale, random, i + lane * Streams::group)) break;
  }

  const std::int64_t first_of_tail = tail + warp * codes::block;
#pragma unroll 1
  for (i = i < tail ? i : first_of_tail; i < end;) {
    streams.update_block(scalars, grad_scale, random, i, end);
    if (i < tail) {
      i += codes::block;
      if ((i - begin) % warp_group == 0) i += round - warp_group;
      if (i >= tail) i = first_of_tail;
    } else {
      i += tuning.block_threads;
    }
  }
}

template <typename Rule, typename Weights, int bytes, typename Table>
__global__ void __launch_bounds__(tuning.block_threads, tuning.min_blocks)
    coded_step_kernel(const __grid_constant__ Table table) {
  const Control control = control_at(table.control);
  if (control.skip != 0) return;
  for_each_chunk(table, [&](std::int64_t chunk) {
    update_coded_chunk<Rule, Weights, bytes>(table, control.grad_scale, chunk);
  });
}

}  // namespace cuda_engine
