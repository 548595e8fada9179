// The streams of a row whose states or weights are coded, and how a warp moves them through a rule:
// a block of elements that share exponents lies within a warp.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "../rules/step_element.h"
#include "codes.h"
#include "cuda_memory.h"
#include "cuda_packing.h"
#include "cuda_tuning.h"
#include "cuda_warp.h"
#include "cuda_weights.h"
#include "finite_codes.h"
#include "random_bits.h"
#include "row.h"

namespace cuda_engine {

static_assert(codes::block == warp_size, "element by element, a warp takes a block");

// The random bits of a row at one step.
struct Randomness {
  std::uint64_t first_index;
  std::uint64_t key;
  std::uint32_t step;

  __device__ __forceinline__ Randomness(const Coded& coded, std::uint32_t step)
      : first_index(static_cast<std::uint64_t>(coded.first_index)), key(coded.key), step(step) {}

  // Whether the indices of these elements have one upper half.
  __device__ __forceinline__ bool one_upper_half(std::int64_t begin, std::int64_t end) const {
    return (first_index + begin) >> 32 == (first_index + end - 1) >> 32;
  }

  // Of the element `e` after element i, in whose index no carry leaves the lower half.
  __device__ __forceinline__ std::uint32_t hash(std::int64_t i, std::uint32_t e = 0) const {
    const std::uint64_t index = first_index + static_cast<std::uint64_t>(i);
    return random_bits::hash(static_cast<std::uint32_t>(index) + e,
                             static_cast<std::uint32_t>(index >> 32), key);
  }

  template <int stream>
  __device__ __forceinline__ std::uint32_t bits(std::uint32_t hash) const {
    constexpr std::uint32_t weyl = random_bits::weyl[stream];
    return random_bits::start(hash, stream) + step * weyl;
  }
};

// `bytes` are those of an element of a state; 4 are plain float32.
template <typename Rule, typename Weights, int bytes,
          typename = std::make_index_sequence<std::size_t{Rule::num_states}>>
struct CodedStreams;

template <typename Rule, typename Weights, int bytes, std::size_t... k>
struct CodedStreams<Rule, Weights, bytes, std::index_sequence<k...>> {
  using Format = typename Weights::Format;
  using Storage = typename Weights::Storage;
  using State = std::conditional_t<bytes == 4, float,
                                   std::conditional_t<bytes == 2, std::uint16_t, std::uint8_t>>;
  using Scalars = typename Rule::Scalars;
  static constexpr int num_states = sizeof...(k);
  static constexpr bool has_blocks = bytes != 4;
  static constexpr bool is_random = has_blocks || Weights::is_random;
  static constexpr int param_stream = random_bits::num_streams - 1;
  static_assert(num_states <= param_stream, "each state has a stream of random bits");

  // Elements that a thread moves in one access of 128 bits, or a few.
  static constexpr std::size_t group_itemsize = tuning.group_by_widest
                                                    ? std::max<std::size_t>(sizeof(Storage), bytes)
                                                    : std::min<std::size_t>(sizeof(Storage), bytes);
  static constexpr int group = access_bytes / group_itemsize;

  Storage* param;
  const Storage* grad;
  State* state[num_states];
  std::uint8_t* exponents;
  std::int16_t* remainders;

  __device__ __forceinline__ CodedStreams(const Row& row, const Coded& coded)
      : param(static_cast<Storage*>(row.param)),
        grad(static_cast<const Storage*>(row.grad)),
        state{static_cast<State*>(row.state[k])...},
        exponents(coded.exponents),
        remainders(coded.remainders) {}

  __device__ __forceinline__ bool all_aligned() const {
    return aligned(param) && aligned(grad) && (aligned(state[k]) && ...) &&
           (!Weights::has_remainder || aligned(remainders));
  }

