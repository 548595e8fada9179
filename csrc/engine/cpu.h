// The CPU engine: one parallel pass over all tensors of a batch.
#pragma once

#include <string>
#include <vector>

#include "coded_states.h"
#include "formats.h"
#include "observed.h"
#include "row.h"

namespace cpu {

// The unit of Row::first_chunk. Threads share a batch by elements, so here a chunk is one element.
constexpr std::int64_t chunk_size = 1;

// Names of the instruction sets that this processor runs, slowest first; "baseline" is always one.
std::vector<std::string> instruction_sets();

// The tensors of a step, and what it needs beside them.
struct Batch {
  const Row* rows;
  std::int64_t num_rows;
  const Coded* coded;   // beside the rows, where the formats are not plain
  const void* scalars;  // rows of Rule::Scalars in the compute type: double for float64, else float
  float grad_scale;     // every gradient is multiplied by it
};

// One step of `rule` over tensors whose parameters are of `dtype`. Throws std::invalid_argument for
// a rule, dtype, combination of formats or instruction set that does not exist here.
void step(const std::string& rule, const std::string& dtype, const Formats& formats,
          const Batch& batch, int threads, const std::string& instruction_set);

// Looks at the step just done with the same arguments: what observed.h tells of row i goes to
// `observed` from `first_observed(rows[i], i, chunk_size)` on. Throws as `step`.
void observe(const std::string& rule, const std::string& dtype, const Formats& formats,
             const Batch& batch, int threads, const std::string& instruction_set,
             Observed* observed);

// The sum of the squares of all gradients, in the order of additions that row.h tells of. Throws as
// `step`.
double sum_squares(const std::string& dtype, const GradRow* rows, std::int64_t num_rows,
                   std::int64_t num_segments, int threads, const std::string& instruction_set);

// Makes the values of states from their codes: float32 from codes of two bytes, bfloat16, which
// loses nothing, from codes of one. Throws std::invalid_argument for states that there cannot be.
void decode(const CodedStates& states, int threads, const std::string& instruction_set);

// Makes codes and exponents from values of `dtype`, float32 or bfloat16, rounded to the nearest.
// Throws as `decode`.
void encode(const std::string& dtype, const CodedStates& states, int threads,
            const std::string& instruction_set);

}  // namespace cpu
