// A fixed number of threads that share numbered tasks. Each starts with a part of its own, so that
// from layer to layer it finds in its cache what it wrote there; one that is done early takes from
// the others. Which thread does a task is thus left to chance; a task must not depend on it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace hfrt {

class ThreadPool {
 public:
  // The caller of `run` is one of the `threads`.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(begin, end, thread) on ranges that cover 0..count, at most `grain` tasks each; the
  // thread is a number below `threads()`. Returns when all are done. One caller at a time. `work`
  // must not throw.
  using Work = std::function<void(int64_t begin, int64_t end, int thread)>;
  void run(int64_t count, int64_t grain, const Work& work);

 private:
  void worker(int index);
  void share(int index);

  struct alignas(128) Part {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  std::vector<Part> parts_;
  std::vector<std::thread> workers_;
  const Work* work_ = nullptr;
  int64_t grain_ = 1;
  std::atomic<int> running_{0};
  std::atomic<uint64_t> round_{0};
  std::atomic<int> asleep_{0};
  bool stop_ = false;
  std::mutex mutex_;
  std::condition_variable wake_;
};

}  // namespace hfrt
