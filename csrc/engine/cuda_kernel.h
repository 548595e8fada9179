// The CUDA kernel: how one block finds its chunk in the tensor table and moves it through a rule.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "cuda.h"
#include "row.h"

namespace cuda_engine {

constexpr int block_threads = 256;
constexpr int access_bytes = 16;  // the widest access that all architectures have

// Neighbouring elements of one stream, in registers; aligned so that the compiler reads and writes
// them in accesses of 128 bits, or in one narrower access where there are fewer.
template <typename T, int size>
struct alignas(size * sizeof(T) < access_bytes ? size * sizeof(T) : access_bytes) Pack {
  T elements[size];
};

// The assumption spares a generic access where the address was itself read from memory.
template <int size, typename T>
__device__ __forceinline__ Pack<T, size> load(const T* from) {
  __builtin_assume(__isGlobal(from));
  return *reinterpret_cast<const Pack<T, size>*>(from);
}

template <int size, typename T>
__device__ __forceinline__ void store(T* to, const Pack<T, size>& pack) {
  __builtin_assume(__isGlobal(to));
  *reinterpret_cast<Pack<T, size>*>(to) = pack;
}

// The streams of one row: param, grad and the states that the rule has.
template <typename Rule, typename Format,
          typename = std::make_index_sequence<std::size_t{Rule::num_states}>>
struct Streams;

template <typename Rule, typename Format, std::size_t... k>
struct Streams<Rule, Format, std::index_sequence<k...>> {
  using Storage = typename Format::storage;
  using Compute = typename Format::compute;

  // Elements per thread and round: 128 bits of the narrowest stream.
  static constexpr int group =
      access_bytes / (sizeof(Storage) < sizeof(Compute) ? sizeof(Storage) : sizeof(Compute));
  static_assert(chunk_size % group == 0, "a chunk ends where a group ends");

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

  // Moves `size` elements from index i on through the rule. All loads come before the first
  // arithmetic, so that a thread waits once for memory, not once for each stream.
  template <int size>
  __device__ __forceinline__ void update(const typename Rule::Scalars& scalars,
                                         std::int64_t i) const {
    Pack<Storage, size> param_pack = load<size>(param + i);
    const Pack<Storage, size> grad_pack = load<size>(grad + i);
    Pack<Compute, size> state_packs[] = {load<size>(state[k] + i)...};
#pragma unroll
    for (int e = 0; e < size; ++e) {
      Compute value = Format::load(param_pack.elements[e]);
      Rule::update(scalars, value, Format::load(grad_pack.elements[e]),
                   state_packs[k].elements[e]...);
      param_pack.elements[e] = Format::store(value);
    }
    store<size>(param + i, param_pack);
    (store<size>(state[k] + i, state_packs[k]), ...);
  }

 private:
  template <typename T>
  __device__ __forceinline__ static bool aligned(const T* address) {
    return reinterpret_cast<std::uintptr_t>(address) % access_bytes == 0;
  }
};

// The last row that starts at or before this chunk: rows without elements start where the next one
// does, and are passed over.
template <typename Table>
__device__ __forceinline__ int row_of_chunk(const Table& table, std::int64_t chunk) {
  int low = 0;
  int high = table.num_rows;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.rows[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

// One block, one chunk. Where all streams reach a 128-bit boundary at the same element, every chunk
// but the first begins at such an element: chunk boundaries are shifted by the head, which chunk 0
// takes on. Else the body is empty and all elements are updated one by one.
template <typename Rule, typename Format, typename Table>
__global__ void __launch_bounds__(block_threads) step_kernel(const __grid_constant__ Table table) {
  const Row row = table.rows[row_of_chunk(table, blockIdx.x)];
  const typename Rule::Scalars scalars = table.scalars[row.scalars];
  const Streams<Rule, Format> streams(row);
  constexpr int group = Streams<Rule, Format>::group;

  const bool vectorized = streams.all_aligned_at(streams.head());
  const std::int64_t head = vectorized ? streams.head() : 0;
  const std::int64_t chunk = blockIdx.x - row.first_chunk;

  const std::int64_t body = min(chunk * chunk_size + head, row.numel);
  const std::int64_t end = min((chunk + 1) * chunk_size + head, row.numel);
  const std::int64_t begin = chunk == 0 ? 0 : body;
  const std::int64_t tail = vectorized ? end - (end - body) % group : body;

#pragma unroll 1
  for (std::int64_t i = body + threadIdx.x * group; i < tail; i += block_threads * group) {
    streams.template update<group>(scalars, i);
  }
  // The elements before the body and after it, as one range.
#pragma unroll 1
  for (std::int64_t i = begin + threadIdx.x; i < end - (tail - body); i += block_threads) {
    streams.template update<1>(scalars, i < body ? i : i + (tail - body));
  }
}

}  // namespace cuda_engine
