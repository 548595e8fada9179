// Threads for the CPU engine: started once, asleep between steps, safe to meet after a fork.
#pragma once

#include <functional>

// Runs `task` on `threads` threads at once, the caller among them, and returns when all are done.
// Calls from several threads take turns. `task` must not throw.
void run_on_threads(int threads, const std::function<void()>& task);
