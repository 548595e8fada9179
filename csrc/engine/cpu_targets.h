// The instruction sets that the CPU engine's loops are compiled for; the attributes reach all that
// is inlined.
#pragma once

#include <stdexcept>
#include <string>

#define CPU_AVX2 [[gnu::target("avx2")]]
#define CPU_AVX512 [[gnu::target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")]]

namespace cpu {

// Throws std::invalid_argument for a name that is not of `instruction_sets()`.
void check_supported(const std::string& instruction_set);

inline std::invalid_argument no_dtype(const std::string& dtype) {
  return std::invalid_argument("the CPU engine has no parameters of dtype " + dtype);
}

}  // namespace cpu
