// The CPU engine's look at a step that was just done: what observed.h tells, of every segment.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "../rules/all.h"
#include "cpu.h"
#include "cpu_block.h"
#include "cpu_targets.h"
#include "observed.h"
#include "storage.h"
#include "threads.h"

namespace cpu {
namespace {

constexpr int lanes = observed_lanes;
static_assert(lanes % block == 0, "exponents are of whole blocks");

// As many elements as there are lanes, in the type that a step computes in.
template <class Rule>
struct Tile {
  using T = decltype(Rule::Scalars::eps);
  static constexpr int num_states = Rule::num_states;
  alignas(64) T grad[lanes];
  alignas(64) T decoded[num_states][lanes];
  const T* states[num_states];
};

template <class Rule_, class Format_>
struct PlainReader {
  using Rule = Rule_;
  using Format = Format_;

  HOST_DEVICE static void read_states(const Batch& batch, std::int64_t index, std::int64_t i, int,
                                      Tile<Rule>& tile) {
    for (int k = 0; k < Rule::num_states; ++k) {
      tile.states[k] = static_cast<const typename Format::compute*>(batch.rows[index].state[k]) + i;
    }
  }
};

template <class Rule_, class Format_, int bytes>
struct CodedReader {
  using Rule = Rule_;
  using Format = Format_;
  using E = Elements<Rule, Format, bytes, WeightFormat::plain>;

  HOST_DEVICE static void read_states(const Batch& batch, std::int64_t index, std::int64_t i,
                                      int count, Tile<Rule>& tile) {
    const E e(batch.rows[index], batch.coded[index], i);
    for (int first = 0; first < count; first += block) {
      decode(e, first, std::min(first + block, count), tile,
             std::make_integer_sequence<int, Rule::num_states>());
    }
  }

 private:
  template <int... k>
  HOST_DEVICE static void decode(const E& e, int first, int end, Tile<Rule>& tile,
                                 std::integer_sequence<int, k...>) {
    const std::int32_t exponents[] = {e.exponents[first / block * Rule::num_states + k]...};
#pragma omp simd
    for (int j = first; j < end; ++j) {
      ((tile.decoded[k][j] =
            E::template CodeOf<k, codes::Code>::decode(e.template code_at<k>(j), exponents[k])),
       ...);
    }
    ((tile.states[k] = tile.decoded[k]), ...);
  }
};

// What the lanes have seen of a segment so far.
template <class Rule>
class Observer {
  using T = typename Tile<Rule>::T;

 public:
  HOST_DEVICE Observer() {
    std::fill_n(rate_min_, lanes, infinity);
    std::fill_n(bounded_rate_min_, lanes, infinity);
    std::fill_n(rate_max_, lanes, -infinity);
    std::fill_n(bounded_rate_max_, lanes, -infinity);
  }

  HOST_DEVICE void add(const typename Rule::Scalars& scalars, const Tile<Rule>& tile, int count) {
    add(scalars, tile, count, std::make_integer_sequence<int, Rule::num_states>());
  }

  HOST_DEVICE void write(double step, Observed& to) const {
    to = Observed{};
    to.step = step;
    to.rate_sum = halved(rate_sum_);
    to.bounded_rate_sum = halved(bounded_rate_sum_);
    to.grad_square_sum = halved(grad_square_sum_);
    to.update_square_sum = halved(update_square_sum_);
    to.rate_min = least(rate_min_);
    to.rate_max = most(rate_max_);
    to.bounded_rate_min = least(bounded_rate_min_);
    to.bounded_rate_max = most(bounded_rate_max_);
    to.bounded = bounded_;
    to.dead = dead_;
    to.nonfinite = nonfinite_;
    for (int copy = 0; copy < copies; ++copy) {
      for (int bin = 0; bin < histogram_bins; ++bin) {
        to.rate_histogram[bin] += rate_histogram_[copy * copy_size + bin];
        to.bounded_rate_histogram[bin] += bounded_rate_histogram_[copy * copy_size + bin];
      }
    }
  }

 private:
  static constexpr T infinity = std::numeric_limits<T>::infinity();
  // Of a histogram: a count that follows another of its bin waits for it.
  static constexpr int copies = 4;
  static constexpr int no_bin = histogram_bins;
  static constexpr int copy_size = histogram_bins + 1;

