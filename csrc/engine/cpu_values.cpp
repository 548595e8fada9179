// The CPU engine's conversions of states: codes to values, and values to codes by rounding to the
// nearest.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "bits.h"
#include "coded_states.h"
#include "codes.h"
#include "cpu.h"
#include "cpu_targets.h"
#include "cpu_vectors.h"
#include "storage.h"
#include "threads.h"

namespace cpu {
namespace {

constexpr int block = codes::block;
constexpr std::int64_t claim_size = 1 << 15;  // elements that a thread claims at a time
static_assert(claim_size % elements_per_group == 0, "a block lies in one claim");

// A group of blocks on its way from one form to the other, in words of 32 bits: a state's codes, or
// the bit patterns of its values as float32.
template <int bytes, class Vectors>
struct Conversion {
  using Code = std::conditional_t<bytes == 1, std::uint8_t, std::uint16_t>;
  using Words = Lanes<std::uint32_t, elements_per_group>;
  template <Values kind>
  using CodeOf = codes::Code<kind, bytes>;

  const CodedStates& states;
  Words words[max_states] = {};

  HOST_DEVICE explicit Conversion(const CodedStates& given) : states(given) {}

  // `count` elements from index `at` on, where a block begins.
  HOST_DEVICE void decode(std::int64_t at, int count) {
    for (int k = 0; k < states.num_states; ++k) {
      widen(codes(k) + at, words[k], count);
      if (states.borrows(k)) take_bits(words[k - 1], words[k]);
    }
    for (int k = 0; k < states.num_states; ++k) {
      const std::uint8_t* const exponents = exponents_of(k, at);
      const int blocks = blocks_in(count);
      switch (states.kinds[k]) {
        case Values::of_both_signs:
          decode<CodeOf<Values::of_both_signs>>(words[k], exponents, blocks);
          break;
        case Values::safe_too_large:
          decode<CodeOf<Values::safe_too_large>>(words[k], exponents, blocks);
          break;
        case Values::safe_too_small:
          decode<CodeOf<Values::safe_too_small>>(words[k], exponents, blocks);
          break;
      }
      store_values(k, at, count);
    }
  }

  // The same back. Values are stored as `Format`.
  template <class Format>
  HOST_DEVICE void encode(std::int64_t at, int count) {
    for (int k = 0; k < states.num_states; ++k) {
      load_values<Format>(k, at, count);
      std::uint8_t* const exponents = exponents_of(k, at);
      const int blocks = blocks_in(count);
      switch (states.kinds[k]) {
        case Values::of_both_signs:
          encode<CodeOf<Values::of_both_signs>>(words[k], exponents, blocks);
          break;
        case Values::safe_too_large:
          encode<CodeOf<Values::safe_too_large>>(words[k], exponents, blocks);
          break;
        case Values::safe_too_small:
          encode<CodeOf<Values::safe_too_small>>(words[k], exponents, blocks);
          break;
      }
      if (states.borrows(k)) give_bits(words[k], words[k - 1]);
    }
    for (int k = 0; k < states.num_states; ++k) narrow(words[k], codes(k) + at, count);
  }

 private:
  HOST_DEVICE Code* codes(int k) const { return static_cast<Code*>(states.codes[k]); }
  HOST_DEVICE std::uint8_t* exponents_of(int k, std::int64_t at) const {
    return states.exponents + at / block * states.num_states + k;
  }
  HOST_DEVICE static int blocks_in(int count) { return (count + block - 1) / block; }

  // What fills no block is moved one by one: vectors take whole blocks.
  template <typename T>
  HOST_DEVICE static void widen(const T* from, Words& to, int count) {
    const int whole = count - count % block;
    Vectors::widen(from, to.of, whole);
    for (int i = whole; i < count; ++i) to.of[i] = from[i];
  }
  template <typename T>
  HOST_DEVICE static void narrow(const Words& from, T* to, int count) {
    const int whole = count - count % block;
    Vectors::narrow(from.of, to, whole);
    for (int i = whole; i < count; ++i) to[i] = static_cast<T>(from.of[i]);
  }

  HOST_DEVICE static void take_bits(Words& lender, Words& borrower) {
#pragma omp simd
    for (int i = 0; i < elements_per_group; ++i) {
      borrower.of[i] |= lender.of[i] >> 7 << 8;
      lender.of[i] &= 0x7fu;
    }
  }
  HOST_DEVICE static void give_bits(const Words& borrower, Words& lender) {
#pragma omp simd
    for (int i = 0; i < elements_per_group; ++i) lender.of[i] |= borrower.of[i] >> 8 << 7;
  }

  template <class Kind>
  HOST_DEVICE void decode(Words& all, const std::uint8_t* exponents, int blocks) const {
    for (int b = 0; b < blocks; ++b) {
      const std::int32_t exponent = exponents[b * states.num_states];
      std::uint32_t* const some = all.of + b * block;
#pragma omp simd
      for (int i = 0; i < block; ++i) {
        some[i] = bit_cast<std::uint32_t>(Kind::decode(some[i], exponent));
      }
    }
  }

