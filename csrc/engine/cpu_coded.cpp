// The CPU engine's loop where states are codes, or weights more than their parameters: a block of
// elements at a time, in arrays that stay in the first cache.
#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <utility>

#include "../rules/all.h"
#include "codes.h"
#include "cpu_span.h"
#include "cpu_targets.h"
#include "random_bits.h"
#include "storage.h"
#include "weights.h"

namespace cpu {
namespace {

constexpr int block = codes::block;

enum class Weights { plain, split, stochastic };

template <typename T>
struct alignas(64) Lanes {
  T of[block];
};

// What a block's elements have in common, and how far it reaches: fewer than `block` elements at a
// tensor's end.
template <class Rule, class Format, int bytes, Weights weights>
struct Block {
  using Storage = typename Format::storage;
  using Code = std::conditional_t<bytes == 1, std::uint8_t, std::uint16_t>;
  using State = std::conditional_t<bytes == 4, float, Code>;
  static constexpr int num_states = Rule::num_states;
  template <int k>
  using CodeOf = codes::Code<Rule::values[k], bytes == 4 ? 1 : bytes>;

  // Whether state k has a ninth bit, in the byte of the state before it.
  template <int k>
  static constexpr bool borrows = bytes == 1 && k < num_states &&
                                  CodeOf<k < num_states ? k : 0>::bits == 9;

  Storage* param;
  const Storage* grad;
  State* states[num_states];
  std::uint8_t* exponents;
  std::int16_t* remainders;
  std::uint64_t first_index;
  std::uint64_t key;

  // Bytes become words first and words bytes last, in loops of their own: each loop over elements of
  // one width is one that compilers vectorise well.
  template <int k>
  HOST_DEVICE void load_words(Lanes<std::uint32_t>& words, int count) const {
    const State* const from = states[k];
#pragma omp simd
    for (int i = 0; i < count; ++i) words.of[i] = from[i];
  }

  template <int k>
  HOST_DEVICE void load_values(Lanes<float>& values, int count) const {
    const State* const from = states[k];
#pragma omp simd
    for (int i = 0; i < count; ++i) values.of[i] = from[i];
  }

  template <int k>
  HOST_DEVICE void decode(const Lanes<std::uint32_t> (&words)[num_states],
                          Lanes<float>& values) const {
    const std::int32_t exponent = exponents[k];
#pragma omp simd
    for (int i = 0; i < block; ++i) {
      std::uint32_t code = words[k].of[i];
      if constexpr (borrows<k>) code |= words[k - 1].of[i] >> 7 << 8;
      if constexpr (borrows<k + 1>) code &= 0x7fu;
      values.of[i] = CodeOf<k>::decode(code, exponent);
    }
  }

  template <int k>
  HOST_DEVICE void encode(const Lanes<float>& values, const Lanes<std::uint32_t>& hashes,
                          std::uint32_t step, int count, Lanes<std::uint32_t>& words) const {
    std::uint32_t rank = 0;
#pragma omp simd reduction(max : rank)
    for (int i = 0; i < count; ++i) rank = std::max(rank, CodeOf<k>::rank(values.of[i]));
    const std::int32_t exponent = CodeOf<k>::exponent(rank);
    exponents[k] = static_cast<std::uint8_t>(exponent);
    const std::uint32_t turn = step * random_bits::weyl[k];
#pragma omp simd
    for (int i = 0; i < block; ++i) {
      const std::uint32_t random = random_bits::start(hashes.of[i], k) + turn;
      words.of[i] = CodeOf<k>::encode(values.of[i], exponent, random);
    }
  }

  template <int k>
  HOST_DEVICE void store_words(Lanes<std::uint32_t> (&words)[num_states], int count) const {
    if constexpr (borrows<k + 1>) {
#pragma omp simd
      for (int i = 0; i < block; ++i) words[k].of[i] |= words[k + 1].of[i] >> 8 << 7;
    }
    State* const to = states[k];
#pragma omp simd
    for (int i = 0; i < count; ++i) to[i] = static_cast<State>(words[k].of[i]);
  }

  template <int k>
  HOST_DEVICE void store_values(const Lanes<float>& values, int count) const {
    State* const to = states[k];
#pragma omp simd
    for (int i = 0; i < count; ++i) to[i] = static_cast<State>(values.of[i]);
  }

