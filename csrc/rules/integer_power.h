// base^exponent by square and multiply: the same bits wherever float64 is IEEE, on a GPU too.
#pragma once

#include <cstdint>

#include "../host_device.h"

HOST_DEVICE double integer_power(double base, std::int64_t exponent) {
  double result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base *= base;
  }
  return result;
}
