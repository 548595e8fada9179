// A block of elements whose states are codes, or whose weights are more than their parameters, on
// the CPU: where they lie, and the way that serves any block, one element after the other.
// cpu_group.h is the fast one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../host_device.h"
#include "../rules/step_element.h"
#include "codes.h"
#include "formats.h"
#include "random_bits.h"
#include "row.h"
#include "weights.h"

namespace cpu {

constexpr int block = codes::block;

// Where the elements from a block's first one lie.
template <class Rule_, class Format_, int bytes_, WeightFormat weights_>
struct Elements {
  using Rule = Rule_;
  using Format = Format_;
  static constexpr int bytes = bytes_;
  static constexpr WeightFormat weights = weights_;
  static constexpr int num_states = Rule::num_states;
  static constexpr bool has_codes = bytes != 4;
  static constexpr bool is_random = has_codes || weights == WeightFormat::stochastic;

  using Storage = typename Format::storage;
  using Code = std::conditional_t<bytes == 1, std::uint8_t, std::uint16_t>;
  using State = std::conditional_t<has_codes, Code, float>;
  using Scalars = typename Rule::Scalars;

  template <int k, template <Values, int> class Kind>
  using CodeOf = Kind<Rule::values[k], has_codes ? bytes : 1>;

  // Whether state k has a ninth bit, in the byte of the state before it.
  template <int k>
  static constexpr bool borrows = bytes == 1 && k < num_states &&
                                  Rule::values[k < num_states ? k : 0] == Values::safe_too_large;

  Storage* param;
  const Storage* grad;
  State* states[num_states];
  std::uint8_t* exponents;
  std::int16_t* remainders;
  std::uint64_t first_index;
  std::uint64_t key;

  Elements(const Row& row, const Coded& coded, std::int64_t i)
      : param(static_cast<Storage*>(row.param) + i),
        grad(static_cast<const Storage*>(row.grad) + i),
        exponents(has_codes ? coded.exponents + i / block * num_states : nullptr),
        remainders(weights == WeightFormat::split ? coded.remainders + i : nullptr),
        first_index(static_cast<std::uint64_t>(coded.first_index + i)),
        key(coded.key) {
    for (int k = 0; k < num_states; ++k) states[k] = static_cast<State*>(row.state[k]) + i;
  }

  HOST_DEVICE void advance(int count) {
    param += count;
    grad += count;
    for (State*& state : states) state += count;
    if (has_codes) exponents += count / block * num_states;
    if (weights == WeightFormat::split) remainders += count;
    first_index += static_cast<std::uint64_t>(count);
  }

  template <int k>
  HOST_DEVICE std::uint32_t code_at(int i) const {
    std::uint32_t code = states[k][i];
    if constexpr (borrows<k>) code |= static_cast<std::uint32_t>(states[k - 1][i]) >> 7 << 8;
    if constexpr (borrows<k + 1>) code &= 0x7fu;
    return code;
  }

  HOST_DEVICE float weight_at(int i) const {
    if constexpr (weights == WeightFormat::split)
      return weights::Split::load(param[i], remainders[i]);
    return Format::load(param[i]);
  }

  HOST_DEVICE void store_weight(int i, float value, std::uint32_t random) const {
    const std::uint32_t pattern = weights::pattern_of(value);
    if constexpr (weights == WeightFormat::plain) {
      param[i] = Format::store(value);
    } else if constexpr (weights == WeightFormat::split) {
      param[i] = weights::Split::param(pattern);
      remainders[i] = weights::Split::remainder(pattern);
    } else {
      param[i] = weights::Stochastic::param(pattern, random);
    }
  }
};

HOST_DEVICE std::uint32_t turn_of(float step, int stream) {
  return static_cast<std::uint32_t>(static_cast<std::int32_t>(step)) * random_bits::weyl[stream];
}

// Updates the first `count` elements, a block at most.
template <class E, int... k>
void update_block(const E& e, const typename E::Scalars& scalars, float grad_scale, int count,
                  std::integer_sequence<int, k...>) {
  float values[E::num_states][block], weights[block];
  std::uint32_t ranks[E::num_states] = {};
  for (int i = 0; i < count; ++i) {
    if constexpr (E::has_codes) {
      ((values[k][i] =
            E::template CodeOf<k, codes::Code>::decode(e.template code_at<k>(i), e.exponents[k])),
       ...);
    } else {
      ((values[k][i] = e.states[k][i]), ...);
    }
    weights[i] = e.weight_at(i);
    step_element<typename E::Rule>(scalars, weights[i], E::Format::load(e.grad[i]) * grad_scale,
                                   values[k][i]...);
    ((ranks[k] = std::max(ranks[k], E::template CodeOf<k, codes::Code>::rank(values[k][i]))), ...);
  }

  std::int32_t exponents[] = {E::template CodeOf<k, codes::Code>::exponent(ranks[k])...};
  if constexpr (E::has_codes) {
    ((e.exponents[k] = static_cast<std::uint8_t>(exponents[k])), ...);
  }
  for (int i = 0; i < count; ++i) {
    const std::uint32_t hash = random_bits::hash(e.first_index + static_cast<unsigned>(i), e.key);
    const auto random = [&](int stream) {
      return random_bits::start(hash, stream) + turn_of(scalars.step, stream);
    };
    if constexpr (E::has_codes) {
      std::uint32_t codes[] = {
          E::template CodeOf<k, codes::Code>::encode(values[k][i], exponents[k], random(k))...};
      ((codes[k] |= E::template borrows<k + 1> ? codes[(k + 1) % E::num_states] >> 8 << 7 : 0),
       ...);
      ((e.states[k][i] = static_cast<typename E::State>(codes[k])), ...);
    } else {
      ((e.states[k][i] = values[k][i]), ...);
    }
    e.store_weight(i, weights[i], random(random_bits::num_streams - 1));
  }
}

// Updates `count` elements. Compiled once, for any processor.
template <class E, class States>
[[gnu::noinline]] void update_blocks(E e, const typename E::Scalars& scalars, float grad_scale,
                                     int count, States states) {
  for (int left = count; left > 0; left -= block) {
    update_block(e, scalars, grad_scale, std::min(left, block), states);
    if (left > block) e.advance(block);
  }
}

}  // namespace cpu
