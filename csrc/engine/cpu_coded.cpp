// The CPU engine's loop where states are codes, or weights more than their parameters: groups of
// blocks where they are whole and finite, else one block after the other.
#include <algorithm>
#include <stdexcept>
#include <utility>

#include "../rules/all.h"
#include "cpu_block.h"
#include "cpu_group.h"
#include "cpu_span.h"
#include "cpu_targets.h"
#include "cpu_vectors.h"
#include "storage.h"

namespace cpu {
namespace {

// A block belongs to the span that holds its first element.
template <class E, class Vectors>
HOST_DEVICE void update_span(const Batch& batch, const Row* row, std::int64_t begin,
                             std::int64_t end) {
  constexpr auto states = std::make_integer_sequence<int, E::num_states>();
  constexpr int group = elements_per_group;
  const auto* all_scalars = static_cast<const typename E::Scalars*>(batch.scalars);
  const auto next_block = [](std::int64_t i) { return (i + block - 1) / block * block; };
  BlockGroup<E, Vectors> blocks;
  for (; begin < end; ++row) {
    const typename E::Scalars scalars = all_scalars[row->scalars];
    const std::int64_t stop = std::min(end - row->first_chunk, row->numel);
    const std::int64_t last = std::min(next_block(stop), row->numel);
    std::int64_t i = next_block(begin - row->first_chunk);
    E elements(*row, batch.coded[row - batch.rows], i);
    while (i < last) {
      int count = static_cast<int>(std::min<std::int64_t>(last - i, group));
      if (count >= block) count -= count % block;
      if (count < block ||
          !blocks.update(elements, scalars, batch.grad_scale, count / block, states)) {
        update_blocks(elements, scalars, batch.grad_scale, count, states);
      }
      elements.advance(count);
      i += count;
    }
    begin = row->first_chunk + stop;
  }
}

template <class Rule, class Format, int bytes, WeightFormat weights>
void span_baseline(const Batch& batch, const Row* row, std::int64_t begin, std::int64_t end) {
  update_span<Elements<Rule, Format, bytes, weights>, Portable>(batch, row, begin, end);
}

#ifdef __x86_64__
template <class Rule, class Format, int bytes, WeightFormat weights>
CPU_AVX2 void span_avx2(const Batch& batch, const Row* row, std::int64_t begin, std::int64_t end) {
  update_span<Elements<Rule, Format, bytes, weights>, Portable>(batch, row, begin, end);
}

template <class Rule, class Format, int bytes, WeightFormat weights>
CPU_AVX512 void span_avx512(const Batch& batch, const Row* row, std::int64_t begin,
                            std::int64_t end) {
  update_span<Elements<Rule, Format, bytes, weights>, Avx512>(batch, row, begin, end);
}
#endif

template <class Rule, class Format, int bytes, WeightFormat weights>
Span span_for(const std::string& instruction_set) {
#ifdef __x86_64__
  if (instruction_set == "avx512") return span_avx512<Rule, Format, bytes, weights>;
  if (instruction_set == "avx2") return span_avx2<Rule, Format, bytes, weights>;
#endif
  return span_baseline<Rule, Format, bytes, weights>;
}

template <class Rule, class Format, WeightFormat weights>
Span span_for(StateFormat states, const std::string& instruction_set) {
  if (states == StateFormat::in_8_bits) {
    return span_for<Rule, Format, 1, weights>(instruction_set);
  }
  if (states == StateFormat::in_16_bits) {
    return span_for<Rule, Format, 2, weights>(instruction_set);
  }
  if constexpr (weights != WeightFormat::plain) {
    return span_for<Rule, Format, 4, weights>(instruction_set);
  }
  return nullptr;
}

template <class Rule>
Span span_for(const std::string& dtype, const Formats& formats,
              const std::string& instruction_set) {
  if (formats.weights == WeightFormat::plain) {
    if (dtype == "float32") {
      return span_for<Rule, Float32, WeightFormat::plain>(formats.states, instruction_set);
    }
    if (dtype == "bfloat16") {
      return span_for<Rule, BFloat16, WeightFormat::plain>(formats.states, instruction_set);
    }
    if (dtype == "float16") {
      return span_for<Rule, Float16, WeightFormat::plain>(formats.states, instruction_set);
    }
  }
  if (dtype == "bfloat16" && formats.weights == WeightFormat::split) {
    return span_for<Rule, BFloat16, WeightFormat::split>(formats.states, instruction_set);
  }
  if (dtype == "bfloat16" && formats.weights == WeightFormat::stochastic) {
    return span_for<Rule, BFloat16, WeightFormat::stochastic>(formats.states, instruction_set);
  }
  return nullptr;
}

}  // namespace

Span coded_span_for(const std::string& rule, const std::string& dtype, const Formats& formats,
                    const std::string& instruction_set) {
  Span found = nullptr;
#define FIND_IF_NAMED(Rule)                                         \
  if (rule == Rule<float>::name) {                                  \
    found = span_for<Rule<float>>(dtype, formats, instruction_set); \
  }
  FOR_EACH_RULE(FIND_IF_NAMED)
#undef FIND_IF_NAMED
  if (found != nullptr) return found;
  throw std::invalid_argument("the CPU engine does not serve rule " + rule +
                              " with parameters of " + dtype + ", states of " +
                              formats.state_name() + " and weights of " + formats.weight_name());
}

}  // namespace cpu
