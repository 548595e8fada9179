// Stands in for the CUDA runtime so that g++ compiles csrc/engine/*.cu as they are and the host
// runs its grids and blocks. Single-threaded, and no more of CUDA than those files use.
//
// Work runs at once, or, when a test asks for it, as late as CUDA allows: queued by stream until
// something waits, so that a buffer used again too early is seen. Blocks run last to first, as
// nothing may count on their order. The emulation_* functions at the end are for the tests.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "fibers.h"

#define CUDART_VERSION 12010
#define __CUDA_ARCH_LIST__ 800, 900

#define __global__
#define __device__
#define __shared__ static  // one block runs at a time; what it finds there is an earlier one's
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __builtin_assume(condition) static_cast<void>(condition)
#define __isGlobal(address) emulation.access(address)  // the engine asks once per access

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 gridDim, blockIdx, threadIdx;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorStreamCaptureUnsupported = 900,
};
inline const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
  }
  return "unknown";
}
inline const char* cudaGetErrorString(cudaError_t) { return "as emulated"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

// Devices: two, of compute capability `emulation.capability`.

using Work = std::function<void()>;
struct CUstream_st;
using cudaStream_t = CUstream_st*;

inline struct Emulation {
  int driver = 13000, device_count = 2, capability = 90;
  int current_device = 0, launch_device = -1;
  std::int64_t launches = 0, copies = 0, allocations = 0, waits = 0, accesses = 0;
  std::map<cudaStream_t, std::deque<Work>> queues;
  bool lazy = false, capturing = false, relaxed = false;
  cudaStream_t captured_stream = nullptr;
  std::vector<Work> graph;
  Fibers threads;  // of the block that runs

  bool access(const void* address) {
    ++accesses;
    return address != nullptr;
  }
  void enqueue(cudaStream_t stream, Work work) {
    if (capturing && stream == captured_stream) {
      graph.push_back(std::move(work));
      return;
    }
    queues[stream].push_back(std::move(work));
    if (!lazy) run_one(stream);
  }
  void run_one(cudaStream_t stream) {
    const Work work = std::move(queues[stream].front());
    queues[stream].pop_front();
    work();
  }
  cudaError_t unsafe() const {  // what a capture forbids to a thread that is not relaxed
    return capturing && !relaxed ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
  }
} emulation;

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = emulation.driver;
  return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = emulation.device_count;
  return emulation.device_count == 0 ? cudaErrorNoDevice : cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = emulation.current_device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulation.device_count) return cudaErrorInvalidDevice;
  emulation.current_device = device;
  return cudaSuccess;
}
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
};
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = emulation.capability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = emulation.capability % 10;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      break;
  }
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t) {
  *blocks = 2;
  return cudaSuccess;
}

// Streaming accesses: the host has no such hints.

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
template <typename Word>
Word __ldcs(const Word* address) {
  Word value;
  std::memcpy(&value, address, sizeof(value));
  return value;
}
template <typename Word>
void __stcs(Word* address, Word value) {
  std::memcpy(address, &value, sizeof(value));
}

// Threads take turns, so nothing comes between.
inline int atomicAdd(int* address, int value) {
  const int before = *address;
  *address += value;
  return before;
}

// Threads that wait for each other: a block's, or a warp's, all lanes taking part.

inline void __syncthreads() {
  static const char barrier = 0;
  threadIdx.x = emulation.threads.wait(&barrier, Fibers::Scope::block);
}
// Of every lane the value that the lane `from` posted.
template <typename T, typename From>
T exchanged(unsigned mask, T value, From from) {
  static const char barrier = 0;
  // Two turns, as some threads post the next value while others have yet to read this one.
  static T posted[2][1024];
  static unsigned calls[1024];
  if (mask != 0xffffffff) std::abort();  // part of a warp: not emulated
  const unsigned turn = calls[threadIdx.x]++ % 2;
  posted[turn][threadIdx.x] = value;
  threadIdx.x = emulation.threads.wait(&barrier, Fibers::Scope::warp);
  const unsigned lane = threadIdx.x % 32;
  return from(posted[turn] + (threadIdx.x - lane), lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  return exchanged(mask, value, [=](const T* posted, unsigned lane) {
    return posted[lane + delta < 32 ? lane + delta : lane];
  });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return exchanged(mask, value,
                   [=](const T* posted, unsigned lane) { return posted[lane ^ lanes]; });
}
inline int __any_sync(unsigned mask, int value) {
  return exchanged(mask, value, [](const int* posted, unsigned) {
    return std::any_of(posted, posted + 32, [](int each) { return each != 0; });
  });
}

// Bytes of two words, chosen by the lower three bits of each digit.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = std::uint64_t{y} << 32 | x;
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned byte = selector >> 4 * i & 7;
    chosen |= static_cast<unsigned>(bytes >> 8 * byte & 0xff) << 8 * i;
  }
  return chosen;
}

