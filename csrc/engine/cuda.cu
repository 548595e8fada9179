// The CUDA engine's host side: which kernel serves what, and what a device can run. The kernels are
// in headers of their own; none of it knows what a rule computes.
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "../rules/all.h"
#include "cuda.h"
#include "cuda_coded.h"
#include "cuda_kernel.h"
#include "cuda_launch.h"
#include "cuda_norm.h"
#include "cuda_support.h"
#include "cuda_tuning.h"
#include "cuda_upload.h"
#include "storage.h"

namespace cuda_engine {
namespace {

template <typename Format_>
struct PlainKernels {
  using Format = Format_;
  static constexpr bool is_coded = false;
  static constexpr int state_bytes = 4;
  template <typename Rule, typename Table>
  static constexpr auto kernel() {
    return step_kernel<Rule, Format, Table>;
  }
};

template <typename Rule, typename Format>
void step_plain(const Batch& batch, int device, cudaStream_t stream) {
  Step<Rule, PlainKernels<Format>>{batch, device, stream}.enqueue();
}

template <typename Rule>
void step_of(const std::string& dtype, const Batch& batch, int device, cudaStream_t stream) {
  if (!batch.is_plain()) return step_coded<Rule>(dtype, batch, device, stream);
  if (dtype == "float32") return step_plain<Rule, Float32>(batch, device, stream);
  if (dtype == "bfloat16") return step_plain<Rule, BFloat16>(batch, device, stream);
  if (dtype == "float16") return step_plain<Rule, Float16>(batch, device, stream);
  throw std::invalid_argument("the CUDA engine serves float32, bfloat16 and float16, got " + dtype);
}

// As TableByValue and TableByAddress, of gradients alone.
struct GradTableByValue {
  static constexpr int max_rows = (tuning.max_table_bytes - 2 * sizeof(void*)) / sizeof(GradRow);
  GradRow rows[max_rows];
  int num_rows;
};

struct GradTableByAddress {
  const GradRow* rows;
  int num_rows;
};

template <typename Format>
void sum_segments(const Grads& grads, double* partials, int device, cudaStream_t stream) {
  const int num_rows = static_cast<int>(grads.num_rows);
  const std::size_t bytes = grads.num_rows * sizeof(GradRow);
  if (num_rows <= GradTableByValue::max_rows) {
    GradTableByValue table;
    std::memcpy(table.rows, grads.rows, bytes);
    table.num_rows = num_rows;
    launch(segments_kernel<Format, GradTableByValue>, grads.num_segments, sum_threads, stream,
           table, partials);
  } else {
    upload({{grads.rows, bytes}}, 0, device, stream, [&](const std::byte* uploaded) {
      const GradTableByAddress table{reinterpret_cast<const GradRow*>(uploaded), num_rows};
      launch(segments_kernel<Format, GradTableByAddress>, grads.num_segments, sum_threads, stream,
             table, partials);
    });
  }
}

using SumSegments = void (*)(const Grads&, double*, int, cudaStream_t);

SumSegments sum_segments_of(const std::string& dtype) {
  if (dtype == "float32") return sum_segments<Float32>;
  if (dtype == "bfloat16") return sum_segments<BFloat16>;
  if (dtype == "float16") return sum_segments<Float16>;
  throw std::invalid_argument("the CUDA engine serves float32, bfloat16 and float16, got " + dtype);
}

// What one launch cannot count.
void check_sizes(std::int64_t units, const char* name, std::int64_t rows) {
  if (units <= INT_MAX && rows <= INT_MAX) return;
  throw std::invalid_argument(std::string("one launch serves at most 2147483647 ") + name +
                              " and rows, got " + std::to_string(units) + " and " +
                              std::to_string(rows) + ": split the batch");
}

// What was asked for, behind the words of an error that CUDA reported.
std::runtime_error in_context(const CudaError& error, const std::string& work, int device,
                              std::int64_t rows, std::int64_t units, const char* name) {
  return std::runtime_error(std::string(error.what()) + " (" + work + ", device " +
                            std::to_string(device) + ", " + std::to_string(rows) + " rows, " +
                            std::to_string(units) + " " + name + ")");
}

}  // namespace

void sum_squares(const std::string& dtype, const Grads& grads, double* partials, double* out,
                 int device, void* stream) {
  const auto sum = sum_segments_of(dtype);
  check_sizes(grads.num_segments, "segments", grads.num_rows);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  try {
    const DeviceGuard guard(device);
    if (grads.num_segments > 0) sum(grads, partials, device, cuda_stream);
    launch(total_kernel, 1, sum_threads, cuda_stream, partials, grads.num_segments, out);
  } catch (const CudaError& error) {
    throw in_context(error, "sum of squares of " + dtype, device, grads.num_rows,
                     grads.num_segments, "segments");
  }
}

void step(const std::string& rule, const std::string& dtype, const Batch& batch, int device,
          void* stream) {
  if (batch.num_rows == 0 || (batch.num_chunks == 0 && batch.counts == nullptr)) return;
  check_sizes(batch.num_chunks, "chunks", batch.num_rows);
  std::string rules;
  try {
#define STEP_IF_NAMED(Rule)                                                               \
  if (rule == Rule<float>::name) {                                                        \
    return step_of<Rule<float>>(dtype, batch, device, static_cast<cudaStream_t>(stream)); \
  }                                                                                       \
  rules += std::string(" ") + Rule<float>::name;
    FOR_EACH_RULE(STEP_IF_NAMED)
#undef STEP_IF_NAMED
  } catch (const CudaError& error) {
    const std::string formats =
        batch.is_plain() ? "" : ", " + batch.state_format + ", " + batch.weight_format;
    throw in_context(error, rule + " on " + dtype + formats, device, batch.num_rows,
                     batch.num_chunks, "chunks");
  }
  throw std::invalid_argument("the CUDA engine has the rules" + rules + ", got " + rule);
}

std::int64_t chunk_size() { return tuning.chunk_size; }

int runtime_version() { return CUDART_VERSION; }

std::vector<int> architectures() {
  std::vector<int> numbers = {__CUDA_ARCH_LIST__};  // 750, 800, ...
  for (int& number : numbers) number /= 10;
  return numbers;
}

std::optional<std::string> why_unusable(int device) {
  const auto version = [](int v) {
    return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10);
  };
  int driver = 0;
  int count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    return "no NVIDIA driver found: install one";
  }
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    cudaGetLastError();
    return describe(status) + " (the driver serves CUDA " + version(driver) +
           ", this build needs CUDA " + version(CUDART_VERSION) + ")";
  }
  if (device < 0 || device >= count) {
    return "there is no device " + std::to_string(device) + ", the driver shows " +
           std::to_string(count);
  }
  int major = 0;
  int minor = 0;
  for (const auto& [number, attribute] : {std::pair(&major, cudaDevAttrComputeCapabilityMajor),
                                          std::pair(&minor, cudaDevAttrComputeCapabilityMinor)}) {
    if (const cudaError_t status = cudaDeviceGetAttribute(number, attribute, device);
        status != cudaSuccess) {
      cudaGetLastError();
      return describe(status) + ", while asking for the compute capability";
    }
  }
  // Machine code serves its own generation from its number on, PTX of the newest all later devices.
  const int capability = major * 10 + minor;
  const std::vector<int> built_for = architectures();
  bool served = capability >= *std::max_element(built_for.begin(), built_for.end());
  for (const int built : built_for) served |= built / 10 == major && built <= capability;
  if (!served) {
    const std::string number = std::to_string(capability);
    return "this build has no machine code for device " + std::to_string(device) + ", an sm_" +
           number + ": build with " + number + " in ADAMOD_CUDA_ARCHS";
  }
  return std::nullopt;
}

}  // namespace cuda_engine
