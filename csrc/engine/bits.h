// One type's bits as another's.
#pragma once

#include <cstring>

#include "../host_device.h"

template <typename To, typename From>
HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps every bit");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
