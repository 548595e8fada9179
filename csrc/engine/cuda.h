// The face of the CUDA engine: plain C++, so that the bindings need no CUDA header.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "coded_states.h"
#include "observed.h"
#include "row.h"

namespace cuda_engine {

// The unit of Row::first_chunk, in elements.
std::int64_t chunk_size();

// One optimizer step of all tensors of one device, parameter dtype and formats. The arrays are in
// host memory and may change as soon as step() returns.
struct Batch {
  const Row* rows;
  std::int64_t num_rows;
  const void* scalars;  // rows of Rule<float>::Scalars
  std::int64_t num_scalars;
  std::int64_t num_chunks;           // of all rows together
  const Control* control = nullptr;  // on the device, read when the step runs

  // Given, in host memory too, these stand in for the scalars: one count a row, in the same order,
  // empty rows included. The step is then counted on the device and its scalars made there.
  const Count* counts = nullptr;
  const Group* groups = nullptr;
  std::int64_t num_groups = 0;

  // Of all rows. Where they are not the plain ones, there is a Coded for each row.
  const Coded* coded = nullptr;
  std::string state_format = "fp32";    // "fp32", "16bit" or "8bit"
  std::string weight_format = "plain";  // "plain"; of bfloat16 "split" or "stochastic" too

  // On the device: where not null, what cuda_observe.h sees of the step goes here, zeroed slots.
  Observed* observed = nullptr;

  bool is_plain() const { return state_format == "fp32" && weight_format == "plain"; }
};

// Enqueues the step on a stream of a device: one launch in all, one more
// with counts and one more where it is observed. Throws
// std::invalid_argument for a rule, dtype, format or size that is not served and std::runtime_error
// for what CUDA reports.
void step(const std::string& rule, const std::string& dtype, const Batch& batch, int device,
          void* stream);

// Gradients of one device and dtype.
struct Grads {
  const GradRow* rows;  // in host memory, as in a Batch
  std::int64_t num_rows;
  std::int64_t num_segments;  // of all rows together
};

// Enqueues the sum of squares of all gradients, in two launches: each segment's sum goes to
// `partials`, one double a segment, and their total to `out`, both on the device. Throws as step().
void sum_squares(const std::string& dtype, const Grads& grads, double* partials, double* out,
                 int device, void* stream);

// Enqueues the conversion of states from codes to values, float32 of codes of two bytes and
// bfloat16 of codes of one; all addresses are on the device. One launch, none for no elements.
// Throws as step().
void decode(const CodedStates& states, int device, void* stream);

// The same from values of `dtype`, float32 or bfloat16, to codes and exponents, rounded to the
// nearest.
void encode(const std::string& dtype, const CodedStates& states, int device, void* stream);

// The CUDA version of the runtime linked in, as CUDART_VERSION writes it: 13000 for 13.0.
int runtime_version();

// Compute capabilities compiled for, as sm_ numbers.
std::vector<int> architectures();

// Why step() cannot run on this device, or nothing if it can. Creates no context on the device.
std::optional<std::string> why_unusable(int device);

}  // namespace cuda_engine
