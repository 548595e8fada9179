// The CPU engine's pass over gradients alone: the sum of their squares.
#include <algorithm>
#include <atomic>
#include <cstddef>

#include "cpu.h"
#include "cpu_targets.h"
#include "float_environment.h"
#include "storage.h"
#include "threads.h"

namespace cpu {
namespace {

// Segments that a thread claims at a time.
constexpr std::int64_t claim_size = 4;

// The sum of all lanes, which are changed.
HOST_DEVICE double halved(double* lanes) {
  for (int half = segment_lanes / 2; half > 0; half /= 2) {
#pragma omp simd
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

template <class Format>
HOST_DEVICE void add_squares(const typename Format::storage* grad, std::int64_t count,
                             double* lanes) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) {
    const double value = Format::load(grad[i]);
    lanes[i] += value * value;
  }
}

// The sums of segments [begin, end) of the table, the first of them in `row`.
template <class Format>
HOST_DEVICE void sum_segments(const GradRow* row, std::int64_t begin, std::int64_t end,
                              double* sums) {
  for (std::int64_t segment = begin; segment < end; ++segment) {
    while ((segment - row->first_segment) * segment_size >= row->numel) ++row;
    const std::int64_t start = (segment - row->first_segment) * segment_size;
    const auto* grad = static_cast<const typename Format::storage*>(row->grad) + start;
    const std::int64_t count = std::min(segment_size, row->numel - start);
    alignas(64) double lanes[segment_lanes] = {};
    for (std::int64_t turn = 0; turn < count; turn += segment_lanes) {
      add_squares<Format>(grad + turn, std::min<std::int64_t>(segment_lanes, count - turn), lanes);
    }
    sums[segment] = halved(lanes);
  }
}

using Sums = void (*)(const GradRow*, std::int64_t, std::int64_t, double*);

template <class Format>
void sums_baseline(const GradRow* row, std::int64_t begin, std::int64_t end, double* sums) {
  sum_segments<Format>(row, begin, end, sums);
}

#ifdef __x86_64__
template <class Format>
CPU_AVX2 void sums_avx2(const GradRow* row, std::int64_t begin, std::int64_t end, double* sums) {
  sum_segments<Format>(row, begin, end, sums);
}

template <class Format>
CPU_AVX512 void sums_avx512(const GradRow* row, std::int64_t begin, std::int64_t end,
                            double* sums) {
  sum_segments<Format>(row, begin, end, sums);
}
#endif

template <class Format>
Sums sums_for(const std::string& instruction_set) {
#ifdef __x86_64__
  if (instruction_set == "avx512") return sums_avx512<Format>;
  if (instruction_set == "avx2") return sums_avx2<Format>;
#endif
  return sums_baseline<Format>;
}

Sums sums_for(const std::string& dtype, const std::string& instruction_set) {
  if (dtype == "float32") return sums_for<Float32>(instruction_set);
  if (dtype == "bfloat16") return sums_for<BFloat16>(instruction_set);
  if (dtype == "float16") return sums_for<Float16>(instruction_set);
  if (dtype == "float64") return sums_for<Float64>(instruction_set);
  throw no_dtype(dtype);
}

}  // namespace

double sum_squares(const std::string& dtype, const GradRow* rows, std::int64_t num_rows,
                   std::int64_t num_segments, int threads, const std::string& instruction_set) {
  check_supported(instruction_set);
  const Sums sums_of = sums_for(dtype, instruction_set);
  std::vector<double> sums(static_cast<std::size_t>(num_segments));
  std::atomic<std::int64_t> next_claim{0};
  const auto task = [&] {
    for (;;) {
      const std::int64_t begin = next_claim.fetch_add(claim_size, std::memory_order_relaxed);
      if (begin >= num_segments) return;
      const GradRow* row = std::upper_bound(
          rows, rows + num_rows, begin,
          [](std::int64_t segment, const GradRow& r) { return segment < r.first_segment; });
      sums_of(row - 1, begin, std::min(begin + claim_size, num_segments), sums.data());
    }
  };
  run_on_threads(static_cast<int>(std::clamp<std::int64_t>(num_segments / claim_size, 1, threads)),
                 task);

  double total = 0;
  in_float_environment([&] {
    double lanes[segment_lanes] = {};
    for (std::size_t i = 0; i < sums.size(); ++i) lanes[i % segment_lanes] += sums[i];
    total = halved(lanes);
  });
  return total;
}

}  // namespace cpu
