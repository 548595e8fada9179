#include "cpu.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "../rules/all.h"
#include "../rules/step_element.h"
#include "cpu_span.h"
#include "cpu_targets.h"
#include "storage.h"
#include "threads.h"

namespace cpu {
namespace {

// Below so many elements a second thread takes longer to wake than to do its share.
constexpr std::int64_t least_per_thread = 1 << 16;

// Elements that a thread claims at a time: several claims a thread, so that one that is held up
// leaves little for the others to wait for; yet long ones, since memory likes long runs.
std::int64_t claim_size_for(std::int64_t total, int threads) {
  return std::clamp<std::int64_t>(total / (8 * threads), 1 << 15, 1 << 20);
}

template <class Rule, class Format, std::size_t... I>
HOST_DEVICE void update_tensor(const Row& row, const typename Rule::Scalars scalars,
                               const typename Format::compute grad_scale, std::int64_t begin,
                               std::int64_t end, std::index_sequence<I...>) {
  using Compute = typename Format::compute;
  auto* param = static_cast<typename Format::storage*>(row.param);
  auto* grad = static_cast<const typename Format::storage*>(row.grad);
  Compute* const states[] = {static_cast<Compute*>(row.state[I])...};
  // `scalars` is a copy, so that no store could change it and it stays in registers.
  // The pragma promises what the table guarantees: no stream overlaps another.
#pragma omp simd
  for (std::int64_t i = begin; i < end; ++i) {
    Compute p = Format::load(param[i]);
    Compute state[] = {states[I][i]...};
    step_element<Rule>(scalars, p, Format::load(grad[i]) * grad_scale, state[I]...);
    ((states[I][i] = state[I]), ...);
    param[i] = Format::store(p);
  }
}

// Updates elements [begin, end) of the batch, its tensors laid end to end.
template <class Rule, class Format>
HOST_DEVICE void update_span(const Batch& batch, const Row* row, std::int64_t begin,
                             std::int64_t end) {
  const auto* scalars = static_cast<const typename Rule::Scalars*>(batch.scalars);
  for (; begin < end; ++row) {
    const std::int64_t stop = std::min(end, row->first_chunk + row->numel);
    update_tensor<Rule, Format>(*row, scalars[row->scalars], batch.grad_scale,
                                begin - row->first_chunk, stop - row->first_chunk,
                                std::make_index_sequence<Rule::num_states>());
    begin = stop;
  }
}

// The same loop compiled for each instruction set.
template <class Rule, class Format>
void span_baseline(const Batch& batch, const Row* row, std::int64_t begin, std::int64_t end) {
  update_span<Rule, Format>(batch, row, begin, end);
}

#ifdef __x86_64__
template <class Rule, class Format>
CPU_AVX2 void span_avx2(const Batch& batch, const Row* row, std::int64_t begin, std::int64_t end) {
  update_span<Rule, Format>(batch, row, begin, end);
}

template <class Rule, class Format>
CPU_AVX512 void span_avx512(const Batch& batch, const Row* row, std::int64_t begin,
                            std::int64_t end) {
  update_span<Rule, Format>(batch, row, begin, end);
}
#endif

template <class Rule, class Format>
Span span_for(const std::string& instruction_set) {
#ifdef __x86_64__
  if (instruction_set == "avx512") return span_avx512<Rule, Format>;
  if (instruction_set == "avx2") return span_avx2<Rule, Format>;
#endif
  return span_baseline<Rule, Format>;
}

template <template <typename> class Rule>
Span span_for(const std::string& dtype, const std::string& instruction_set) {
  if (dtype == "float32") return span_for<Rule<float>, Float32>(instruction_set);
  if (dtype == "bfloat16") return span_for<Rule<float>, BFloat16>(instruction_set);
  if (dtype == "float16") return span_for<Rule<float>, Float16>(instruction_set);
  if (dtype == "float64") return span_for<Rule<double>, Float64>(instruction_set);
  throw no_dtype(dtype);
}

Span span_for(const std::string& rule, const std::string& dtype,
              const std::string& instruction_set) {
#define RETURN_IF_NAMED(Rule) \
  if (rule == Rule<float>::name) return span_for<Rule>(dtype, instruction_set);
  FOR_EACH_RULE(RETURN_IF_NAMED)
#undef RETURN_IF_NAMED
  throw std::invalid_argument("the CPU engine has no rule named " + rule);
}

}  // namespace

void check_supported(const std::string& instruction_set) {
  static const std::vector<std::string> supported = instruction_sets();
  if (std::find(supported.begin(), supported.end(), instruction_set) == supported.end()) {
    throw std::invalid_argument("this processor does not run instruction set " + instruction_set);
  }
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names = {"baseline"};
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) names.push_back("avx2");
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    names.push_back("avx512");
  }
#endif
  return names;
}

void step(const std::string& rule, const std::string& dtype, const Formats& formats,
          const Batch& batch, int threads, const std::string& instruction_set) {
  check_supported(instruction_set);
  const Span span = formats.are_plain() ? span_for(rule, dtype, instruction_set)
                                        : coded_span_for(rule, dtype, formats, instruction_set);
  if (batch.num_rows == 0) return;

  const Row& last = batch.rows[batch.num_rows - 1];
  const std::int64_t total = last.first_chunk + last.numel;
  threads = static_cast<int>(std::clamp<std::int64_t>(total / least_per_thread, 1, threads));
  const std::int64_t claim_size = claim_size_for(total, threads);
  std::atomic<std::int64_t> next_claim{0};
  const auto task = [&] {
    for (;;) {
      const std::int64_t begin = next_claim.fetch_add(1, std::memory_order_relaxed) * claim_size;
      if (begin >= total) return;
      const Row* row = std::upper_bound(
          batch.rows, batch.rows + batch.num_rows, begin,
          [](std::int64_t element, const Row& r) { return element < r.first_chunk; });
      span(batch, row - 1, begin, std::min(begin + claim_size, total));
    }
  };
  run_on_threads(threads, task);
}

}  // namespace cpu
