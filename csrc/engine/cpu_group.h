// Several blocks of elements at once, on the CPU, in vectors: where all states are finite before
// and after the step. A look at the whole group's codes tells the one and another at its new values
// the other, so that nothing is selected for inf and NaN; until then nothing is stored.
//
// Each loop runs over elements of one width, with bytes and half words widened first and narrowed
// last, in loops of their own, since that is what compilers vectorise well. The arrays between
// loops stay in the first cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "../host_device.h"
#include "codes.h"
#include "cpu_block.h"
#include "cpu_codes.h"
#include "random_bits.h"
#include "storage.h"

namespace cpu {

constexpr int blocks_per_group = 8;

template <typename T>
struct alignas(64) Lanes {
  T of[block];
};

template <class E>
struct BlockGroup {
  static constexpr int num_states = E::num_states;
  using Storage = typename E::Storage;
  using State = typename E::State;
  template <int k>
  using CodeOf = typename E::template CodeOf<k, codes::GroupCode>;
  template <int k>
  static constexpr bool borrows = E::template borrows<k>;

  Lanes<float> weights[blocks_per_group];
  Lanes<float> values[num_states][blocks_per_group];
  Lanes<std::uint32_t> words[num_states][blocks_per_group];
  Lanes<std::uint32_t> hashes[blocks_per_group];
  std::uint32_t orders[blocks_per_group][num_states];

  // A state's code among ones: all bits that are not its own are set.
  template <int k>
  HOST_DEVICE static State among_ones(const E& e, int i) {
    const State code = e.states[k][i];
    if constexpr (borrows<k>) {
      const auto ninth = static_cast<State>(e.states[k - 1][i] | 0x7fu);
      return code < ninth ? code : ninth;  // less than 128 without the ninth bit
    } else if constexpr (CodeOf<k>::is_signed) {
      return static_cast<State>(code | static_cast<State>(~(CodeOf<k>::sign - 1)));
    } else {
      return code;
    }
  }

  // The last two codes of any state are inf and NaN.
  template <int... k>
  HOST_DEVICE static bool all_finite(const E& e, int blocks, std::integer_sequence<int, k...>) {
    Lanes<State> largest = {};
    for (int b = 0; b < blocks; ++b) {
#pragma omp simd
      for (int i = 0; i < block; ++i) {
        State found = largest.of[i];
        ((found = std::max(found, among_ones<k>(e, b * block + i))), ...);
        largest.of[i] = found;
      }
    }
    State found = 0;
    for (int i = 0; i < block; ++i) found = std::max(found, largest.of[i]);
    return found < std::numeric_limits<State>::max() - 1;
  }

  template <int k>
  HOST_DEVICE void load_state(const E& e, int b) {
    const State* const from = e.states[k] + b * block;
#pragma omp simd
    for (int i = 0; i < block; ++i) words[k][b].of[i] = from[i];
  }

  template <int k>
  HOST_DEVICE void store_state(const E& e, int blocks) const {
    const std::uint32_t* const from = words[k][0].of;
    State* const to = e.states[k];
    const int count = blocks * block;
#pragma omp simd
    for (int i = 0; i < count; ++i) to[i] = static_cast<State>(from[i]);
  }

  HOST_DEVICE void store_weights(const E& e, int b, const Lanes<std::uint32_t>& random) const {
#pragma omp simd
    for (int i = 0; i < block; ++i) e.store_weight(b * block + i, weights[b].of[i], random.of[i]);
  }

  template <int k>
  HOST_DEVICE float decoded(int b, int i, std::int32_t exponent) const {
    std::uint32_t code = words[k][b].of[i];
    if constexpr (borrows<k>) code |= (words[k - 1][b].of[i] << 1) & 0x100u;
    if constexpr (borrows<k + 1>) code &= 0x7fu;
    return CodeOf<k>::decode(code, exponent);
  }

