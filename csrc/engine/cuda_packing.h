// Codes of neighbouring elements in and out of the 32-bit words in which they lie in memory.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "codes.h"

namespace cuda_engine {

// `state` is the number of one of a rule's states, `bytes` are those of a code.
template <typename Rule, int bytes,
          typename = std::make_index_sequence<std::size_t{Rule::num_states}>>
struct Packing;

template <typename Rule, int bytes, std::size_t... k>
struct Packing<Rule, bytes, std::index_sequence<k...>> {
  static constexpr int num_states = sizeof...(k);
  static constexpr int per_word = 4 / bytes;

  static constexpr int bits(int state) {
    const int found[] = {codes::Code<Rule::values[k], bytes>::bits..., 0};
    return found[state];
  }

  // Its ninth bit is the upper one of the byte of the state before it.
  template <int state>
  static constexpr bool borrows = bits(state) > 8 * bytes;

  // The codes of one state out of a word, `words` holding one of every state.
  template <int state>
  __device__ __forceinline__ static void unpack(const std::uint32_t (&words)[num_states],
                                                std::uint32_t (&out)[per_word]) {
    if constexpr (borrows<state>) {
      const std::uint32_t ninth = (words[state - 1] >> 7) & 0x01010101u;
      const std::uint32_t lower = __byte_perm(words[state], ninth, 0x5140);
      const std::uint32_t upper = __byte_perm(words[state], ninth, 0x7362);
      out[0] = lower & 0xffffu;
      out[1] = lower >> 16;
      out[2] = upper & 0xffffu;
      out[3] = upper >> 16;
    } else {
      const std::uint32_t word = words[state] & (borrows<state + 1> ? 0x7f7f7f7fu : 0xffffffffu);
#pragma unroll
      for (int e = 0; e < per_word; ++e) out[e] = (word >> 8 * bytes * e) & ((1u << 8 * bytes) - 1);
    }
  }

  // The reverse; a state that lends a bit comes before the one that borrows it.
  template <int state>
  __device__ __forceinline__ static void pack(const std::uint32_t (&in)[per_word],
                                              std::uint32_t (&words)[num_states]) {
    if constexpr (borrows<state>) {
      const std::uint32_t lower = in[1] * 0x10000u + in[0];
      const std::uint32_t upper = in[3] * 0x10000u + in[2];
      words[state] = __byte_perm(lower, upper, 0x6420);
      words[state - 1] += __byte_perm(lower, upper, 0x7531) * 0x80u;
    } else if constexpr (bytes == 1) {
      words[state] = (in[3] * 0x100u + in[2]) * 0x10000u + (in[1] * 0x100u + in[0]);
    } else {
      words[state] = in[1] * 0x10000u + in[0];
    }
  }

  // The same of one element, which has a word of its own.
  template <int state>
  __device__ __forceinline__ static std::uint32_t first(const std::uint32_t (&in)[num_states]) {
    std::uint32_t code = in[state];
    if constexpr (borrows<state>) code |= in[state - 1] >> 7 << 8;
    if constexpr (borrows<state + 1>) code &= 0x7fu;
    return code;
  }
  template <int state>
  __device__ __forceinline__ static void first(std::uint32_t code,
                                               std::uint32_t (&out)[num_states]) {
    out[state] = code & ((1u << 8 * bytes) - 1);
    if constexpr (borrows<state>) out[state - 1] |= code >> 8 << 7;
  }
};

}  // namespace cuda_engine
