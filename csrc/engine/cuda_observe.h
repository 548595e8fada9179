// The kernel that looks at a step just done: what observed.h tells, of every segment.
//
// It is not on the path of most steps, so one kernel serves all dtypes and formats, with branches
// that all threads take alike: a kernel for each would be compiled for every architecture.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "../rules/observation.h"
#include "codes.h"
#include "cuda_memory.h"
#include "cuda_packing.h"
#include "cuda_tuning.h"
#include "observed.h"
#include "row.h"
#include "storage.h"

namespace cuda_engine {

enum class GradFormat { float32, bfloat16, float16 };

template <typename Format>
constexpr GradFormat grad_format() {
  if (std::is_same_v<Format, BFloat16>) return GradFormat::bfloat16;
  return std::is_same_v<Format, Float16> ? GradFormat::float16 : GradFormat::float32;
}

__device__ __forceinline__ float grad_at(const void* grad, std::int64_t i, GradFormat format) {
  if (format == GradFormat::float32)
    return load<1>(static_cast<const float*>(grad) + i).elements[0];
  const std::uint16_t half = load<1>(static_cast<const std::uint16_t*>(grad) + i).elements[0];
  return format == GradFormat::bfloat16 ? BFloat16::load(half) : Float16::load(half);
}

// How an element's states are read; `bytes` are those of one in memory.
template <typename Rule, typename = std::make_index_sequence<std::size_t{Rule::num_states}>>
struct States;

template <typename Rule, std::size_t... k>
struct States<Rule, std::index_sequence<k...>> {
  float of[sizeof...(k)];

  __device__ __forceinline__ void read(const Row& row, std::int64_t i) {
    ((of[k] = load<1>(static_cast<const float*>(row.state[k]) + i).elements[0]), ...);
  }

  __device__ __forceinline__ void read(const Row& row, const Coded& coded, std::int64_t i,
                                       int bytes) {
    if (bytes == 4) return read(row, i);
    const std::uint8_t* const exponents = coded.exponents + i / codes::block * sizeof...(k);
    bytes == 2 ? decode<2, std::uint16_t>(row, exponents, i)
               : decode<1, std::uint8_t>(row, exponents, i);
  }

  __device__ __forceinline__ Observation<float> observed(const typename Rule::Scalars& s) const {
    return Rule::observe(s, of[k]...);
  }

 private:
  template <int bytes, typename Code>
  __device__ __forceinline__ void decode(const Row& row, const std::uint8_t* exponents,
                                         std::int64_t i) {
    const std::uint32_t in[] = {load<1>(static_cast<const Code*>(row.state[k]) + i).elements[0]...};
    ((of[k] = codes::Code<Rule::values[k], bytes>::decode(
          Packing<Rule, bytes>::template first<k>(in), load<1>(exponents + k).elements[0])),
     ...);
  }
};

// What one lane has seen; without a constructor, which shared memory does not run.
struct Lane {
  static constexpr float infinity = std::numeric_limits<float>::infinity();

  double rate_sum, bounded_rate_sum, grad_square_sum, update_square_sum;
  float rate_min, rate_max, bounded_rate_min, bounded_rate_max;
  int bounded, dead, nonfinite;

  __device__ __forceinline__ static Lane empty() {
    return {0, 0, 0, 0, infinity, -infinity, infinity, -infinity, 0, 0, 0};
  }

  // Whether the element counts; histograms are for all lanes.
  __device__ __forceinline__ bool add(float grad, const Observation<float>& seen) {
    if (!(std::fabs(grad) < infinity && std::fabs(seen.update) < infinity)) {
      ++nonfinite;
      return false;
    }
    rate_sum += seen.rate;
    bounded_rate_sum += seen.bounded_rate;
    grad_square_sum += static_cast<double>(grad) * grad;
    update_square_sum += static_cast<double>(seen.update) * seen.update;
    rate_min = min(rate_min, seen.rate);
    rate_max = max(rate_max, seen.rate);
    bounded_rate_min = min(bounded_rate_min, seen.bounded_rate);
    bounded_rate_max = max(bounded_rate_max, seen.bounded_rate);
    bounded += seen.bounded_rate < seen.rate;
    dead += seen.activity == 0;
    return true;
  }