  // Moves `group` elements through the rule, from index i on; the warp's threads take neighbouring
  // groups. All loads come before the first arithmetic. False, with nothing stored, where
  // FiniteCode does not serve all of the warp's elements.
  __device__ __forceinline__ bool update_group(const Scalars& scalars, float grad_scale,
                                               const Randomness& random, std::int64_t i) const {
    Pack<Storage, group> params = load<group>(param + i);
    const Pack<Storage, group> grads = load<group>(grad + i);
    Pack<std::int16_t, group> lower{};
    if constexpr (Weights::has_remainder) lower = load<group>(remainders + i);

    Pack<float, group> states[num_states];
    float weights[group];
    const auto update = [&] {
#pragma unroll
      for (int e = 0; e < group; ++e) {
        weights[e] = Weights::load(params.elements[e], lower.elements[e]);
        step_element<Rule>(scalars, weights[e], Format::load(grads.elements[e]) * grad_scale,
                           states[k].elements[e]...);
      }
    };
    const auto encode_weight = [&](int e, std::uint32_t hash) {
      const std::uint32_t bits = Weights::is_random ? random.template bits<param_stream>(hash) : 0;
      Weights::store(weights[e], bits, params.elements[e], lower.elements[e]);
    };

    if constexpr (has_blocks) {
      constexpr int words = group * bytes / 4;
      Pack<std::uint32_t, words> packs[num_states] = {
          load<words>(reinterpret_cast<const std::uint32_t*>(state[k] + i))...};
      std::uint8_t* const shared = exponents + i / codes::block * num_states;
      const std::int32_t old[num_states] = {load<1>(shared + k).elements[0]...};

      bool served = true;
#pragma unroll
      for (int w = 0; w < words; ++w) {
        const std::uint32_t in[num_states] = {packs[k].elements[w]...};
        (decode_word<k>(in, old[k], &states[k].elements[w * per_word], served), ...);
      }
      update();
      const std::uint32_t ranks[num_states] = {rank<k>(states[k], served)...};
      if (__any_sync(whole_warp, !served)) return false;

      const std::int32_t exponent[num_states] = {
          Code<k>::exponent(largest_of<codes::block / group>(ranks[k]))...};
#pragma unroll
      for (int w = 0; w < words; ++w) {
        std::uint32_t coded[num_states][per_word];
#pragma unroll
        for (int e = 0; e < per_word; ++e) {
          const int element = w * per_word + e;
          const std::uint32_t hash = random.hash(i, element);
          ((coded[k][e] = Code<k>::encode(states[k].elements[element], exponent[k],
                                          random.template bits<k>(hash))),
           ...);
          encode_weight(element, hash);
        }
        std::uint32_t out[num_states];
        (Packed::template pack<k>(coded[k], out), ...);
        ((packs[k].elements[w] = out[k]), ...);
      }
      (store<words>(reinterpret_cast<std::uint32_t*>(state[k] + i), packs[k]), ...);
      if (i % codes::block == 0) (store_byte(shared + k, exponent[k]), ...);
    } else {
      ((states[k] = load<group>(state[k] + i)), ...);
      update();
#pragma unroll
      for (int e = 0; e < group; ++e) encode_weight(e, random.hash(i, e));
      (store<group>(state[k] + i, states[k]), ...);
    }
    store<group>(param + i, params);
    if constexpr (Weights::has_remainder) store<group>(remainders + i, lower);
    return true;
  }