// Memory: the host's, filled with junk, never freed by the engine either.

inline cudaError_t cudaMalloc(void** address, std::size_t bytes) {
  if (emulation.unsafe() != cudaSuccess) return emulation.unsafe();
  ++emulation.allocations;
  *address = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  std::memset(*address, 0xa5, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** address, std::size_t bytes) {
  return cudaMalloc(address, bytes);
}
enum cudaMemcpyKind { cudaMemcpyHostToDevice };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream) {
  ++emulation.copies;
  emulation.enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

// Events and captures.

struct CUevent_st {
  cudaStream_t stream = nullptr;
  int pending = 0;
};
using cudaEvent_t = CUevent_st*;
constexpr unsigned cudaEventDisableTiming = 2;
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->stream = stream;
  ++event->pending;
  emulation.enqueue(stream, [event] { --event->pending; });
  return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (emulation.unsafe() != cudaSuccess) return emulation.unsafe();
  emulation.waits += event->pending > 0;
  while (event->pending > 0) emulation.run_one(event->stream);
  return cudaSuccess;
}
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = emulation.capturing && stream == emulation.captured_stream
                ? cudaStreamCaptureStatusActive
                : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed };
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  const bool relax = *mode == cudaStreamCaptureModeRelaxed;
  *mode = emulation.relaxed ? cudaStreamCaptureModeRelaxed : cudaStreamCaptureModeGlobal;
  emulation.relaxed = relax;
  return cudaSuccess;
}

// Launches.

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (config->gridDim.x == 0 || config->gridDim.x > 2147483647u) {
    return cudaErrorInvalidConfiguration;
  }
  ++emulation.launches;
  emulation.launch_device = emulation.current_device;
  emulation.enqueue(config->stream, [=, grid = config->gridDim.x, block = config->blockDim.x] {
    gridDim.x = grid;
    for (blockIdx.x = grid; blockIdx.x-- > 0;) {
      emulation.threads.run_all(block, [&](unsigned thread) {
        threadIdx.x = thread;
        kernel(arguments...);
      });
    }
  });
  return cudaSuccess;
}

// What the tests reach through ctypes.

#define EMULATION_EXPORT extern "C" [[gnu::visibility("default"), gnu::used]] inline

EMULATION_EXPORT void emulation_synchronize() {
  for (auto& [stream, queue] : emulation.queues) {
    while (!queue.empty()) emulation.run_one(stream);
  }
}
// To be changed when nothing is queued.
EMULATION_EXPORT void emulation_set_lazy(int lazy) { emulation.lazy = lazy; }
EMULATION_EXPORT void emulation_begin_capture(cudaStream_t stream) {
  emulation.capturing = true;
  emulation.captured_stream = stream;
  emulation.graph.clear();
}
EMULATION_EXPORT void emulation_end_capture() { emulation.capturing = false; }
EMULATION_EXPORT void emulation_replay(cudaStream_t stream) {
  for (const Work& work : emulation.graph) emulation.enqueue(stream, work);
}
EMULATION_EXPORT void emulation_set_machine(int driver, int device_count, int capability) {
  emulation.driver = driver;
  emulation.device_count = device_count;
  emulation.capability = capability;
}
EMULATION_EXPORT int emulation_current_device() { return emulation.current_device; }
EMULATION_EXPORT int emulation_launch_device() { return emulation.launch_device; }
EMULATION_EXPORT std::int64_t emulation_launches() { return emulation.launches; }
EMULATION_EXPORT std::int64_t emulation_copies() { return emulation.copies; }
EMULATION_EXPORT std::int64_t emulation_allocations() { return emulation.allocations; }
EMULATION_EXPORT std::int64_t emulation_waits() { return emulation.waits; }
EMULATION_EXPORT std::int64_t emulation_accesses() { return emulation.accesses; }
EMULATION_EXPORT int emulation_relaxed() { return emulation.relaxed; }
