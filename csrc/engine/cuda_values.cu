// States from codes to values and back on a device: which kernel serves what.
#include <climits>
#include <stdexcept>
#include <string>

#include "cuda.h"
#include "cuda_launch.h"
#include "cuda_support.h"
#include "cuda_values.h"
#include "storage.h"

namespace cuda_engine {
namespace {

using Convert = void (*)(CodedStates);

void convert(Convert kernel, const char* work, const CodedStates& states, int device,
             void* stream) {
  const std::int64_t blocks = (states.numel + convert_threads - 1) / convert_threads;
  if (blocks > INT_MAX) {
    throw std::invalid_argument("one launch converts at most 2147483647 times " +
                                std::to_string(convert_threads) + " elements, got " +
                                std::to_string(states.numel) + ": split the tensor");
  }
  if (blocks == 0) return;  // CUDA refuses an empty grid
  try {
    const DeviceGuard guard(device);
    launch(kernel, blocks, convert_threads, static_cast<cudaStream_t>(stream), states);
  } catch (const CudaError& error) {
    throw std::runtime_error(std::string(error.what()) + " (" + work + " states, device " +
                             std::to_string(device) + ", " + std::to_string(states.numel) +
                             " elements)");
  }
}

template <typename Format>
Convert encode_kernel_for(int bytes) {
  return bytes == 1 ? encode_kernel<1, Format> : encode_kernel<2, Format>;
}

}  // namespace

void decode(const CodedStates& states, int device, void* stream) {
  const Convert kernel = states.bytes == 1 ? decode_kernel<1> : decode_kernel<2>;
  convert(kernel, "decoding", states, device, stream);
}

void encode(const std::string& dtype, const CodedStates& states, int device, void* stream) {
  Convert kernel = nullptr;
  if (dtype == "float32") kernel = encode_kernel_for<Float32>(states.bytes);
  if (dtype == "bfloat16") kernel = encode_kernel_for<BFloat16>(states.bytes);
  if (kernel == nullptr) {
    throw std::invalid_argument("values to encode are float32 or bfloat16, got " + dtype);
  }
  convert(kernel, "encoding", states, device, stream);
}

}  // namespace cuda_engine