  template <int... k>
  HOST_DEVICE void add(const typename Rule::Scalars& scalars, const Tile<Rule>& tile, int count,
                       std::integer_sequence<int, k...>) {
    // Loops of few words each, since those are what compilers vectorise.
    const T* const states[] = {tile.states[k]...};
    alignas(64) T rates[lanes], bounded_rates[lanes], grads[lanes], updates[lanes];
    alignas(64) std::int32_t is_finite[lanes], is_bounded[lanes], is_dead[lanes];
    alignas(64) std::int32_t bins[lanes], bounded_bins[lanes];
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const Observation<T> seen = Rule::observe(scalars, states[k][i]...);
      const T zero = tile.grad[i] * 0 + seen.update * 0;  // or NaN
      is_finite[i] = zero == 0 ? 1 : 0;
      is_bounded[i] = seen.bounded_rate < seen.rate ? 1 : 0;
      is_dead[i] = seen.activity == 0 ? 1 : 0;
      rates[i] = seen.rate;
      bounded_rates[i] = seen.bounded_rate;
      updates[i] = zero == 0 ? seen.update : 0;
      grads[i] = zero == 0 ? tile.grad[i] : 0;
    }
    std::int32_t finite = 0, bounded = 0, dead = 0;
#pragma omp simd reduction(+ : finite, bounded, dead)
    for (int i = 0; i < count; ++i) {
      finite += is_finite[i];
      bounded += is_finite[i] & is_bounded[i];
      dead += is_finite[i] & is_dead[i];
    }
    find_bins(bins, rates, is_finite, count);
    find_bins(bounded_bins, bounded_rates, is_finite, count);
    take_in(rate_min_, rate_max_, rates, is_finite, count);
    take_in(bounded_rate_min_, bounded_rate_max_, bounded_rates, is_finite, count);
    bounded_ += bounded;
    dead_ += dead;
    nonfinite_ += count - finite;
    add_to(rate_sum_, rates, count);
    add_to(bounded_rate_sum_, bounded_rates, count);
    add_squares_to(grad_square_sum_, grads, count);
    add_squares_to(update_square_sum_, updates, count);
    for (int i = 0; i < count; ++i) {
      ++rate_histogram_[bins[i]];
      ++bounded_rate_histogram_[bounded_bins[i]];
    }
  }

  HOST_DEVICE static void find_bins(std::int32_t* bins, const T* rates,
                                    const std::int32_t* is_finite, int count) {
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const std::int32_t bin = histogram_bin(static_cast<float>(rates[i]));
      bins[i] = (is_finite[i] != 0 ? bin : no_bin) + i % copies * copy_size;
    }
  }

  // Into the extremes; what is not finite becomes 0.
  HOST_DEVICE static void take_in(T* min, T* max, T* rates, const std::int32_t* is_finite,
                                  int count) {
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const T low = is_finite[i] != 0 ? rates[i] : infinity;
      const T high = is_finite[i] != 0 ? rates[i] : -infinity;
      min[i] = low < min[i] ? low : min[i];
      max[i] = high > max[i] ? high : max[i];
      rates[i] = is_finite[i] != 0 ? rates[i] : 0;
    }
  }

  HOST_DEVICE static void add_to(double* sums, const T* values, int count) {
#pragma omp simd
    for (int i = 0; i < count; ++i) sums[i] += static_cast<double>(values[i]);
  }

  HOST_DEVICE static void add_squares_to(double* sums, const T* values, int count) {
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const double value = values[i];
      sums[i] += value * value;
    }
  }

  // Of all lanes; std::min_element and std::max_element take one after the other.
  HOST_DEVICE static T least(const T* of) {
    T found = infinity;
#pragma omp simd reduction(min : found)
    for (int i = 0; i < lanes; ++i) found = of[i] < found ? of[i] : found;
    return found;
  }

  HOST_DEVICE static T most(const T* of) {
    T found = -infinity;
#pragma omp simd reduction(max : found)
    for (int i = 0; i < lanes; ++i) found = of[i] > found ? of[i] : found;
    return found;
  }

  // The sum of all lanes.
  HOST_DEVICE static double halved(const double* of) {
    double sums[lanes];
    std::copy_n(of, lanes, sums);
    for (int half = lanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
  }

  alignas(64) double rate_sum_[lanes] = {}, bounded_rate_sum_[lanes] = {};
  alignas(64) double grad_square_sum_[lanes] = {}, update_square_sum_[lanes] = {};
  alignas(64) T rate_min_[lanes], rate_max_[lanes], bounded_rate_min_[lanes],
      bounded_rate_max_[lanes];
  std::int64_t bounded_ = 0, dead_ = 0, nonfinite_ = 0;
  std::int32_t rate_histogram_[copies * copy_size] = {};
  std::int32_t bounded_rate_histogram_[copies * copy_size] = {};
};

