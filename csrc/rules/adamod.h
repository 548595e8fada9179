// AdaMod: what one element does in one step. Ding et al., arXiv 1910.12249, algorithm 1.
//
// Every operation below is IEEE, rounded once, in the order written: with contraction off, each
// compiler and each backend gives the same bits. Scalars come ready-made, one row per distinct
// (hyperparameters, step); adamod_fused/reference.py prepares them and says what each one is.
#pragma once

#include <cmath>

#include "../host_device.h"

template <typename T>
struct AdaMod {
  static constexpr const char* name = "adamod";
  static constexpr int num_states = 3;  // exp_avg, exp_avg_sq, exp_avg_lr

  struct Scalars {
    T grad_sign;  // -1 to maximize
    T beta1, one_minus_beta1;
    T beta2, one_minus_beta2;
    T beta3, one_minus_beta3;
    T eps;
    T step_size, denom_scale, update_scale;  // where the bias corrections sit: a, b, c
    T param_decay;                           // 1 - lr * weight_decay
  };

  HOST_DEVICE static void update(const Scalars& s, T& param, T grad, T& exp_avg, T& exp_avg_sq,
                                 T& exp_avg_lr) {
    grad = s.grad_sign * grad;
    exp_avg = s.beta1 * exp_avg + s.one_minus_beta1 * grad;
    exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * grad * grad;

    const T eta = s.step_size / (std::sqrt(exp_avg_sq) * s.denom_scale + s.eps);
    exp_avg_lr = s.beta3 * exp_avg_lr + s.one_minus_beta3 * eta;
    const T bounded = exp_avg_lr < eta ? exp_avg_lr : eta;

    param = param * s.param_decay - bounded * exp_avg * s.update_scale;
  }
};
