// The CUDA engine's host side: one launch for a whole batch, its tensor table by value or by
// address. The kernels are in headers of their own; none of it knows what a rule computes.
#include <cuda_runtime.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "../rules/all.h"
#include "cuda.h"
#include "cuda_kernel.h"
#include "cuda_norm.h"
#include "cuda_prepare.h"
#include "cuda_support.h"
#include "cuda_tuning.h"
#include "cuda_upload.h"
#include "storage.h"

#if CUDART_VERSION < 12010
#error "kernel parameters of 32,764 bytes need CUDA 12.1 or later: update the toolkit"
#endif

namespace cuda_engine {
namespace {

constexpr std::size_t max_parameter_bytes = 32764;

// The table as a kernel parameter, in constant memory: no copy of ours, no allocation, and a
// captured graph keeps it.
template <typename Scalars>
struct TableByValue {
  static constexpr int max_scalars = 32;
  static constexpr int max_rows =
      (tuning.max_table_bytes - 2 * sizeof(void*) - max_scalars * sizeof(Scalars)) / sizeof(Row);

  Row rows[max_rows];
  Scalars scalars[max_scalars];
  const Control* control;
  int num_rows;

  static bool holds(const Batch& batch) {
    return batch.num_rows <= max_rows && batch.num_scalars <= max_scalars;
  }
};

// The same for any number of rows, in device memory.
template <typename Scalars>
struct TableByAddress {
  const Row* rows;
  const Scalars* scalars;
  const Control* control;
  int num_rows;
};

// One a chunk, or as many as the current device runs at once.
template <typename Kernel>
std::int64_t num_blocks(Kernel kernel, const Batch& batch) {
  if constexpr (tuning.persistent) {
    int device = 0;
    int multiprocessors = 0;
    int resident = 0;
    check(cudaGetDevice(&device), "asking for the current device");
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
          "counting the multiprocessors");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, tuning.block_threads, 0),
          "counting the blocks that run at once");
    return std::min<std::int64_t>(batch.num_chunks, multiprocessors * resident);
  } else {
    return batch.num_chunks;
  }
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), std::int64_t blocks, int threads, cudaStream_t stream,
            const Arguments&... arguments) {
  static_assert((sizeof(Parameters) + ...) <= max_parameter_bytes, "parameters of a kernel");
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launching the kernel");
}

template <typename Rule, typename Format, typename Table>
void launch_step(const Table& table, const Batch& batch, cudaStream_t stream) {
  if (batch.num_chunks == 0) return;  // CUDA refuses an empty grid
  const auto kernel = step_kernel<Rule, Format, Table>;
  launch(kernel, num_blocks(kernel, batch), tuning.block_threads, stream, table);
}

template <typename Rule, typename Format>
void step_by_value(const Batch& batch, cudaStream_t stream) {
  TableByValue<typename Rule::Scalars> table;
  std::memcpy(table.rows, batch.rows, batch.num_rows * sizeof(Row));
  std::memcpy(table.scalars, batch.scalars, batch.num_scalars * sizeof(typename Rule::Scalars));
  table.control = batch.control;
  table.num_rows = static_cast<int>(batch.num_rows);
  launch_step<Rule, Format>(table, batch, stream);
}

template <typename Rule, typename Format>
void step_by_address(const Batch& batch, int device, cudaStream_t stream) {
  using Scalars = typename Rule::Scalars;
  const std::size_t row_bytes = batch.num_rows * sizeof(Row);
  const std::size_t scalar_bytes = batch.num_scalars * sizeof(Scalars);
  upload({{batch.rows, row_bytes}, {batch.scalars, scalar_bytes}}, 0, device, stream,
         [&](const std::byte* uploaded) {
           const TableByAddress<Scalars> table{
               reinterpret_cast<const Row*>(uploaded),
               reinterpret_cast<const Scalars*>(uploaded + row_bytes), batch.control,
               static_cast<int>(batch.num_rows)};
           launch_step<Rule, Format>(table, batch, stream);
         });
}

template <typename Rule, typename Format>
void step_by_counts(const Batch& batch, int device, cudaStream_t stream) {
  using Scalars = typename Rule::Scalars;
  const std::size_t row_bytes = batch.num_rows * sizeof(Row);
  const std::size_t count_bytes = batch.num_rows * sizeof(Count);
  const std::size_t group_bytes = batch.num_groups * sizeof(Group);
  upload({{batch.rows, row_bytes}, {batch.counts, count_bytes}, {batch.groups, group_bytes}},
         batch.num_rows * sizeof(Scalars), device, stream, [&](std::byte* uploaded) {
           const int num_rows = static_cast<int>(batch.num_rows);
           std::byte* const counts = uploaded + row_bytes;
           std::byte* const groups = counts + count_bytes;
           const auto scalars = reinterpret_cast<Scalars*>(groups + group_bytes);
           const Preparation<Rule> preparation{reinterpret_cast<const Count*>(counts),
                                               reinterpret_cast<const Group*>(groups),
                                               batch.control, scalars, num_rows};
           launch(prepare_kernel<Rule>, (batch.num_rows + prepare_threads - 1) / prepare_threads,
                  prepare_threads, stream, preparation);
           const TableByAddress<Scalars> table{reinterpret_cast<const Row*>(uploaded), scalars,
                                               batch.control, num_rows};
           launch_step<Rule, Format>(table, batch, stream);
         });
}

template <typename Rule, typename Format>
void step_as(const Batch& batch, int device, cudaStream_t stream) {
  const DeviceGuard guard(device);
  if (batch.counts != nullptr) {
    step_by_counts<Rule, Format>(batch, device, stream);
  } else if (TableByValue<typename Rule::Scalars>::holds(batch)) {
    step_by_value<Rule, Format>(batch, stream);
  } else {
    step_by_address<Rule, Format>(batch, device, stream);
  }
}

template <typename Rule>
void step_of(const std::string& dtype, const Batch& batch, int device, cudaStream_t stream) {
  if (dtype == "float32") return step_as<Rule, Float32>(batch, device, stream);
  if (dtype == "bfloat16") return step_as<Rule, BFloat16>(batch, device, stream);
  if (dtype == "float16") return step_as<Rule, Float16>(batch, device, stream);
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
    throw in_context(error, rule + " on " + dtype, device, batch.num_rows, batch.num_chunks,
                     "chunks");
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
