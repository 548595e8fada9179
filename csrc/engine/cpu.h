// The CPU engine: one parallel pass over all tensors of a batch.
#pragma once

#include <string>
#include <vector>

#include "row.h"

namespace cpu {

// The unit of Row::first_chunk. Threads share a batch by elements, so here a chunk is one element.
constexpr std::int64_t chunk_size = 1;

// Names of the instruction sets that this processor runs, slowest first; "baseline" is always one.
std::vector<std::string> instruction_sets();

// How the tensors of a step are stored: adamod_fused/formats.py has the names.
struct Formats {
  std::string states, weights;
  const Coded* coded;  // a row for each tensor, where the formats are not plain
};

// One step of `rule` over `num_rows` tensors whose parameters are of `dtype`; `scalars` holds rows
// of Rule::Scalars in the compute type (double for float64, else float); every gradient is
// multiplied by `grad_scale`. Throws std::invalid_argument for a rule, dtype, format or instruction
// set that does not exist here.
void step(const std::string& rule, const std::string& dtype, const Formats& formats,
          const Row* rows, std::int64_t num_rows, const void* scalars, float grad_scale,
          int threads, const std::string& instruction_set);

// The sum of the squares of all gradients, in the order of additions that row.h tells of. Throws as
// `step`.
double sum_squares(const std::string& dtype, const GradRow* rows, std::int64_t num_rows,
                   std::int64_t num_segments, int threads, const std::string& instruction_set);

}  // namespace cpu
