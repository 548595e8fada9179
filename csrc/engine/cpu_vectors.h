// What a compiler, left alone, takes many times the instructions for: bytes and half words as words
// and back, and the largest of each block. `Portable` is what all else must equal.
#pragma once

#include <algorithm>
#include <cstdint>

#include "codes.h"
#include "cpu_targets.h"

#ifdef __x86_64__
// GCC 12 warns of values that its own header leaves undefined on purpose (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

namespace cpu {

constexpr int blocks_per_group = 16;  // as many as a vector of AVX-512 has words
constexpr int elements_per_group = blocks_per_group * codes::block;

template <typename T, int count>
struct alignas(64) Lanes {
  T of[count];
};

// `count` is a multiple of codes::block. Words, values and orders are arrays for a whole group,
// aligned to 64 bytes; words beyond `count` may be read, and what comes of them is thrown away.
struct Portable {
  template <typename State>
  HOST_DEVICE static void widen(const State* from, std::uint32_t* words, int count) {
#pragma omp simd
    for (int i = 0; i < count; ++i) words[i] = from[i];
  }

  template <typename State>
  HOST_DEVICE static void narrow(const std::uint32_t* words, State* to, int count) {
#pragma omp simd
    for (int i = 0; i < count; ++i) to[i] = static_cast<State>(words[i]);
  }

  // The order of each block, Code::order, and the largest pattern of all values, of which there is
  // a whole group.
  template <class Code>
  HOST_DEVICE static std::uint32_t find_orders(const float* values, std::uint32_t* orders) {
    std::uint32_t largest = 0;
    for (int b = 0; b < blocks_per_group; ++b) {
      std::uint32_t order = 0;
      for (int i = 0; i < codes::block; ++i) {
        order = std::max(order, Code::order(Code::pattern(values[b * codes::block + i])));
      }
      orders[b] = order;
      largest = std::max(largest, order);
    }
    if constexpr (Code::keeps_smallest) {
      largest = 0;
      for (int i = 0; i < elements_per_group; ++i) {
        largest = std::max(largest, Code::pattern(values[i]));
      }
    }
    return largest;
  }
};

#ifdef __x86_64__
struct Avx512 {
  static constexpr int lanes = 16;

  CPU_AVX512 static inline void widen(const std::uint8_t* from, std::uint32_t* words, int count) {
    for (int i = 0; i < count; i += lanes) {
      const auto* bytes = reinterpret_cast<const __m128i*>(from + i);
      _mm512_store_si512(words + i, _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes)));
    }
  }

  CPU_AVX512 static inline void widen(const std::uint16_t* from, std::uint32_t* words, int count) {
    for (int i = 0; i < count; i += lanes) {
      const auto* halves = reinterpret_cast<const __m256i*>(from + i);
      _mm512_store_si512(words + i, _mm512_cvtepu16_epi32(_mm256_loadu_si256(halves)));
    }
  }

  // The lower bytes of four vectors at once: packing stays within 128 bits, so that what belongs
  // together is put together afterwards.
  CPU_AVX512 static inline void narrow(const std::uint32_t* words, std::uint8_t* to, int count) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i lower = _mm512_set1_epi16(0xff);
    for (int i = 0; i < count; i += 4 * lanes) {
      const __m512i first =
          _mm512_packus_epi32(_mm512_load_si512(words + i), _mm512_load_si512(words + i + lanes));
      const __m512i second = _mm512_packus_epi32(_mm512_load_si512(words + i + 2 * lanes),
                                                 _mm512_load_si512(words + i + 3 * lanes));
      const __m512i packed =
          _mm512_packus_epi16(_mm512_and_si512(first, lower), _mm512_and_si512(second, lower));
      const __mmask64 inside = count - i < 4 * lanes ? 0xffffffffu : ~__mmask64{0};
      _mm512_mask_storeu_epi8(to + i, inside, _mm512_permutexvar_epi32(order, packed));
    }
  }

  CPU_AVX512 static inline void narrow(const std::uint32_t* words, std::uint16_t* to, int count) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    for (int i = 0; i < count; i += 2 * lanes) {
      const __m512i packed =
          _mm512_packus_epi32(_mm512_load_si512(words + i), _mm512_load_si512(words + i + lanes));
      _mm512_storeu_si512(to + i, _mm512_permutexvar_epi64(order, packed));
    }
  }

  // A transposition that takes the larger of two at each of its four stages.
  template <class Code>
  CPU_AVX512 static inline std::uint32_t find_orders(const float* values, std::uint32_t* orders) {
    __m512i largest = _mm512_setzero_si512();
    __m512i fours[4];
    for (int f = 0; f < 4; ++f) {
      __m512i of_block[4];
      for (int b = 0; b < 4; ++b) {
        of_block[b] = orders_of<Code>(values + (4 * f + b) * codes::block, largest);
      }
      const __m512i low = larger_of_words(of_block[0], of_block[1]);
      const __m512i high = larger_of_words(of_block[2], of_block[3]);
      fours[f] =
          _mm512_max_epu32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    }
    const __m512i found = larger_of_quarters(larger_of_quarters(fours[0], fours[1]),
                                             larger_of_quarters(fours[2], fours[3]));
    _mm512_store_si512(orders, found);
    return _mm512_reduce_max_epu32(Code::keeps_smallest ? largest : found);
  }

 private:
  CPU_AVX512 static inline __m512i larger_of_words(__m512i a, __m512i b) {
    return _mm512_max_epu32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }

  CPU_AVX512 static inline __m512i larger_of_quarters(__m512i a, __m512i b) {
    return _mm512_max_epu32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  }

  // The larger orders of a block's two halves, and the largest pattern where an order hides it.
  template <class Code>
  CPU_AVX512 static inline __m512i orders_of(const float* values, __m512i& largest) {
    const __m512i mask = _mm512_set1_epi32(Code::is_signed ? 0x7fffffff : -1);
    const __m512i a = _mm512_and_si512(_mm512_load_si512(values), mask);
    const __m512i b = _mm512_and_si512(_mm512_load_si512(values + lanes), mask);
    if constexpr (Code::keeps_smallest) {
      largest = _mm512_max_epu32(largest, _mm512_max_epu32(a, b));
      const __m512i zero = _mm512_setzero_si512();
      return _mm512_max_epu32(_mm512_sub_epi32(zero, a), _mm512_sub_epi32(zero, b));
    }
    return _mm512_max_epu32(a, b);
  }
};
static_assert(Avx512::lanes == blocks_per_group && 2 * Avx512::lanes == codes::block,
              "find_orders has a word for each block, and two vectors of each");
#endif

}  // namespace cpu
