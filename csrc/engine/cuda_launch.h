// How a batch becomes launches: its table by value or by address, its scalars from the host or made
// on the device. None of it knows what a kernel does with a row.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda.h"
#include "cuda_observe.h"
#include "cuda_prepare.h"
#include "cuda_support.h"
#include "cuda_tuning.h"
#include "cuda_upload.h"
#include "row.h"

#if CUDART_VERSION < 12010
#error "kernel parameters of 32,764 bytes need CUDA 12.1 or later: update the toolkit"
#endif

namespace cuda_engine {

constexpr std::size_t max_parameter_bytes = 32764;

// What a table holds beside its rows where they are coded.
template <bool is_coded, int max_rows>
struct CodedByValue {};
template <int max_rows>
struct CodedByValue<true, max_rows> {
  Coded coded[max_rows];
};
template <bool is_coded>
struct CodedByAddress {};
template <>
struct CodedByAddress<true> {
  const Coded* coded;
};

template <typename Scalars, bool is_coded>
struct TableSizes {
  static constexpr int max_scalars = 32;
  static constexpr int row_bytes = sizeof(Row) + (is_coded ? sizeof(Coded) : 0);
  static constexpr int other_bytes = 4 * sizeof(void*);  // in the table, or beside it
  static constexpr int max_rows =
      (tuning.max_table_bytes - other_bytes - max_scalars * sizeof(Scalars)) / row_bytes;
};

// The table as a kernel parameter, in constant memory: no copy of ours, no allocation, and a
// captured graph keeps it.
template <typename Scalars, bool is_coded_>
struct TableByValue : CodedByValue<is_coded_, TableSizes<Scalars, is_coded_>::max_rows> {
  using Sizes = TableSizes<Scalars, is_coded_>;
  static constexpr bool is_coded = is_coded_;

  Row rows[Sizes::max_rows];
  Scalars scalars[Sizes::max_scalars];
  const Control* control;
  int num_rows;

  static bool holds(const Batch& batch) {
    return batch.num_rows <= Sizes::max_rows && batch.num_scalars <= Sizes::max_scalars;
  }
};

// The same for any number of rows, in device memory.
template <typename Scalars, bool is_coded_>
struct TableByAddress : CodedByAddress<is_coded_> {
  static constexpr bool is_coded = is_coded_;

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

// A step of a rule by the kernels that `Kernels` names, one for each kind of table.
template <typename Rule, typename Kernels>
struct Step {
  using Scalars = typename Rule::Scalars;
  static constexpr bool is_coded = Kernels::is_coded;
  using ByValue = TableByValue<Scalars, is_coded>;
  using ByAddress = TableByAddress<Scalars, is_coded>;

  const Batch& batch;
  int device;
  cudaStream_t stream;

  void enqueue() const {
    const DeviceGuard guard(device);
    if (batch.counts != nullptr) {
      enqueue_by_counts();
    } else if (ByValue::holds(batch)) {
      enqueue_by_value();
    } else {
      enqueue_by_address();
    }
  }

 private:
  std::size_t row_bytes() const { return batch.num_rows * sizeof(Row); }
  std::size_t coded_bytes() const { return is_coded ? batch.num_rows * sizeof(Coded) : 0; }

  template <typename Table>
  void launch_step(const Table& table) const {
    if (batch.num_chunks == 0) return;  // CUDA refuses an empty grid
    const auto kernel = Kernels::template kernel<Rule, Table>();
    launch(kernel, num_blocks(kernel, batch), tuning.block_threads, stream, table);
    if (batch.observed == nullptr) return;
    launch(observe_kernel<Rule, Table>, batch.num_chunks, observed_lanes, stream, table,
           batch.observed, grad_format<typename Kernels::Format>(), Kernels::state_bytes);
  }

  void enqueue_by_value() const {
    ByValue table;
    std::memcpy(table.rows, batch.rows, row_bytes());
    if constexpr (is_coded) std::memcpy(table.coded, batch.coded, coded_bytes());
    std::memcpy(table.scalars, batch.scalars, batch.num_scalars * sizeof(Scalars));
    table.control = batch.control;
    table.num_rows = static_cast<int>(batch.num_rows);
    launch_step(table);
  }

  // The rows lie at `uploaded`, what goes with them right behind.
  void launch_step_at(const std::byte* uploaded, const Scalars* scalars) const {
    ByAddress table;
    table.rows = reinterpret_cast<const Row*>(uploaded);
    if constexpr (is_coded) table.coded = reinterpret_cast<const Coded*>(uploaded + row_bytes());
    table.scalars = scalars;
    table.control = batch.control;
    table.num_rows = static_cast<int>(batch.num_rows);
    launch_step(table);
  }

  void enqueue_by_address() const {
    const std::size_t scalar_bytes = batch.num_scalars * sizeof(Scalars);
    upload({{batch.rows, row_bytes()}, {batch.coded, coded_bytes()}, {batch.scalars, scalar_bytes}},
           0, device, stream, [&](const std::byte* uploaded) {
             launch_step_at(uploaded, reinterpret_cast<const Scalars*>(uploaded + row_bytes() +
                                                                       coded_bytes()));
           });
  }

  void enqueue_by_counts() const {
    const std::size_t count_bytes = batch.num_rows * sizeof(Count);
    const std::size_t group_bytes = batch.num_groups * sizeof(Group);
    upload({{batch.rows, row_bytes()},
            {batch.coded, coded_bytes()},
            {batch.counts, count_bytes},
            {batch.groups, group_bytes}},
           batch.num_rows * sizeof(Scalars), device, stream, [&](std::byte* uploaded) {
             std::byte* const counts = uploaded + row_bytes() + coded_bytes();
             std::byte* const groups = counts + count_bytes;
             const auto scalars = reinterpret_cast<Scalars*>(groups + group_bytes);
             const Preparation<Rule> preparation{
                 reinterpret_cast<const Count*>(counts), reinterpret_cast<const Group*>(groups),
                 batch.control, scalars, static_cast<int>(batch.num_rows)};
             launch(prepare_kernel<Rule>, (batch.num_rows + prepare_threads - 1) / prepare_threads,
                    prepare_threads, stream, preparation);
             launch_step_at(uploaded, scalars);
           });
  }
};

}  // namespace cuda_engine