  template <class Kind>
  HOST_DEVICE void encode(Words& all, std::uint8_t* exponents, int blocks) const {
    constexpr std::uint32_t half = 1u << 31;  // as random bits, these round to the nearest
    for (int b = 0; b < blocks; ++b) {
      std::uint32_t* const some = all.of + b * block;
      std::uint32_t rank = 0;
#pragma omp simd reduction(max : rank)
      for (int i = 0; i < block; ++i) {
        rank = std::max(rank, Kind::rank(bit_cast<float>(some[i])));
      }
      const std::int32_t exponent = Kind::exponent(rank);
      exponents[b * states.num_states] = static_cast<std::uint8_t>(exponent);
#pragma omp simd
      for (int i = 0; i < block; ++i) {
        some[i] = Kind::encode(bit_cast<float>(some[i]), exponent, half);
      }
    }
  }

  // As bfloat16, which holds all that codes of one byte stand for, or as float32.
  HOST_DEVICE void store_values(int k, std::int64_t at, int count) {
    if constexpr (bytes == 1) {
#pragma omp simd
      for (int i = 0; i < elements_per_group; ++i) words[k].of[i] >>= 16;
      narrow(words[k], static_cast<std::uint16_t*>(states.values[k]) + at, count);
    } else {
      std::memcpy(static_cast<float*>(states.values[k]) + at, words[k].of, count * sizeof(float));
    }
  }

  template <class Format>
  HOST_DEVICE void load_values(int k, std::int64_t at, int count) {
    const auto* const values = static_cast<const typename Format::storage*>(states.values[k]) + at;
    if constexpr (sizeof(*values) == 2) {
      widen(values, words[k], count);
#pragma omp simd
      for (int i = 0; i < elements_per_group; ++i) words[k].of[i] <<= 16;
    } else {
      std::memcpy(words[k].of, values, count * sizeof(float));
    }
    // Elements past the end do not affect the exponent.
    std::fill(words[k].of + count, words[k].of + blocks_in(count) * block, 0u);
  }
};

// Converts elements [begin, end), which begin where a block does.
using Span = void (*)(const CodedStates&, std::int64_t begin, std::int64_t end);

enum class Way { decode, encode_float32, encode_bfloat16 };

template <Way way, int bytes, class Vectors>
HOST_DEVICE void convert_span(const CodedStates& states, std::int64_t begin, std::int64_t end) {
  Conversion<bytes, Vectors> group(states);
  for (std::int64_t i = begin; i < end; i += elements_per_group) {
    const auto count = static_cast<int>(std::min<std::int64_t>(elements_per_group, end - i));
    if constexpr (way == Way::decode) {
      group.decode(i, count);
    } else {
      using Format = std::conditional_t<way == Way::encode_float32, Float32, BFloat16>;
      group.template encode<Format>(i, count);
    }
  }
}

template <Way way, int bytes>
void span_baseline(const CodedStates& states, std::int64_t begin, std::int64_t end) {
  convert_span<way, bytes, Portable>(states, begin, end);
}

#ifdef __x86_64__
template <Way way, int bytes>
CPU_AVX2 void span_avx2(const CodedStates& states, std::int64_t begin, std::int64_t end) {
  convert_span<way, bytes, Portable>(states, begin, end);
}

template <Way way, int bytes>
CPU_AVX512 void span_avx512(const CodedStates& states, std::int64_t begin, std::int64_t end) {
  convert_span<way, bytes, Avx512>(states, begin, end);
}
#endif

template <Way way, int bytes>
Span span_for(const std::string& instruction_set) {
#ifdef __x86_64__
  if (instruction_set == "avx512") return span_avx512<way, bytes>;
  if (instruction_set == "avx2") return span_avx2<way, bytes>;
#endif
  return span_baseline<way, bytes>;
}

template <Way way>
void convert(const CodedStates& states, int threads, const std::string& instruction_set) {
  check_supported(instruction_set);
  const Span span =
      states.bytes == 1 ? span_for<way, 1>(instruction_set) : span_for<way, 2>(instruction_set);
  const std::int64_t claims = (states.numel + claim_size - 1) / claim_size;
  std::atomic<std::int64_t> next_claim{0};
  const auto task = [&] {
    for (;;) {
      const std::int64_t begin = next_claim.fetch_add(1, std::memory_order_relaxed) * claim_size;
      if (begin >= states.numel) return;
      span(states, begin, std::min(begin + claim_size, states.numel));
    }
  };
  run_on_threads(static_cast<int>(std::clamp<std::int64_t>(claims / 2, 1, threads)), task);
}

}  // namespace

void decode(const CodedStates& states, int threads, const std::string& instruction_set) {
  convert<Way::decode>(states, threads, instruction_set);
}

void encode(const std::string& dtype, const CodedStates& states, int threads,
            const std::string& instruction_set) {
  if (dtype == "float32") {
    return convert<Way::encode_float32>(states, threads, instruction_set);
  }
  if (dtype == "bfloat16") {
    return convert<Way::encode_bfloat16>(states, threads, instruction_set);
  }
  throw std::invalid_argument("values to encode are float32 or bfloat16, got " + dtype);
}

}  // namespace cpu
