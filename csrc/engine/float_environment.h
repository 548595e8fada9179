// The floating-point environment that the engine computes in, whatever the caller has set.
#pragma once

#include <functional>

// Runs `task` with rounding to nearest, subnormals kept and no trap, and then restores what the
// calling thread had. Libraries built with -Ofast, torch.set_flush_denormal and fesetround change
// these settings for a thread, and so a step's bits would depend on the thread that computes them.
void in_float_environment(const std::function<void()>& task);
