// The tensor table: one row per tensor, the same bytes for the CPU, CUDA and Triton engines.
#pragma once

#include <cstdint>

constexpr int max_states = 3;
constexpr int max_hyperparameters = 8;

// 64 bytes, eight words: Triton reads the table as an int64 matrix of eight columns.
struct Row {
  void* param;
  const void* grad;
  void* state[max_states];
  std::int64_t numel;
  std::int64_t first_chunk;  // chunks of all rows before this one; the engine sets a chunk's size
  std::int64_t scalars;      // which row of scalars applies
};

static_assert(sizeof(Row) == 64, "triton_kernels/table.py counts on eight 64-bit columns");

// Of a row whose states or weights are not plain floats; beside the rows, in the same order.
struct Coded {
  std::uint8_t* exponents;   // num_states for each block of codes::block elements, one byte each
  std::int16_t* remainders;  // what the parameters lack of float32: its lower 16 bits
  std::int64_t first_index;  // that the row's first element has in its whole tensor
  std::uint64_t key;         // of the random bits
};

static_assert(sizeof(Coded) == 32, "triton_kernels/coded.py counts on four 64-bit columns");

// Of a row whose step count lives on the device, where its scalars are then prepared too.
struct Count {
  float* step;         // steps done so far
  std::int64_t group;  // which Group applies
};

// The hyperparameters of a param group as a device finds them. An address is that of a tensor's
// one element, which may change from step to step.
struct Group {
  double values[max_hyperparameters];
  const void* addresses[max_hyperparameters];  // null: the value holds
  std::int64_t wide;                           // bit i: address i is of a float64, not a float32
};

// What holds for all rows of a step, on the device; where there is none, 1 and 0.
struct Control {
  float grad_scale;  // every gradient is multiplied by it
  float skip;        // not 0: nothing is read, written or counted
};

// A gradient in the table of a pass over gradients alone, which takes segments of them.
struct GradRow {
  const void* grad;
  std::int64_t numel;
  std::int64_t first_segment;  // segments of all rows before this one
};

// The sum of squares has one order of additions on every backend, in float64. Within a segment,
// lane i adds up the squares of elements i, i + lanes, ... in turn; then the upper half of the
// lanes is added to the lower half until one is left. The sums of all segments go the same way:
// lane i adds up those of segments i, i + lanes, ...
constexpr std::int64_t segment_size = 16384;
constexpr int segment_lanes = 1024;
