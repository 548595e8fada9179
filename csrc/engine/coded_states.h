// The states of one parameter twice: as codes, and as the values that they stand for. Engines make
// the one from the other, and know of each state only which kind of values it has.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../host_device.h"
#include "../rules/values.h"
#include "row.h"

struct CodedStates {
  int num_states;
  int bytes;  // of a code, 1 or 2
  Values kinds[max_states];
  void* codes[max_states];
  std::uint8_t* exponents;  // as Coded's
  void* values[max_states];
  std::int64_t numel;

  // Whether state k has a ninth bit, in the byte of the state before it.
  HOST_DEVICE bool borrows(int k) const { return bytes == 1 && kinds[k] == Values::safe_too_large; }
};

// Throws std::invalid_argument where there can be no such states.
inline void check(const CodedStates& states) {
  if (states.bytes != 1 && states.bytes != 2) {
    throw std::invalid_argument("a code takes 1 or 2 bytes, got " + std::to_string(states.bytes));
  }
  if (states.num_states < 1 || states.num_states > max_states) {
    throw std::invalid_argument("a parameter has 1 to " + std::to_string(max_states) +
                                " states, got " + std::to_string(states.num_states));
  }
  for (int k = 0; k < states.num_states; ++k) {
    const int kind = static_cast<int>(states.kinds[k]);
    if (kind < 0 || kind > static_cast<int>(Values::safe_too_small)) {
      throw std::invalid_argument("there is no kind of values " + std::to_string(kind));
    }
  }
  if (states.borrows(0)) {
    throw std::invalid_argument("the first state has no state before it to borrow a bit from");
  }
}
