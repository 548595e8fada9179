// The CUDA kernel: how one block finds its chunk in the tensor table and moves it through a rule.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "../rules/step_element.h"
#include "cuda_memory.h"
#include "cuda_tuning.h"
#include "row.h"
#include "storage.h"

namespace cuda_engine {

// The streams of one row: param, grad and the states that the rule has.
template <typename Rule, typename Format,
          typename = std::make_index_sequence<std::size_t{Rule::num_states}>>
struct Streams;

template <typename Rule, typename Format, std::size_t... k>
struct Streams<Rule, Format, std::index_sequence<k...>> {
  using Storage = typename Format::storage;
  using Compute = typename Format::compute;

  // Elements that a thread moves in one access of 128 bits, or a few.
  static constexpr std::size_t group_itemsize = tuning.group_by_widest
                                                    ? std::max(sizeof(Storage), sizeof(Compute))
                                                    : std::min(sizeof(Storage), sizeof(Compute));
  static constexpr int group = access_bytes / group_itemsize;
  static_assert(tuning.chunk_size % group == 0, "a chunk ends where a group ends");

  Storage* param;
  const Storage* grad;
  Compute* state[max_states];

  __device__ __forceinline__ explicit Streams(const Row& row)
      : param(static_cast<Storage*>(row.param)),
        grad(static_cast<const Storage*>(row.grad)),
        state{static_cast<Compute*>(row.state[k])...} {}

  // Elements before the first 128-bit boundary of param.
  __device__ __forceinline__ int head() const {
    return (-reinterpret_cast<std::uintptr_t>(param) % access_bytes) / sizeof(Storage);
  }

  __device__ __forceinline__ bool all_aligned_at(std::int64_t i) const {
    return aligned(param + i) && aligned(grad + i) && (aligned(state[k] + i) && ...);
  }

  // Moves groups of `size` elements through the rule, the first at index i, the next ones `stride`
  // elements apart, each gradient times `grad_scale`. All loads come before the first arithmetic,
  // so that a thread waits once for memory, not once for each stream.
  template <int size, int groups = 1>
  __device__ __forceinline__ void update(const typename Rule::Scalars& scalars, float grad_scale,
                                         std::int64_t i, std::int64_t stride = 0) const {
    Pack<Storage, size> param_packs[groups];
    Pack<Storage, size> grad_packs[groups];
    Pack<Compute, size> state_packs[groups][sizeof...(k)];
#pragma unroll
    for (int g = 0; g < groups; ++g) {
      param_packs[g] = load<size>(param + i + g * stride);
      grad_packs[g] = load<size>(grad + i + g * stride);
      ((state_packs[g][k] = load<size>(state[k] + i + g * stride)), ...);
    }
#pragma unroll
    for (int g = 0; g < groups; ++g) {
#pragma unroll
      for (int e = 0; e < size; ++e) {
        Compute value = Format::load(param_packs[g].elements[e]);
        step_element<Rule>(scalars, value, Format::load(grad_packs[g].elements[e]) * grad_scale,
                           state_packs[g][k].elements[e]...);
        param_packs[g].elements[e] = Format::store(value);
      }
      store<size>(param + i + g * stride, param_packs[g]);
      (store<size>(state[k] + i + g * stride, state_packs[g][k]), ...);
    }
  }

 private:
  template <typename T>
  __device__ __forceinline__ static bool aligned(const T* address) {
    return reinterpret_cast<std::uintptr_t>(address) % access_bytes == 0;
  }
};

// What a block does for the chunk of this number in the whole table. Where all streams reach a
// 128-bit boundary at the same element, every chunk but a row's first begins at such an element:
// chunk boundaries are shifted by the head, which the first takes on. Else the body is empty and
// all elements are updated one by one.
template <typename Rule, typename Format, typename Table>
__device__ __forceinline__ void update_chunk(const Table& table, float grad_scale,
                                             std::int64_t number) {
  const Row row = table.rows[row_of(table, number)];
  const typename Rule::Scalars scalars = table.scalars[row.scalars];
  const Streams<Rule, Format> streams(row);
  constexpr int group = Streams<Rule, Format>::group;
  constexpr int round = tuning.block_threads * group;

  const bool vectorized = streams.all_aligned_at(streams.head());
  const std::int64_t head = vectorized ? streams.head() : 0;
  const std::int64_t chunk = number - row.first_chunk;

  const std::int64_t body = min(chunk * tuning.chunk_size + head, row.numel);
  const std::int64_t end = min((chunk + 1) * tuning.chunk_size + head, row.numel);
  const std::int64_t begin = chunk == 0 ? 0 : body;
  const std::int64_t tail = vectorized ? end - (end - body) % group : body;

  std::int64_t i = body + threadIdx.x * group;
  if constexpr (tuning.groups > 1) {
#pragma unroll 1
    for (; i + (tuning.groups - 1) * round < tail; i += tuning.groups * round) {
      streams.template update<group, tuning.groups>(scalars, grad_scale, i, round);
    }
  }
#pragma unroll 1
  for (; i < tail; i += round) streams.template update<group>(scalars, grad_scale, i);

  // The elements before the body and after it, as one range.
#pragma unroll 1
  for (i = begin + threadIdx.x; i < end - (tail - body); i += tuning.block_threads) {
    streams.template update<1>(scalars, grad_scale, i < body ? i : i + (tail - body));
  }
}

template <typename Rule, typename Format, typename Table>
__global__ void __launch_bounds__(tuning.block_threads, tuning.min_blocks)
    step_kernel(const __grid_constant__ Table table) {
  const Control control = control_at(table.control);
  if (control.skip != 0) return;
  for_each_chunk(table, [&](std::int64_t chunk) {
    update_chunk<Rule, Format>(table, control.grad_scale, chunk);
  });
}

}  // namespace cuda_engine
