// What cuda_coded.cu has for cuda.cu, which compiles beside it.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "cuda.h"

namespace cuda_engine {

// As step(), of a rule on a batch whose states or weights are coded, instantiated for every rule.
template <typename Rule>
void step_coded(const std::string& dtype, const Batch& batch, int device, cudaStream_t stream);

}  // namespace cuda_engine
