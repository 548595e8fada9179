#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "float_environment.h"

namespace {

using Task = std::function<void()>;

// The entry point of libgomp, which LLVM's and Intel's runtimes have too: runs `function(data)` on
// each thread of a team. Looked up, not linked: the one that counts is torch's, whatever its file.
using GompParallel = void (*)(void (*function)(void*), void* data, unsigned threads,
                              unsigned flags);

GompParallel find_openmp() {
  return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

class ThreadPool {
 public:
  void run(int threads, const Task& task) {
    const std::lock_guard<std::mutex> turn(turn_);
    const int helpers = threads - 1;
    for (; size_ < helpers; ++size_) std::thread(&ThreadPool::work, this, size_).detach();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      task_ = &task;
      helpers_ = running_ = helpers;
      ++round_;
    }
    wake_.notify_all();
    task();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void work(int index) {
    std::uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return round_ != seen; });
      seen = round_;
      if (index >= helpers_) continue;
      lock.unlock();
      (*task_)();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;  // one caller at a time, who alone starts threads
  int size_ = 0;
  std::mutex mutex_;  // guards all below
  std::condition_variable wake_, done_;
  const Task* task_ = nullptr;
  int helpers_ = 0, running_ = 0;
  std::uint64_t round_ = 0;
};

// Pools are never destroyed: their sleeping threads must not outlive the memory that they wait on.
std::atomic<ThreadPool*> pool{nullptr};
std::atomic<bool> is_forked{false};

// A forked child has the memory of a pool or of OpenMP's team, and none of their threads. Process
// ids would not tell: a child in a new PID namespace may have its parent's.
const int registered = pthread_atfork(nullptr, nullptr, [] {
  is_forked = true;
  pool = nullptr;
});

ThreadPool& pool_of_this_process() {
  ThreadPool* found = pool;
  if (found == nullptr) {
    auto* const made = new ThreadPool;  // no threads yet
    if (pool.compare_exchange_strong(found, made)) return *made;
    delete made;
  }
  return *found;
}

}  // namespace

void run_on_threads(int threads, const Task& task) {
  static const GompParallel openmp = find_openmp();
  const Task whole = [&task] { in_float_environment(task); };
  if (threads <= 1) {
    whole();
  } else if (openmp != nullptr && !is_forked) {
    openmp([](void* data) { (*static_cast<const Task*>(data))(); }, const_cast<Task*>(&whole),
           static_cast<unsigned>(threads), 0);
  } else {
    pool_of_this_process().run(threads, whole);
  }
}
