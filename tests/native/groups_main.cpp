// Steps a tensor of 8 groups by the CPU engine's groups alone. Prints, a line for each step, how
// many of them were served: one that is refused is stepped by a slower way, with the same bits.
// Arguments: baseline or avx512, bytes of a code (1 or 2), steps, and the element whose gradient is
// infinite in the last step (-1: none).
#include <cstdint>
#include <iostream>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/engine/cpu_block.h"
#include "../../csrc/engine/cpu_group.h"
#include "../../csrc/engine/cpu_targets.h"
#include "../../csrc/engine/cpu_vectors.h"
#include "../../csrc/engine/storage.h"
#include "../../csrc/rules/adamod.h"

namespace {

using Rule = AdaMod<float>;
constexpr int groups = 8, numel = groups * cpu::elements_per_group;

template <class Elements, class Vectors>
HOST_DEVICE int served(Elements elements, const Rule::Scalars& scalars) {
  cpu::BlockGroup<Elements, Vectors> group;
  int count = 0;
  for (int i = 0; i < groups; ++i) {
    count += group.update(elements, scalars, 1.0f, cpu::blocks_per_group,
                          std::make_integer_sequence<int, Rule::num_states>());
    elements.advance(cpu::elements_per_group);
  }
  return count;
}

template <class Elements>
int served_baseline(Elements elements, const Rule::Scalars& scalars) {
  return served<Elements, cpu::Portable>(elements, scalars);
}

#ifdef __x86_64__
template <class Elements>
CPU_AVX512 int served_avx512(Elements elements, const Rule::Scalars& scalars) {
  return served<Elements, cpu::Avx512>(elements, scalars);
}
#endif

template <int bytes>
void run(const std::string& instruction_set, std::int64_t steps, int infinite) {
  using Elements = cpu::Elements<Rule, Float32, bytes, WeightFormat::plain>;
  auto* step_groups = served_baseline<Elements>;
#ifdef __x86_64__
  if (instruction_set == "avx512") step_groups = served_avx512<Elements>;
#endif

  std::mt19937 generator(0);
  std::normal_distribution<float> normal;
  std::vector<float> param(numel), grad(numel);
  std::vector<typename Elements::State> codes[Rule::num_states];
  std::vector<std::uint8_t> exponents(numel / codes::block * Rule::num_states, 1);
  Row row{param.data(), grad.data(), {}, numel, 0, 0};
  for (int k = 0; k < Rule::num_states; ++k) {
    codes[k].resize(numel);
    row.state[k] = codes[k].data();
  }
  const Coded coded{exponents.data(), nullptr, 0, 1};

  for (std::int64_t step = 1; step <= steps; ++step) {
    for (float& g : grad) g = 1e-3f * normal(generator);
    for (int i = 0; i < codes::block; ++i) grad[i] = 0.0f;  // a block that never learns
    if (step == steps && infinite >= 0) grad[infinite] = std::numeric_limits<float>::infinity();
    const auto scalars = Rule::prepare(step, {1e-3, 0.9, 0.999, 0.999, 1e-8, 0.0, 0, 0});
    std::cout << step_groups(Elements(row, coded, 0), scalars) << '\n';
  }
}

}  // namespace

int main(int, char** arguments) {
  const std::int64_t steps = std::stoll(arguments[3]);
  const int infinite = std::stoi(arguments[4]);
  const auto run_it = std::stoi(arguments[2]) == 1 ? run<1> : run<2>;
  run_it(arguments[1], steps, infinite);
}
