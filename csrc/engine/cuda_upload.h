// The way of a large tensor table to the device: a few pinned buffers, each with its copy on the
// device, used in turn. In steady state nothing is allocated, and nothing waits unless the host
// runs a whole ring of launches ahead of the device.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>

#include "cuda_support.h"

namespace cuda_engine {

struct UploadSlot {
  std::byte* host = nullptr;
  std::byte* device = nullptr;
  std::size_t capacity = 0;
  cudaEvent_t consumed = nullptr;  // recorded after the launch that reads the slot

  // Gives up smaller buffers instead of freeing them, which would wait for the whole device;
  // as sizes double, all that were given up are together smaller than the one in use.
  void reserve(std::size_t bytes) {
    if (bytes <= capacity) return;
    std::size_t size = 64 * 1024;
    while (size < bytes) size *= 2;
    void* host_buffer = nullptr;
    void* device_buffer = nullptr;
    check(cudaMallocHost(&host_buffer, size), "allocating pinned memory for the tensor table");
    check(cudaMalloc(&device_buffer, size), "allocating device memory for the tensor table");
    host = static_cast<std::byte*>(host_buffer);
    device = static_cast<std::byte*>(device_buffer);
    capacity = size;
  }
};

// Of one device. Its memory is never returned: when a process ends, the driver may be gone first.
class UploadRing {
 public:
  UploadSlot& next(std::size_t bytes) {
    UploadSlot& slot = slots_[turn_];
    turn_ = (turn_ + 1) % slots_.size();
    if (slot.consumed == nullptr) {
      check(cudaEventCreateWithFlags(&slot.consumed, cudaEventDisableTiming), "creating an event");
    }
    check(cudaEventSynchronize(slot.consumed), "waiting for an earlier step");
    slot.reserve(bytes);
    return slot;
  }

 private:
  std::array<UploadSlot, 8> slots_;
  std::size_t turn_ = 0;
};

}  // namespace cuda_engine
