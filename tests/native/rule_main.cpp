// Runs a rule alone, without engine, table or Python: numbers in, numbers out, as hexadecimal
// floats. Input lines: the scalars in their order, then param, grad and the states.
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "../../csrc/rules/adamod.h"
#include "../../csrc/rules/step_element.h"

template <typename T>
int run() {
  constexpr std::size_t num_scalars = sizeof(typename AdaMod<T>::Scalars) / sizeof(T);
  std::vector<T> numbers;
  for (std::string word; std::cin >> word;)
    numbers.push_back(static_cast<T>(std::strtod(word.c_str(), nullptr)));
  for (std::size_t i = 0; i + num_scalars + 5 <= numbers.size(); i += num_scalars + 5) {
    const T* n = numbers.data() + i;
    const typename AdaMod<T>::Scalars s{n[0], n[1], n[2], n[3],  n[4],  n[5], n[6],
                                        n[7], n[8], n[9], n[10], n[11], n[12]};
    T param = n[13], exp_avg = n[15], exp_avg_sq = n[16], exp_avg_lr = n[17];
    step_element<AdaMod<T>>(s, param, n[14], exp_avg, exp_avg_sq, exp_avg_lr);
    for (const T result : {param, exp_avg, exp_avg_sq, exp_avg_lr}) {
      std::cout << std::hexfloat << static_cast<double>(result) << ' ';
    }
    std::cout << '\n';
  }
  return 0;
}

int main(int argc, char** argv) {
  return argc > 1 && std::string(argv[1]) == "float" ? run<float>() : run<double>();
}
