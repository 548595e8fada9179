// Several blocks of elements at once, on the CPU, in vectors: where all states are finite before
// and after the step. A look at the whole group's codes tells the one and another at its new values
// the other, so that nothing is selected for inf and NaN; until then nothing is stored.
//
// Each loop runs over elements of one width, with bytes and half words widened first and narrowed
// last, since that is what compilers vectorise well. The arrays between loops stay in the first
// cache.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "../host_device.h"
#include "../rules/step_element.h"
#include "codes.h"
#include "cpu_block.h"
#include "cpu_codes.h"
#include "cpu_vectors.h"
#include "random_bits.h"
#include "storage.h"

namespace cpu {

// `Vectors` is of cpu_vectors.h.
template <class E, class Vectors>
struct BlockGroup {
  static constexpr int num_states = E::num_states;
  using State = typename E::State;
  template <int k>
  using CodeOf = typename E::template CodeOf<k, codes::GroupCode>;
  template <int k>
  static constexpr bool borrows = E::template borrows<k>;

  Lanes<float, elements_per_group> weights;
  Lanes<float, elements_per_group> values[num_states];
  Lanes<std::uint32_t, elements_per_group> words[num_states];
  Lanes<std::uint32_t, elements_per_group> hashes;
  Lanes<std::uint32_t, blocks_per_group> offsets[num_states];
  Lanes<float, blocks_per_group> units[num_states];

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
  HOST_DEVICE static bool all_finite(const E& e, int count, std::integer_sequence<int, k...>) {
    State largest = 0;
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < count; ++i) {
      ((largest = std::max(largest, among_ones<k>(e, i))), ...);
    }
    return largest < std::numeric_limits<State>::max() - 1;
  }

  template <int k>
  HOST_DEVICE void load_offsets(const E& e, int blocks) {
    for (int b = 0; b < blocks; ++b) {
      offsets[k].of[b] = CodeOf<k>::offset(e.exponents[b * num_states + k]);
    }
  }

  HOST_DEVICE void store_weights(const E& e, int b, const std::uint32_t* random) const {
#pragma omp simd
    for (int i = 0; i < block; ++i) {
      e.store_weight(b * block + i, weights.of[b * block + i], random[i]);
    }
  }

  template <int k>
  HOST_DEVICE float decoded(int i, std::uint32_t offset) const {
    std::uint32_t code = words[k].of[i];
    if constexpr (borrows<k>) code |= (words[k - 1].of[i] << 1) & 0x100u;
    if constexpr (borrows<k + 1>) code &= 0x7fu;
    return CodeOf<k>::decode_from(code, offset);
  }