// Looks at `count` elements of a row from element `begin` on: a segment.
template <class Reader>
HOST_DEVICE void observe_segment(const Batch& batch, std::int64_t index, std::int64_t begin,
                                 std::int64_t count, Observed& to) {
  using Rule = typename Reader::Rule;
  using Format = typename Reader::Format;
  const Row& row = batch.rows[index];
  const auto scalars = static_cast<const typename Rule::Scalars*>(batch.scalars)[row.scalars];
  const auto* grad = static_cast<const typename Format::storage*>(row.grad);
  const auto grad_scale = static_cast<typename Format::compute>(batch.grad_scale);
  Observer<Rule> observer;
  Tile<Rule> tile;
  for (std::int64_t i = begin; i < begin + count; i += lanes) {
    const auto seen = static_cast<int>(std::min<std::int64_t>(lanes, begin + count - i));
    for (int j = 0; j < seen; ++j) tile.grad[j] = Format::load(grad[i + j]) * grad_scale;
    Reader::read_states(batch, index, i, seen, tile);
    observer.add(scalars, tile, seen);
  }
  observer.write(scalars.step, to);
}

using Observe = void (*)(const Batch&, std::int64_t index, std::int64_t begin, std::int64_t count,
                         Observed& to);

template <class Reader>
void observe_baseline(const Batch& batch, std::int64_t index, std::int64_t begin,
                      std::int64_t count, Observed& to) {
  observe_segment<Reader>(batch, index, begin, count, to);
}

#ifdef __x86_64__
template <class Reader>
CPU_AVX2 void observe_avx2(const Batch& batch, std::int64_t index, std::int64_t begin,
                           std::int64_t count, Observed& to) {
  observe_segment<Reader>(batch, index, begin, count, to);
}

template <class Reader>
CPU_AVX512 void observe_avx512(const Batch& batch, std::int64_t index, std::int64_t begin,
                               std::int64_t count, Observed& to) {
  observe_segment<Reader>(batch, index, begin, count, to);
}
#endif

template <class Reader>
Observe observe_for(const std::string& instruction_set) {
#ifdef __x86_64__
  if (instruction_set == "avx512") return observe_avx512<Reader>;
  if (instruction_set == "avx2") return observe_avx2<Reader>;
#endif
  return observe_baseline<Reader>;
}

template <class Rule, class Format>
Observe observe_for(const Formats& formats, const std::string& instruction_set) {
  switch (formats.states) {
    case StateFormat::in_8_bits:
      return observe_for<CodedReader<Rule, Format, 1>>(instruction_set);
    case StateFormat::in_16_bits:
      return observe_for<CodedReader<Rule, Format, 2>>(instruction_set);
    default:
      return observe_for<PlainReader<Rule, Format>>(instruction_set);
  }
}

template <template <typename> class Rule>
Observe observe_for(const std::string& dtype, const Formats& formats,
                    const std::string& instruction_set) {
  if (dtype == "float32") return observe_for<Rule<float>, Float32>(formats, instruction_set);
  if (dtype == "bfloat16") return observe_for<Rule<float>, BFloat16>(formats, instruction_set);
  if (dtype == "float16") return observe_for<Rule<float>, Float16>(formats, instruction_set);
  if (dtype == "float64") return observe_for<PlainReader<Rule<double>, Float64>>(instruction_set);
  throw no_dtype(dtype);
}

Observe observe_for(const std::string& rule, const std::string& dtype, const Formats& formats,
                    const std::string& instruction_set) {
#define RETURN_IF_NAMED(Rule) \
  if (rule == Rule<float>::name) return observe_for<Rule>(dtype, formats, instruction_set);
  FOR_EACH_RULE(RETURN_IF_NAMED)
#undef RETURN_IF_NAMED
  throw std::invalid_argument("the CPU engine has no rule named " + rule);
}

}  // namespace

void observe(const std::string& rule, const std::string& dtype, const Formats& formats,
             const Batch& batch, int threads, const std::string& instruction_set,
             Observed* observed) {
  check_supported(instruction_set);
  const Observe look = observe_for(rule, dtype, formats, instruction_set);
  std::atomic<std::int64_t> next{0};
  const Row* const rows = batch.rows;
  if (batch.num_rows == 0) return;
  const std::int64_t last = batch.num_rows - 1;
  const std::int64_t slots =
      first_observed(rows[last], last, chunk_size) + rows[last].numel / segment_size + 1;
  const auto task = [&] {
    for (;;) {
      const std::int64_t slot = next.fetch_add(1, std::memory_order_relaxed);
      if (slot >= slots) return;
      std::int64_t index = 0;  // the last row that begins at or before this slot
      for (std::int64_t end = batch.num_rows; end - index > 1;) {
        const std::int64_t middle = (index + end) / 2;
        (first_observed(rows[middle], middle, chunk_size) > slot ? end : index) = middle;
      }
      const std::int64_t begin =
          (slot - first_observed(rows[index], index, chunk_size)) * segment_size;
      const std::int64_t left = rows[index].numel - begin;
      if (left > 0) look(batch, index, begin, std::min(segment_size, left), observed[slot]);
    }
  };
  run_on_threads(static_cast<int>(std::clamp<std::int64_t>(slots / 4, 1, threads)), task);
}

}  // namespace cpu