  HOST_DEVICE void load_weights(Lanes<float>& values, int count) const {
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      if constexpr (weights == Weights::split) {
        values.of[i] = weights::Split::load(param[i], remainders[i]);
      } else {
        values.of[i] = Format::load(param[i]);
      }
    }
  }

  HOST_DEVICE void store_weights(const Lanes<float>& values, const Lanes<std::uint32_t>& hashes,
                                 std::uint32_t step, int count) const {
    constexpr int stream = random_bits::num_streams - 1;
    const std::uint32_t turn = step * random_bits::weyl[stream];
#pragma omp simd
    for (int i = 0; i < count; ++i) {
      const std::uint32_t pattern = weights::pattern_of(values.of[i]);
      if constexpr (weights == Weights::plain) {
        param[i] = Format::store(values.of[i]);
      } else if constexpr (weights == Weights::split) {
        param[i] = weights::Split::param(pattern);
        remainders[i] = weights::Split::remainder(pattern);
      } else {
        const std::uint32_t random = random_bits::start(hashes.of[i], stream) + turn;
        param[i] = weights::Stochastic::param(pattern, random);
      }
    }
  }

  HOST_DEVICE void hash_elements(Lanes<std::uint32_t>& hashes) const {
    const auto low = static_cast<std::uint32_t>(first_index);
    const auto high = static_cast<std::uint32_t>(first_index >> 32);
#pragma omp simd
    for (int i = 0; i < block; ++i) {
      const std::uint32_t index = low + static_cast<std::uint32_t>(i);
      hashes.of[i] = random_bits::hash(index, index < low ? high + 1 : high, key);
    }
  }