  HOST_DEVICE static void prefetch(const void* stream, std::size_t ahead) {
    __builtin_prefetch(
        reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(stream) + ahead));
  }

  // Asks for the parameters, gradients and codes of the block a group further on, if there is one.
  // Processors foresee what a loop will read, but no further than this loop gets while the other
  // loops of a group read nothing.
  template <int... k>
  HOST_DEVICE static void prefetch(const E& e, int b, std::integer_sequence<int, k...>) {
    constexpr std::size_t line = 64, itemsize = sizeof(typename E::Storage);
    const std::size_t at = std::size_t(b) * block + elements_per_group;
    for (std::size_t byte = 0; byte < block * itemsize; byte += line) {
      prefetch(e.param, at * itemsize + byte);
      prefetch(e.grad, at * itemsize + byte);
    }
    if constexpr (E::has_codes) (prefetch(e.states[k], at * sizeof(State)), ...);
  }

  template <int... k>
  HOST_DEVICE void update(const E& e, int b, const typename E::Scalars& scalars, float grad_scale,
                          std::integer_sequence<int, k...> all) {
    prefetch(e, b, all);
    const int at = b * block;
    const auto first = e.first_index + static_cast<std::uint64_t>(at);
    const std::uint32_t scaled = random_bits::scaled_of(static_cast<std::uint32_t>(first), e.key);
    const std::uint32_t upper =
        random_bits::upper_of(static_cast<std::uint32_t>(first >> 32), e.key);
    Lanes<float, block> grads;
#pragma omp simd
    for (int i = 0; i < block; ++i) grads.of[i] = E::Format::load(e.grad[at + i]);
#pragma omp simd
    for (int i = 0; i < block; ++i) weights.of[at + i] = e.weight_at(at + i);
    std::uint32_t offset[num_states] = {};
    if constexpr (E::has_codes) ((offset[k] = offsets[k].of[b]), ...);
#pragma omp simd
    for (int i = 0; i < block; ++i) {
      float state[num_states];
      if constexpr (E::has_codes) {
        ((state[k] = decoded<k>(at + i, offset[k])), ...);
      } else {
        ((state[k] = e.states[k][at + i]), ...);
      }
      step_element<typename E::Rule>(scalars, weights.of[at + i], grads.of[i] * grad_scale,
                                     state[k]...);
      ((values[k].of[at + i] = state[k]), ...);
      // Here, where the square root and the division leave the processor time.
      hashes.of[at + i] = random_bits::mix(
          scaled + static_cast<std::uint32_t>(i) * random_bits::index_factor, upper);
    }
  }

  // Finds the blocks' exponents of a state, and what its codes are to count from. False if
  // GroupCode does not serve all blocks.
  template <int k>
  HOST_DEVICE bool find_exponents(int blocks,
                                  std::uint8_t (&exponents)[num_states][blocks_per_group]) {
    using Code = CodeOf<k>;
    // For blocks that do not exist, values that any code serves.
    std::fill(values[k].of + blocks * block, values[k].of + elements_per_group, 1.0f);
    Lanes<std::uint32_t, blocks_per_group> orders;
    if (Vectors::template find_orders<Code>(values[k].of, orders.of) >= codes::inf_bits) {
      return false;
    }
    std::uint32_t unserved = 0;
#pragma omp simd reduction(| : unserved)
    for (int b = 0; b < blocks_per_group; ++b) {
      const std::uint32_t order = orders.of[b];
      unserved |= Code::serves(order) ? 0u : 1u;
      const std::int32_t exponent = Code::exponent(Code::rank_of(order));
      offsets[k].of[b] = Code::offset(exponent);
      if constexpr (Code::is_signed) units[k].of[b] = Code::unit(order, offsets[k].of[b]);
      exponents[k][b] = static_cast<std::uint8_t>(exponent);
    }
    return unserved == 0;
  }

  template <int... k>
  HOST_DEVICE void store(const E& e, int b, const typename E::Scalars& scalars,
                         std::integer_sequence<int, k...>) {
    constexpr int param_stream = random_bits::num_streams - 1;
    const int at = b * block;
    const std::uint32_t turns[] = {turn_of(scalars.step, k)...};
    const std::uint32_t param_turn = turn_of(scalars.step, param_stream);
    Lanes<std::uint32_t, block> random;
    if constexpr (E::has_codes) {
      const std::uint32_t offset[] = {offsets[k].of[b]...};
      const float unit[] = {units[k].of[b]...};
#pragma omp simd
      for (int i = 0; i < block; ++i) {
        const std::uint32_t hash = hashes.of[at + i];
        std::uint32_t code[] = {CodeOf<k>::encode(values[k].of[at + i], offset[k], unit[k],
                                                  random_bits::start(hash, k) + turns[k])...};
        ((code[k] |= borrows<k + 1> ? (code[(k + 1) % num_states] >> 1) & 0x80u : 0u), ...);
        ((words[k].of[at + i] = code[k]), ...);
        random.of[i] = random_bits::start(hash, param_stream) + param_turn;
      }
    } else {
#pragma omp simd
      for (int i = 0; i < block; ++i) {
        const std::uint32_t hash = hashes.of[at + i];
        ((e.states[k][at + i] = values[k].of[at + i]), ...);
        random.of[i] = random_bits::start(hash, param_stream) + param_turn;
      }
    }
    store_weights(e, b, random.of);
  }

  // Updates whole blocks, or changes nothing and returns false.
  template <int... k>
  HOST_DEVICE bool update(const E& e, const typename E::Scalars& scalars, float grad_scale,
                          int blocks, std::integer_sequence<int, k...> all) {
    const int count = blocks * block;
    if (static_cast<std::uint32_t>(e.first_index) > 0u - static_cast<std::uint32_t>(count)) {
      return false;  // crosses 2^32
    }
    if constexpr (E::has_codes) {
      if (!all_finite(e, count, all)) return false;
      (load_offsets<k>(e, blocks), ...);
      (Vectors::widen(e.states[k], words[k].of, count), ...);
    }
    for (int b = 0; b < blocks; ++b) update(e, b, scalars, grad_scale, all);
    std::uint8_t exponents[num_states][blocks_per_group];
    if constexpr (E::has_codes) {
      if (!(find_exponents<k>(blocks, exponents) && ...)) return false;
      for (int b = 0; b < blocks; ++b) ((e.exponents[b * num_states + k] = exponents[k][b]), ...);
    }
    for (int b = 0; b < blocks; ++b) store(e, b, scalars, all);
    if constexpr (E::has_codes) (Vectors::narrow(words[k].of, e.states[k], count), ...);
    return true;
  }
};

}  // namespace cpu
