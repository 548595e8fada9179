// How a thread of a kernel reaches memory: accesses of 128 bits, the chunks and the row that its
// block works on, and the control of the step.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda_tuning.h"
#include "row.h"
#include "storage.h"

namespace cuda_engine {

constexpr int access_bytes = 16;  // the widest access that all architectures have

// Neighbouring elements of one stream, in registers; aligned so that the compiler reads and writes
// them in accesses of 128 bits, or in one narrower access where there are fewer.
template <typename T, int size>
struct alignas(size * sizeof(T) < access_bytes ? size * sizeof(T) : access_bytes) Pack {
  T elements[size];
};

// A pack as the intrinsics for streaming accesses move it.
template <typename Pack>
struct Words {
  using Word = std::conditional_t<sizeof(Pack) < access_bytes, uint2, uint4>;
  static constexpr int size = sizeof(Pack) / sizeof(Word);
  Word words[size];
};

// The assumption spares a generic access where the address was itself read from memory.
template <int size, typename T>
__device__ __forceinline__ Pack<T, size> load(const T* from) {
  __builtin_assume(__isGlobal(from));
  if constexpr (tuning.streaming_loads && size > 1) {
    using Parts = Words<Pack<T, size>>;
    Parts parts;
#pragma unroll
    for (int w = 0; w < Parts::size; ++w) {
      parts.words[w] = __ldcs(reinterpret_cast<const typename Parts::Word*>(from) + w);
    }
    return bit_cast<Pack<T, size>>(parts);
  } else {
    return *reinterpret_cast<const Pack<T, size>*>(from);
  }
}

template <int size, typename T>
__device__ __forceinline__ void store(T* to, const Pack<T, size>& pack) {
  __builtin_assume(__isGlobal(to));
  if constexpr (tuning.streaming_stores && size > 1) {
    using Parts = Words<Pack<T, size>>;
    const auto parts = bit_cast<Parts>(pack);
#pragma unroll
    for (int w = 0; w < Parts::size; ++w) {
      __stcs(reinterpret_cast<typename Parts::Word*>(to) + w, parts.words[w]);
    }
  } else {
    *reinterpret_cast<Pack<T, size>*>(to) = pack;
  }
}

__device__ __forceinline__ std::int64_t first_unit(const Row& row) { return row.first_chunk; }
__device__ __forceinline__ std::int64_t first_unit(const GradRow& row) { return row.first_segment; }

// The last row that starts at or before this unit of work: rows without elements start where the
// next one does, and are passed over.
template <typename Table>
__device__ __forceinline__ int row_of(const Table& table, std::int64_t unit) {
  int low = 0;
  int high = table.num_rows;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first_unit(table.rows[middle]) <= unit ? low : high) = middle;
  }
  return low;
}

// Calls `update(chunk)` for each chunk of the whole table that is this block's to do.
template <typename Table, typename Update>
__device__ __forceinline__ void for_each_chunk(const Table& table, Update update) {
  if constexpr (tuning.persistent) {
    const Row& last = table.rows[table.num_rows - 1];
    const std::int64_t num_chunks =
        last.first_chunk + (last.numel + tuning.chunk_size - 1) / tuning.chunk_size;
    for (std::int64_t chunk = blockIdx.x; chunk < num_chunks; chunk += gridDim.x) update(chunk);
  } else {
    update(blockIdx.x);
  }
}

// What the step is to do, said on the device; without a word, all of it.
__device__ __forceinline__ Control control_at(const Control* address) {
  return address == nullptr ? Control{1.0f, 0.0f} : *address;
}

}  // namespace cuda_engine
