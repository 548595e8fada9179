#include "thread_pool.h"

#include <unistd.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace {

class ThreadPool {
 public:
  void run(int threads, const std::function<void()>& task) {
    const std::lock_guard<std::mutex> turn(turn_);
    const int helpers = threads - 1;
    while (size_ < helpers) std::thread(&ThreadPool::work, this, size_++).detach();
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

  std::mutex turn_;   // one caller at a time
  std::mutex mutex_;  // guards all below
  std::condition_variable wake_, done_;
  const std::function<void()>* task_ = nullptr;
  int size_ = 0, helpers_ = 0, running_ = 0;
  std::uint64_t round_ = 0;
};

// A forked child inherits the pool without its threads, so it gets a pool of its own. Pools are
// never destroyed: their sleeping threads must not outlive the memory that they wait on.
ThreadPool& pool_of_this_process() {
  static std::mutex mutex;
  static ThreadPool* pool = nullptr;
  static pid_t owner = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  if (owner != getpid()) {
    pool = new ThreadPool;
    owner = getpid();
  }
  return *pool;
}

}  // namespace

void run_on_threads(int threads, const std::function<void()>& task) {
  if (threads <= 1) {
    task();
  } else {
    pool_of_this_process().run(threads, task);
  }
}
