// Random bits for stochastic rounding: a function of (key, element, step, stream) alone, the same
// on every backend, whatever the launch and however a tensor is cut.
//
// A hash of the element gives each stream a starting point, and a step moves it by the stream's own
// odd constant modulo 2^32: over steps a Weyl sequence. At any one step the bits are uniform over
// elements; over steps those of one element fill the range far more evenly than independent ones,
// so that the rounding of a slow average errs less.
#pragma once

#include <cstdint>

#include "../host_device.h"

namespace random_bits {

// One for each state, in order, then one for the parameter.
constexpr int num_streams = 4;

// Fractions of 2^32, made odd, of irrationals of different quadratic fields, each hard to
// approximate by fractions: (sqrt(5) - 1) / 2, sqrt(2) - 1, sqrt(3) - 1, (sqrt(13) - 3) / 2.
constexpr std::uint32_t weyl[num_streams] = {0x9e3779b9u, 0x6a09e667u, 0xbb67ae85u, 0x4d8400fdu};

// Consecutive elements of one upper half differ in `scaled` by this factor alone.
constexpr std::uint32_t index_factor = 0x9e3779b1u;

HOST_DEVICE std::uint32_t mix(std::uint32_t scaled, std::uint32_t upper) {
  std::uint32_t h = (scaled ^ (scaled >> 16)) * 0x21f0aaadu + upper;
  h = (h ^ (h >> 15)) * 0x735a2d97u;
  return h ^ (h >> 15);
}

HOST_DEVICE std::uint32_t scaled_of(std::uint32_t low, std::uint64_t key) {
  return low * index_factor + static_cast<std::uint32_t>(key);
}

HOST_DEVICE std::uint32_t upper_of(std::uint32_t high, std::uint64_t key) {
  return high * 0x85ebca6bu + static_cast<std::uint32_t>(key >> 32);
}

// Of the element of this index in its whole tensor, given in halves.
HOST_DEVICE std::uint32_t hash(std::uint32_t low, std::uint32_t high, std::uint64_t key) {
  return mix(scaled_of(low, key), upper_of(high, key));
}

HOST_DEVICE std::uint32_t hash(std::uint64_t index, std::uint64_t key) {
  return hash(static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32), key);
}

// Where a stream of an element starts. The states' are its hash with another of its bytes on top
// each: the upper 8 bits of a stream are its own, and what two streams share stands so far below
// that they are correlated by some 2^-16. The parameter's is mixed once more.
HOST_DEVICE std::uint32_t start(std::uint32_t hash, int stream) {
  if (stream == 0) return hash;
  if (stream < num_streams - 1) {
#ifdef __CUDA_ARCH__  // one instruction, which the compiler does not find
    return __byte_perm(hash, 0, (stream - 1) << 12 | 0x210);
#else
    constexpr std::uint32_t top = 0xff000000u;
    return (hash & ~top) | ((hash << (32 - 8 * stream)) & top);
#endif
  }
  const std::uint32_t mixed = (hash ^ (hash >> 16)) * 0x2c1b3c6du;
  return mixed ^ (mixed >> 15);
}

}  // namespace random_bits
