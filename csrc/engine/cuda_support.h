// What every CUDA call of the engine needs: its status checked, its device selected, and the
// permission to allocate while some stream is being captured into a graph.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace cuda_engine {

struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string describe(cudaError_t status) {
  return std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
}

inline void check(cudaError_t status, const char* attempted) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report this error again as its own
  throw CudaError(describe(status) + ", while " + attempted);
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "asking for the current device");
    if (device == previous_) return;
    check(cudaSetDevice(device), "selecting the device");
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool changed_ = false;
};

// A capture forbids allocations and waits, to this thread or to all, lest they be taken for a part
// of the graph. Ours never are: they concern memory that no captured work has seen.
class RelaxedCapture {
 public:
  RelaxedCapture() {
    check(cudaThreadExchangeStreamCaptureMode(&mode_), "relaxing the thread's capture mode");
  }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

}  // namespace cuda_engine
