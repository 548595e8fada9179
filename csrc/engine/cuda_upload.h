// The way of a table to the device where a kernel's parameter cannot hold it: a few pinned buffers,
// each with its copy on the device, used in turn. In steady state nothing is allocated, and nothing
// waits unless the host runs a whole ring of launches ahead of the device.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <map>
#include <mutex>

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

inline std::mutex upload_mutex;
inline std::map<int, UploadRing> upload_rings;  // by device

// Host memory that goes to the device; it may change once it was handed over.
struct Piece {
  const void* from;
  std::size_t bytes;
};

// Copies pieces end to end into a buffer on the device, in one copy, and calls `launch` with the
// buffer's address. What it enqueues on the stream may read them and use `workspace` bytes behind.
template <typename Launch>
void upload(std::initializer_list<Piece> pieces, std::size_t workspace, int device,
            cudaStream_t stream, Launch launch) {
  const std::lock_guard<std::mutex> lock(upload_mutex);
  const RelaxedCapture relaxed;

  cudaStreamCaptureStatus capture;
  check(cudaStreamIsCapturing(stream, &capture), "asking whether the stream is being captured");
  const bool captured = capture != cudaStreamCaptureStatusNone;

  std::size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  // A replayed graph reads the pinned memory again, at any later time: that slot is the graph's.
  UploadSlot kept;
  if (captured) kept.reserve(bytes + workspace);
  const UploadSlot& slot = captured ? kept : upload_rings[device].next(bytes + workspace);

  std::byte* to = slot.host;
  for (const Piece& piece : pieces) {
    if (piece.bytes > 0) std::memcpy(to, piece.from, piece.bytes);
    to += piece.bytes;
  }
  check(cudaMemcpyAsync(slot.device, slot.host, bytes, cudaMemcpyHostToDevice, stream),
        "uploading the tensor table");
  launch(slot.device);
  if (!captured) check(cudaEventRecord(slot.consumed, stream), "recording an event");
}

}  // namespace cuda_engine