  template <int... k>
  HOST_DEVICE void update(const typename Rule::Scalars& scalars, float grad_scale, int count,
                          std::integer_sequence<int, k...>) const {
    Lanes<float> p, g, values[num_states];
    Lanes<std::uint32_t> words[num_states];
    if (count < block) {
      p = g = {};
      ((values[k] = {}, words[k] = {}), ...);
    }
    load_weights(p, count);
#pragma omp simd
    for (int i = 0; i < count; ++i) g.of[i] = Format::load(grad[i]) * grad_scale;
    if constexpr (bytes == 4) {
      (load_values<k>(values[k], count), ...);
    } else {
      (load_words<k>(words[k], count), ...);
      (decode<k>(words, values[k]), ...);
    }

#pragma omp simd
    for (int i = 0; i < block; ++i) {
      Rule::update(scalars, p.of[i], g.of[i], values[k].of[i]...);
    }

    Lanes<std::uint32_t> hashes;
    const auto step = static_cast<std::uint32_t>(static_cast<std::int32_t>(scalars.step));
    if constexpr (bytes != 4 || weights == Weights::stochastic) hash_elements(hashes);
    if constexpr (bytes == 4) {
      (store_values<k>(values[k], count), ...);
    } else {
      (encode<k>(values[k], hashes, step, count, words[k]), ...);
      (store_words<k>(words, count), ...);
    }
    store_weights(p, hashes, step, count);
  }
};

// A block belongs to the span that holds its first element.
template <class Rule, class Format, int bytes, Weights weights>
HOST_DEVICE void update_span(const Batch& batch, const Row* row, std::int64_t begin,
                             std::int64_t end) {
  using Elements = Block<Rule, Format, bytes, weights>;
  constexpr auto states = std::make_integer_sequence<int, Rule::num_states>();
  const auto* all_scalars = static_cast<const typename Rule::Scalars*>(batch.scalars);
  const auto next_block = [](std::int64_t i) { return (i + block - 1) / block * block; };
  for (; begin < end; ++row) {
    const Coded& coded = batch.coded[row - batch.rows];
    const typename Rule::Scalars scalars = all_scalars[row->scalars];
    const std::int64_t stop = std::min(end - row->first_chunk, row->numel);
    const std::int64_t last = std::min(next_block(stop), row->numel);
    for (std::int64_t i = next_block(begin - row->first_chunk); i < last; i += block) {
      Elements elements;
      elements.param = static_cast<typename Format::storage*>(row->param) + i;
      elements.grad = static_cast<const typename Format::storage*>(row->grad) + i;
      for (int k = 0; k < Rule::num_states; ++k) {
        elements.states[k] = static_cast<typename Elements::State*>(row->state[k]) + i;
      }
      elements.exponents = bytes == 4 ? nullptr : coded.exponents + i / block * Rule::num_states;
      elements.remainders = weights == Weights::split ? coded.remainders + i : nullptr;
      elements.first_index = static_cast<std::uint64_t>(coded.first_index + i);
      elements.key = coded.key;
      if (last - i >= block) {
        elements.update(scalars, batch.grad_scale, block, states);
      } else {
        elements.update(scalars, batch.grad_scale, static_cast<int>(last - i), states);
      }
    }
    begin = row->first_chunk + stop;
  }
}

template <class Rule, class Format, int bytes, Weights weights>
void span_baseline(const Batch& batch, const Row* row, std::int64_t begin, std::int64_t end) {
  update_span<Rule, Format, bytes, weights>(batch, row, begin, end);
}

#ifdef __x86_64__
template <class Rule, class Format, int bytes, Weights weights>
CPU_AVX2 void span_avx2(const Batch& batch, const Row* row, std::int64_t begin, std::int64_t end) {
  update_span<Rule, Format, bytes, weights>(batch, row, begin, end);
}

template <class Rule, class Format, int bytes, Weights weights>
CPU_AVX512 void span_avx512(const Batch& batch, const Row* row, std::int64_t begin,
                            std::int64_t end) {
  update_span<Rule, Format, bytes, weights>(batch, row, begin, end);
}
#endif

template <class Rule, class Format, int bytes, Weights weights>
Span span_for(const std::string& instruction_set) {
#ifdef __x86_64__
  if (instruction_set == "avx512") return span_avx512<Rule, Format, bytes, weights>;
  if (instruction_set == "avx2") return span_avx2<Rule, Format, bytes, weights>;
#endif
  return span_baseline<Rule, Format, bytes, weights>;
}

template <class Rule, class Format, Weights weights>
Span span_for(const std::string& state_format, const std::string& instruction_set) {
  if (state_format == "8bit") return span_for<Rule, Format, 1, weights>(instruction_set);
  if (state_format == "16bit") return span_for<Rule, Format, 2, weights>(instruction_set);
  if constexpr (weights != Weights::plain) {
    if (state_format == "fp32") return span_for<Rule, Format, 4, weights>(instruction_set);
  }
  return nullptr;
}

template <class Rule>
Span span_for(const std::string& dtype, const std::string& state_format,
              const std::string& weight_format, const std::string& instruction_set) {
  if (weight_format == "plain") {
    if (dtype == "float32") {
      return span_for<Rule, Float32, Weights::plain>(state_format, instruction_set);
    }
    if (dtype == "bfloat16") {
      return span_for<Rule, BFloat16, Weights::plain>(state_format, instruction_set);
    }
    if (dtype == "float16") {
      return span_for<Rule, Float16, Weights::plain>(state_format, instruction_set);
    }
  }
  if (dtype == "bfloat16" && weight_format == "split") {
    return span_for<Rule, BFloat16, Weights::split>(state_format, instruction_set);
  }
  if (dtype == "bfloat16" && weight_format == "stochastic") {
    return span_for<Rule, BFloat16, Weights::stochastic>(state_format, instruction_set);
  }
  return nullptr;
}

}  // namespace

Span coded_span_for(const std::string& rule, const std::string& dtype,
                    const std::string& state_format, const std::string& weight_format,
                    const std::string& instruction_set) {
  Span found = nullptr;
#define FIND_IF_NAMED(Rule)                                                                  \
  if (rule == Rule<float>::name) {                                                           \
    found = span_for<Rule<float>>(dtype, state_format, weight_format, instruction_set);      \
  }
  FOR_EACH_RULE(FIND_IF_NAMED)
#undef FIND_IF_NAMED
  if (found != nullptr) return found;
  throw std::invalid_argument("the CPU engine does not serve rule " + rule + " with parameters of " +
                              dtype + ", states of " + state_format + " and weights of " +
                              weight_format);
}

}  // namespace cpu