  // Moves the block of elements from index i on, one a lane; those from `end` on do not exist.
  __device__ __forceinline__ void update_block(const Scalars& scalars, float grad_scale,
                                               const Randomness& random, std::int64_t i,
                                               std::int64_t end) const {
    const int lane = threadIdx.x % warp_size;
    const std::int64_t at = i + lane;
    const bool exists = at < end;
    float weight = 0;
    float states[num_states] = {};
    [[maybe_unused]] std::uint8_t* const shared = exponents + i / codes::block * num_states;
    if (exists) {
      std::int16_t lower = 0;
      if constexpr (Weights::has_remainder) lower = load<1>(remainders + at).elements[0];
      weight = Weights::load(load<1>(param + at).elements[0], lower);
      const float gradient = Format::load(load<1>(grad + at).elements[0]) * grad_scale;
      if constexpr (has_blocks) {
        const std::uint32_t in[num_states] = {load<1>(state[k] + at).elements[0]...};
        const std::int32_t old[num_states] = {load<1>(shared + k).elements[0]...};
        ((states[k] = Exact<k>::decode(Packed::template first<k>(in), old[k])), ...);
      } else {
        ((states[k] = load<1>(state[k] + at).elements[0]), ...);
      }
      step_element<Rule>(scalars, weight, gradient, states[k]...);
    }

    std::uint32_t coded[num_states] = {};
    const std::uint32_t hash = random.hash(at);
    if constexpr (has_blocks) {
      // Every lane has loaded the old exponents before one stores new ones.
      const std::int32_t exponent[num_states] = {
          Exact<k>::exponent(largest_of<warp_size>(exists ? Exact<k>::rank(states[k]) : 0))...};
      ((coded[k] = Exact<k>::encode(states[k], exponent[k], random.template bits<k>(hash))), ...);
      if (lane == 0) (store_byte(shared + k, exponent[k]), ...);
    }
    if (!exists) return;
    if constexpr (has_blocks) {
      std::uint32_t out[num_states];
      (Packed::template first<k>(coded[k], out), ...);
      (store<1>(state[k] + at, Pack<State, 1>{static_cast<State>(out[k])}), ...);
    } else {
      (store<1>(state[k] + at, Pack<State, 1>{states[k]}), ...);
    }
    Pack<Storage, 1> new_param;
    Pack<std::int16_t, 1> lower{};
    Weights::store(weight, random.template bits<param_stream>(hash), new_param.elements[0],
                   lower.elements[0]);
    store<1>(param + at, new_param);
    if constexpr (Weights::has_remainder) store<1>(remainders + at, lower);
  }

 private:
  template <int state>
  using Exact = codes::Code<Rule::values[state], has_blocks ? bytes : 1>;
  template <int state>
  using Code = codes::FiniteCode<Rule::values[state], has_blocks ? bytes : 1>;
  using Packed = Packing<Rule, has_blocks ? bytes : 1>;
  static constexpr int per_word = Packed::per_word;

  template <typename T>
  __device__ __forceinline__ static bool aligned(const T* address) {
    return reinterpret_cast<std::uintptr_t>(address) % access_bytes == 0;
  }

  __device__ __forceinline__ static void store_byte(std::uint8_t* to, std::int32_t value) {
    store<1>(to, Pack<std::uint8_t, 1>{static_cast<std::uint8_t>(value)});
  }

  template <int index>
  __device__ __forceinline__ static void decode_word(const std::uint32_t (&in)[num_states],
                                                     std::int32_t exponent, float* out,
                                                     bool& served) {
    std::uint32_t coded[per_word];
    Packed::template unpack<index>(in, coded);
#pragma unroll
    for (int e = 0; e < per_word; ++e) {
      served &= Code<index>::magnitude(coded[e]) <= Code<index>::top;
      out[e] = Code<index>::decode(coded[e], exponent);
    }
  }

  // The largest of a thread's elements.
  template <int index>
  __device__ __forceinline__ static std::uint32_t rank(const Pack<float, group>& states,
                                                       bool& served) {
    std::uint32_t largest = 0;
    std::uint32_t before_smallest = ~0u;  // so that 0 has no say
#pragma unroll
    for (int e = 0; e < group; ++e) {
      const std::uint32_t pattern = Code<index>::pattern(states.elements[e]);
      largest = max(largest, pattern);
      if constexpr (Code<index>::keeps_smallest)
        before_smallest = min(before_smallest, pattern - 1);
    }
    served &= largest < codes::inf_bits;
    if constexpr (!Code<index>::keeps_smallest) return largest;
    return before_smallest == ~0u ? 0 : codes::inf_bits - 1 - before_smallest;
  }
};

}  // namespace cuda_engine
