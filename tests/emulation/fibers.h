// Runs the threads of a block on the host, one at a time, each able to wait for all others or for
// those of its warp.
//
// Threads run one after the other on one fiber, as plain calls, until one comes to a barrier: it
// is parked where it stands, and the next threads run on a fiber of their own. When all have come
// to a barrier or to their end, the parked ones go on in turn: those at a barrier of their warp
// before any at one of the block. A kernel without a barrier so costs one fiber, whatever the
// block.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

// AddressSanitizer has to be told when the stack is another (sanitizer/common_interface_defs.h).
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

class Fibers {
 public:
  // Calls run(i) for all i < count; `wait` may be called in it.
  void run_all(unsigned count, const std::function<void(unsigned)>& run) {
    run_ = &run;
    count_ = count;
    next_ = 0;
    while (next_ < count_ || !parked_.empty()) {
      if (next_ < count_) {
        enter(start());
        continue;
      }
      std::vector<Parked> waiting = released();
      for (const Parked& parked : waiting) {
        thread_ = parked.thread;
        enter(parked.fiber);
      }
    }
    run_ = nullptr;
  }

  enum class Scope { warp, block };

  // Parks the running thread until every other one of the scope waits too or has ended; all that
  // wait must name the same barrier. Returns the thread's number, as others have run meanwhile.
  unsigned wait(const void* barrier, Scope scope) {
    parked_.push_back({current_, thread_, barrier, scope});
    leave(false);
    return thread_;
  }

 private:
  // Enough for kernels of any frame here, with what sanitizers add; untouched pages cost nothing.
  static constexpr std::size_t stack_bytes = 256 * 1024;

  struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    void* shadow = nullptr;  // AddressSanitizer's, while the fiber does not run
  };
  struct Parked {
    Fiber* fiber;
    unsigned thread;
    const void* barrier;
    Scope scope;
  };

  // The parked threads that may go on, when none runs.
  std::vector<Parked> released() {
    const auto in_warp = [](const Parked& p) { return p.scope == Scope::warp; };
    const auto blocked = std::stable_partition(parked_.begin(), parked_.end(), in_warp);
    const bool warps_first = blocked != parked_.begin();
    const auto end = warps_first ? blocked : parked_.end();
    std::map<unsigned, const void*> barriers;  // by warp
    for (const Parked& p : parked_) {
      const unsigned unit = warps_first ? p.thread / 32 : 0;
      const bool first = barriers.emplace(unit, p.barrier).second;
      if (!first && barriers[unit] != p.barrier) fail("threads that meet wait for two barriers");
    }
    std::vector<Parked> waiting(parked_.begin(), end);
    parked_.erase(parked_.begin(), end);
    return waiting;
  }

  [[noreturn]] static void fail(const char* message) {
    std::fprintf(stderr, "emulation: %s\n", message);
    std::abort();
  }

  Fiber* start() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      idle_.push_back(fibers_.back().get());
    }
    Fiber* const fiber = idle_.back();
    idle_.pop_back();
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(fiber->stack.get(), stack_bytes);  // an ended fiber's frames
#endif
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = stack_bytes;
    fiber->context.uc_link = nullptr;
    const auto address = reinterpret_cast<std::size_t>(this);  // makecontext passes on ints alone
    makecontext(&fiber->context, reinterpret_cast<void (*)()>(&Fibers::body), 2,
                static_cast<unsigned>(address >> 32), static_cast<unsigned>(address));
    return fiber;
  }

  static void body(unsigned high, unsigned low) {
    auto* const self = reinterpret_cast<Fibers*>(std::size_t{high} << 32 | low);
    self->arrived(nullptr);
    while (self->next_ < self->count_) {
      self->thread_ = self->next_++;
      (*self->run_)(self->thread_);
    }
    self->leave(true);
  }

  void enter(Fiber* fiber) {
    current_ = fiber;
#ifdef __SANITIZE_ADDRESS__
    void* shadow = nullptr;
    __sanitizer_start_switch_fiber(&shadow, fiber->stack.get(), stack_bytes);
#endif
    swapcontext(&host_, &fiber->context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(shadow, nullptr, nullptr);
#endif
  }

  void leave(bool ended) {
    Fiber* const fiber = current_;
    if (ended) idle_.push_back(fiber);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(ended ? nullptr : &fiber->shadow, host_stack_, host_bytes_);
#endif
    swapcontext(&fiber->context, &host_);
    arrived(fiber->shadow);
  }

  void arrived([[maybe_unused]] void* shadow) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(shadow, &host_stack_, &host_bytes_);
#endif
  }

  const std::function<void(unsigned)>* run_ = nullptr;
  unsigned count_ = 0, next_ = 0, thread_ = 0;
  Fiber* current_ = nullptr;
  ucontext_t host_{};
  [[maybe_unused]] const void* host_stack_ = nullptr;
  [[maybe_unused]] std::size_t host_bytes_ = 0;
  std::vector<Parked> parked_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
};
