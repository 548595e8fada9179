// The tensor table: one row per tensor, the same bytes for the CPU, CUDA and Triton engines.
#pragma once

#include <cstdint>

constexpr int max_states = 3;

// 64 bytes, eight words: Triton reads the table as an int64 matrix of eight columns.
struct Row {
  void* param;
  const void* grad;
  void* state[max_states];
  std::int64_t numel;
  std::int64_t first_chunk;  // chunks of all rows before this one; the engine sets a chunk's size
  std::int64_t scalars;      // which row of scalars applies
};

static_assert(sizeof(Row) == 64, "triton_kernels/engine.py counts on eight 64-bit columns");
