// AdaMod: what one element does in one step. Ding et al., arXiv 1910.12249, algorithm 1.
//
// Every operation below is IEEE, rounded once, in the order written: with contraction off, each
// compiler and each backend gives the same bits. Scalars are prepared once per distinct
// (hyperparameters, step), in float64; adamod_fused/reference.py says what each one is.
#pragma once

#include <cmath>

#include "../host_device.h"
#include "integer_power.h"
#include "observation.h"
#include "values.h"

template <typename T>
struct AdaMod {
  static constexpr const char* name = "adamod";
  static constexpr int num_states = 3;  // exp_avg, exp_avg_sq, exp_avg_lr

  // A second moment too large makes a step too short, and so does a bound too small.
  static constexpr Values values[num_states] = {Values::of_both_signs, Values::safe_too_large,
                                                Values::safe_too_small};

  struct Scalars {
    T grad_sign;  // -1 to maximize
    T beta1, one_minus_beta1;
    T beta2, one_minus_beta2;
    T beta3, one_minus_beta3;
    T eps;
    T step_size, denom_scale, update_scale;  // where the bias corrections sit: a, b, c
    T weight_decay_rate;                     // lr * weight_decay
    T step;                                  // the number of this step, the first being 1
  };

  // What a param group sets, in float64.
  struct Hyperparameters {
    double lr, beta1, beta2, beta3, eps, weight_decay;
    double maximize, released;  // 0 or 1; released: the variant of the authors' code
  };

  // The scalars of a step, the first being 1: operation for operation those of reference.py.
  HOST_DEVICE static Scalars prepare(std::int64_t step, const Hyperparameters& h) {
    const double bias_correction1 = 1 - integer_power(h.beta1, step);
    const double bias_correction2 = 1 - integer_power(h.beta2, step);
    double step_size = h.lr, denom_scale = 1, update_scale = 1;
    if (h.released != 0) {
      step_size = h.lr * std::sqrt(bias_correction2) / bias_correction1;
    } else {
      denom_scale = 1 / std::sqrt(bias_correction2);
      update_scale = 1 / bias_correction1;
    }
    Scalars s;
    s.grad_sign = static_cast<T>(h.maximize != 0 ? -1 : 1);
    s.beta1 = static_cast<T>(h.beta1);
    s.one_minus_beta1 = static_cast<T>(1 - h.beta1);
    s.beta2 = static_cast<T>(h.beta2);
    s.one_minus_beta2 = static_cast<T>(1 - h.beta2);
    s.beta3 = static_cast<T>(h.beta3);
    s.one_minus_beta3 = static_cast<T>(1 - h.beta3);
    s.eps = static_cast<T>(h.eps);
    s.step_size = static_cast<T>(step_size);
    s.denom_scale = static_cast<T>(denom_scale);
    s.update_scale = static_cast<T>(update_scale);
    s.weight_decay_rate = static_cast<T>(h.lr * h.weight_decay);
    s.step = static_cast<T>(step);
    return s;
  }

  // Updates the states; returns what the step takes off the parameter, weight decay apart.
  HOST_DEVICE static T update(const Scalars& s, T grad, T& exp_avg, T& exp_avg_sq, T& exp_avg_lr) {
    grad = s.grad_sign * grad;
    exp_avg = s.beta1 * exp_avg + s.one_minus_beta1 * grad;
    exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * grad * grad;

    const T eta = adaptive_rate(s, exp_avg_sq);
    exp_avg_lr = s.beta3 * exp_avg_lr + s.one_minus_beta3 * eta;

    return bounded(eta, exp_avg_lr) * exp_avg * s.update_scale;
  }

  // What a step did to an element, from the states that it left.
  HOST_DEVICE static Observation<T> observe(const Scalars& s, T exp_avg, T exp_avg_sq,
                                            T exp_avg_lr) {
    const T eta = adaptive_rate(s, exp_avg_sq);
    const T rate = bounded(eta, exp_avg_lr);
    return {eta, rate, rate * exp_avg * s.update_scale, exp_avg_sq};
  }

 private:
  HOST_DEVICE static T adaptive_rate(const Scalars& s, T exp_avg_sq) {
    return s.step_size / (std::sqrt(exp_avg_sq) * s.denom_scale + s.eps);
  }

  HOST_DEVICE static T bounded(T eta, T exp_avg_lr) { return exp_avg_lr < eta ? exp_avg_lr : eta; }
};
