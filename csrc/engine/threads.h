// Threads for the CPU engine: those of the OpenMP runtime that torch brought, or else its own.
//
// Sharing matters: an OpenMP thread spins for milliseconds after its work, waiting for more, and a
// pool beside it would have to fight for the core right after an operator of torch's had run.
#pragma once

#include <functional>

// Runs `task` on `threads` threads at once, the caller among them, and returns when all are done;
// each runs it in the engine's own floating-point environment. Calls from several threads are safe,
// and so are calls after a fork. `task` must not throw.
void run_on_threads(int threads, const std::function<void()>& task);
