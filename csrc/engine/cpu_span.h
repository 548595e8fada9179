// What the CPU engine's loops are given: a batch, and which of its elements to update.
#pragma once

#include <cstdint>
#include <string>

#include "row.h"

namespace cpu {

struct Batch {
  const Row* rows;
  std::int64_t num_rows;
  const Coded* coded;  // beside the rows, where the formats are not plain
  const void* scalars;
  float grad_scale;
};

// Updates elements [begin, end) of the batch, its tensors laid end to end; `row` holds the first.
using Span = void (*)(const Batch&, const Row* row, std::int64_t begin, std::int64_t end);

// The loop for states or weights that are not plain floats. Throws std::invalid_argument for what
// does not exist.
Span coded_span_for(const std::string& rule, const std::string& dtype,
                    const std::string& state_format, const std::string& weight_format,
                    const std::string& instruction_set);

}  // namespace cpu
