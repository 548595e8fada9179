// One step of one element by any rule. A rule computes its states and the update; weight decay and
// the write of the parameter are the same for all rules, and are here.
#pragma once

#include "../host_device.h"

// Decoupled weight decay takes `weight_decay_rate` = lr * weight_decay of the parameter off, in one
// sum with the update, so that the parameter is rounded once. The factor 1 - lr * weight_decay
// would be off by up to 3e-8 in float32, which for a small lr is a large part of the decay. A rate
// of 0 is not multiplied: 0 * inf is NaN, and an infinite parameter stays infinite.
template <typename T>
HOST_DEVICE T apply_update(T weight_decay_rate, T param, T update) {
  return param - (weight_decay_rate != 0 ? weight_decay_rate * param + update : update);
}

template <class Rule, typename T, typename... States>
HOST_DEVICE void step_element(const typename Rule::Scalars& scalars, T& param, T grad,
                              States&... states) {
  const T update = Rule::update(scalars, grad, states...);
  param = apply_update(scalars.weight_decay_rate, param, update);
}
