// The kernel that counts a step and prepares its scalars where both live on the device: a thread
// for each row, before the kernel of the step, on the same stream.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda_memory.h"
#include "row.h"
#include "storage.h"

namespace cuda_engine {

constexpr int prepare_threads = 128;

template <typename Rule>
struct Preparation {
  const Count* counts;
  const Group* groups;
  const Control* control;
  typename Rule::Scalars* scalars;  // written, one row of them for each count
  int num_rows;
};

// What the param group has now: values of its own, and those of tensors, read at every step.
template <typename Rule>
__device__ __forceinline__ typename Rule::Hyperparameters hyperparameters(const Group& group) {
  constexpr int count = sizeof(typename Rule::Hyperparameters) / sizeof(double);
  static_assert(count <= max_hyperparameters, "a Group holds all hyperparameters of a rule");
  struct {
    double values[count];
  } h;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const void* address = group.addresses[i];
    if (address == nullptr) {
      h.values[i] = group.values[i];
    } else if (group.wide >> i & 1) {
      h.values[i] = load<1>(static_cast<const double*>(address)).elements[0];
    } else {
      h.values[i] = load<1>(static_cast<const float*>(address)).elements[0];
    }
  }
  return bit_cast<typename Rule::Hyperparameters>(h);
}

template <typename Rule>
__global__ void __launch_bounds__(prepare_threads)
    prepare_kernel(const __grid_constant__ Preparation<Rule> work) {
  const std::int64_t row = std::int64_t{blockIdx.x} * prepare_threads + threadIdx.x;
  if (row >= work.num_rows || control_at(work.control).skip != 0) return;
  const Count count = work.counts[row];
  const Pack<float, 1> step{load<1>(count.step).elements[0] + 1};
  store<1>(count.step, step);
  work.scalars[row] = Rule::prepare(static_cast<std::int64_t>(step.elements[0]),
                                    hyperparameters<Rule>(work.groups[count.group]));
}

}  // namespace cuda_engine