  __device__ __forceinline__ void add(const Lane& other) {
    rate_sum += other.rate_sum;
    bounded_rate_sum += other.bounded_rate_sum;
    grad_square_sum += other.grad_square_sum;
    update_square_sum += other.update_square_sum;
    rate_min = min(rate_min, other.rate_min);
    rate_max = max(rate_max, other.rate_max);
    bounded_rate_min = min(bounded_rate_min, other.bounded_rate_min);
    bounded_rate_max = max(bounded_rate_max, other.bounded_rate_max);
    bounded += other.bounded;
    dead += other.dead;
    nonfinite += other.nonfinite;
  }
};

// Looks at `count` elements of a row from `begin` on: a segment. To be called by all threads of a
// block.
template <typename Rule, typename Read>
__device__ __forceinline__ void observe_segment(const typename Rule::Scalars& scalars,
                                                const Read& read, std::int64_t begin, int count,
                                                Observed& to) {
  __shared__ int rate_histogram[histogram_bins], bounded_rate_histogram[histogram_bins];
  __shared__ Lane lanes[observed_lanes];
  const int own = threadIdx.x;
  if (own < histogram_bins) rate_histogram[own] = bounded_rate_histogram[own] = 0;
  __syncthreads();

  Lane lane = Lane::empty();
#pragma unroll 4
  for (int i = own; i < count; i += observed_lanes) {
    float grad;
    const Observation<float> seen = read(begin + i, grad);
    if (lane.add(grad, seen)) {
      atomicAdd(&rate_histogram[histogram_bin(seen.rate)], 1);
      atomicAdd(&bounded_rate_histogram[histogram_bin(seen.bounded_rate)], 1);
    }
  }
  lanes[own] = lane;
  for (int half = observed_lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (own < half) lanes[own].add(lanes[own + half]);
  }
  if (own == 0) {
    const Lane& all = lanes[0];
    to.step = scalars.step;
    to.rate_sum = all.rate_sum;
    to.bounded_rate_sum = all.bounded_rate_sum;
    to.grad_square_sum = all.grad_square_sum;
    to.update_square_sum = all.update_square_sum;
    to.rate_min = all.rate_min;
    to.rate_max = all.rate_max;
    to.bounded_rate_min = all.bounded_rate_min;
    to.bounded_rate_max = all.bounded_rate_max;
    to.bounded = all.bounded;
    to.dead = all.dead;
    to.nonfinite = all.nonfinite;
  }
  if (own < histogram_bins) {
    to.rate_histogram[own] = rate_histogram[own];
    to.bounded_rate_histogram[own] = bounded_rate_histogram[own];
  }
  __syncthreads();  // before what is shared serves the next segment
}

// A block for each chunk of the table, which looks at the segments that begin there.
template <typename Rule, typename Table>
__global__ void __launch_bounds__(observed_lanes)
    observe_kernel(const __grid_constant__ Table table, Observed* observed, GradFormat format,
                   int state_bytes) {
  const Control control = control_at(table.control);
  if (control.skip != 0) return;
  const int index = row_of(table, blockIdx.x);
  const Row row = table.rows[index];
  const typename Rule::Scalars scalars = table.scalars[row.scalars];
  const auto read = [&](std::int64_t i, float& grad) {
    States<Rule> states;
    if constexpr (Table::is_coded) {
      states.read(row, table.coded[index], i, state_bytes);
    } else {
      states.read(row, i);
    }
    grad = grad_at(row.grad, i, format) * control.grad_scale;
    return states.observed(scalars);
  };

  const std::int64_t chunk_begin = (blockIdx.x - row.first_chunk) * tuning.chunk_size;
  const std::int64_t chunk_end = min(chunk_begin + tuning.chunk_size, row.numel);
  std::int64_t segment = (chunk_begin + segment_size - 1) / segment_size;
  for (; segment * segment_size < chunk_end; ++segment) {
    const std::int64_t begin = segment * segment_size;
    const std::int64_t slot = first_observed(row, index, tuning.chunk_size) + segment;
    const auto count = static_cast<int>(min(segment_size, row.numel - begin));
    observe_segment<Rule>(scalars, read, begin, count, observed[slot]);
  }
}

}  // namespace cuda_engine
