// Codes, random bits and weights of the engine, for Python: each function takes arrays of `count`
// elements. `kind` numbers Values.
#include <algorithm>
#include <cstdint>

#include "../../csrc/engine/codes.h"
#include "../../csrc/engine/random_bits.h"
#include "../../csrc/engine/weights.h"

namespace {

template <int bytes, typename Use>
void with_kind(int kind, const Use& use) {
  switch (static_cast<Values>(kind)) {
    case Values::of_both_signs:
      return use(codes::Code<Values::of_both_signs, bytes>{});
    case Values::safe_too_large:
      return use(codes::Code<Values::safe_too_large, bytes>{});
    case Values::safe_too_small:
      return use(codes::Code<Values::safe_too_small, bytes>{});
  }
}

template <typename Use>
void with_code(int kind, int bytes, const Use& use) {
  return bytes == 1 ? with_kind<1>(kind, use) : with_kind<2>(kind, use);
}

}  // namespace

extern "C" {

void exponents(int kind, int bytes, std::int64_t count, const float* x, std::int32_t* found) {
  with_code(kind, bytes, [&](auto code) {
    for (std::int64_t start = 0; start < count; start += codes::block) {
      std::uint32_t rank = 0;
      for (std::int64_t i = start; i < std::min(start + codes::block, count); ++i)
        rank = std::max(rank, code.rank(x[i]));
      found[start / codes::block] = code.exponent(rank);
    }
  });
}

void encode(int kind, int bytes, std::int64_t count, const float* x, const std::int32_t* exponent,
            const std::uint32_t* random, std::uint32_t* encoded) {
  with_code(kind, bytes, [&](auto code) {
    for (std::int64_t i = 0; i < count; ++i) encoded[i] = code.encode(x[i], exponent[i], random[i]);
  });
}

void decode(int kind, int bytes, std::int64_t count, const std::uint32_t* encoded,
            const std::int32_t* exponent, float* x) {
  with_code(kind, bytes, [&](auto code) {
    for (std::int64_t i = 0; i < count; ++i) x[i] = code.decode(encoded[i], exponent[i]);
  });
}

void bits_of(std::int64_t count, const std::uint64_t* indices, std::uint64_t key,
             std::uint32_t step, int stream, std::uint32_t* bits) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t start = random_bits::start(random_bits::hash(indices[i], key), stream);
    bits[i] = start + step * random_bits::weyl[stream];
  }
}

void split(std::int64_t count, const float* x, std::uint16_t* params, std::int16_t* remainders) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::uint32_t pattern = weights::pattern_of(x[i]);
    params[i] = weights::Split::param(pattern);
    remainders[i] = weights::Split::remainder(pattern);
  }
}

void join(std::int64_t count, const std::uint16_t* params, const std::int16_t* remainders,
          float* x) {
  for (std::int64_t i = 0; i < count; ++i) x[i] = weights::Split::load(params[i], remainders[i]);
}

void round_at_random(std::int64_t count, const float* x, const std::uint32_t* random,
                     std::uint16_t* params) {
  for (std::int64_t i = 0; i < count; ++i)
    params[i] = weights::Stochastic::param(weights::pattern_of(x[i]), random[i]);
}

}  // extern "C"