  template <int... k>
  HOST_DEVICE void update(const E& e, int b, const typename E::Scalars& scalars, float grad_scale,
                          std::integer_sequence<int, k...>) {
    const int at = b * block;
    const auto first = e.first_index + static_cast<std::uint64_t>(at);
    const auto low = static_cast<std::uint32_t>(first);
    const auto high = static_cast<std::uint32_t>(first >> 32);
    Lanes<float> grads;
#pragma omp simd
    for (int i = 0; i < block; ++i) grads.of[i] = E::Format::load(e.grad[at + i]);
#pragma omp simd
    for (int i = 0; i < block; ++i) weights[b].of[i] = e.weight_at(at + i);
    std::int32_t exponents[num_states] = {};
    if constexpr (E::has_codes) ((exponents[k] = e.exponents[b * num_states + k]), ...);
#pragma omp simd
    for (int i = 0; i < block; ++i) {
      float state[num_states];
      if constexpr (E::has_codes) {
        ((state[k] = decoded<k>(b, i, exponents[k])), ...);
      } else {
        ((state[k] = e.states[k][at + i]), ...);
      }
      E::Rule::update(scalars, weights[b].of[i], grads.of[i] * grad_scale, state[k]...);
      ((values[k][b].of[i] = state[k]), ...);
      // Here, where the square root and the division leave the processor time.
      hashes[b].of[i] = random_bits::hash(low + static_cast<std::uint32_t>(i), high, e.key);
    }
  }

  // Finds what the blocks' exponents of a state follow from. Returns its largest magnitude, or inf
  // if there is a block that GroupCode does not serve.
  template <int k>
  HOST_DEVICE std::uint32_t find_orders(int blocks) {
    std::uint32_t largest = 0;
    for (int b = 0; b < blocks; ++b) {
      std::uint32_t order = 0;
      for (int i = 0; i < block; ++i) {
        order = std::max(order, CodeOf<k>::order(CodeOf<k>::pattern(values[k][b].of[i])));
      }
      orders[b][k] = order;
      largest = std::max(largest, CodeOf<k>::serves(order) ? order : codes::inf_bits);
    }
    if constexpr (CodeOf<k>::keeps_smallest) {
      largest = 0;
      const float* const all = values[k][0].of;
      for (int i = 0; i < blocks * block; ++i) {
        largest = std::max(largest, CodeOf<k>::pattern(all[i]));
      }
    }
    return largest;
  }

  template <int... k>
  HOST_DEVICE void store(const E& e, int b, const typename E::Scalars& scalars,
                         std::integer_sequence<int, k...>) {
    constexpr int param_stream = random_bits::num_streams - 1;
    const int at = b * block;
    const std::uint32_t turns[] = {turn_of(scalars.step, k)...};
    const std::uint32_t param_turn = turn_of(scalars.step, param_stream);
    Lanes<std::uint32_t> random;
    if constexpr (E::has_codes) {
      const std::int32_t exponents[] = {CodeOf<k>::exponent(CodeOf<k>::rank_of(orders[b][k]))...};
      ((e.exponents[b * num_states + k] = static_cast<std::uint8_t>(exponents[k])), ...);
#pragma omp simd
      for (int i = 0; i < block; ++i) {
        const std::uint32_t hash = hashes[b].of[i];
        std::uint32_t code[] = {CodeOf<k>::encode(values[k][b].of[i], exponents[k],
                                                  random_bits::start(hash, k) + turns[k])...};
        ((code[k] |= borrows<k + 1> ? (code[(k + 1) % num_states] >> 1) & 0x80u : 0u), ...);
        ((words[k][b].of[i] = code[k]), ...);
        random.of[i] = random_bits::start(hash, param_stream) + param_turn;
      }
    } else {
#pragma omp simd
      for (int i = 0; i < block; ++i) {
        const std::uint32_t hash = hashes[b].of[i];
        ((e.states[k][at + i] = values[k][b].of[i]), ...);
        random.of[i] = random_bits::start(hash, param_stream) + param_turn;
      }
    }
    store_weights(e, b, random);
  }

  // Updates whole blocks, or changes nothing and returns false.
  template <int... k>
  HOST_DEVICE bool update(const E& e, const typename E::Scalars& scalars, float grad_scale,
                          int blocks, std::integer_sequence<int, k...> all) {
    const auto count = static_cast<std::uint32_t>(blocks * block);
    if (static_cast<std::uint32_t>(e.first_index) > 0u - count) return false;  // crosses 2^32
    if constexpr (E::has_codes) {
      if (!all_finite(e, blocks, all)) return false;
      for (int b = 0; b < blocks; ++b) (load_state<k>(e, b), ...);
    }
    for (int b = 0; b < blocks; ++b) update(e, b, scalars, grad_scale, all);
    if constexpr (E::has_codes) {
      if (std::max({find_orders<k>(blocks)...}) >= codes::inf_bits) return false;
    }
    for (int b = 0; b < blocks; ++b) store(e, b, scalars, all);
    if constexpr (E::has_codes) (store_state<k>(e, blocks), ...);
    return true;
  }
};

}  // namespace cpu
