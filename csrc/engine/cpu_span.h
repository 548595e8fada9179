// The CPU engine's loops: each is given a batch, and which of its elements to update.
#pragma once

#include <cstdint>
#include <string>

#include "cpu.h"

namespace cpu {

// Updates elements [begin, end) of the batch, its tensors laid end to end; `row` holds the first.
using Span = void (*)(const Batch&, const Row* row, std::int64_t begin, std::int64_t end);

// The loop for states or weights that are not plain floats. Throws std::invalid_argument for what
// does not exist.
Span coded_span_for(const std::string& rule, const std::string& dtype, const Formats& formats,
                    const std::string& instruction_set);

}  // namespace cpu
