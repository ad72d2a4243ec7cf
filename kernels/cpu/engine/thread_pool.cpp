#include "thread_pool.hpp"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hfrt {
namespace {

// Between two layers a worker waits actively; after this long it sleeps, and costs nothing.
constexpr auto kSpin = std::chrono::microseconds(60);

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits actively for `ready`, then gives up the processor between looks. False after kSpin if
// `may_stop`.
template <typename Ready>
bool spin(const Ready& ready, bool may_stop) {
  for (int i = 0; i < 64; ++i) {
    if (ready()) return true;
    relax();
  }
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
    if (std::chrono::steady_clock::now() - start > kSpin) {
      if (may_stop) return false;
      std::this_thread::yield();
    }
  }
}

}  // namespace

ThreadPool::ThreadPool(int threads) : parts_(static_cast<size_t>(threads)) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { worker(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    round_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& w : workers_) w.join();
}

void ThreadPool::share(int index) {
  const size_t n = parts_.size();
  for (size_t k = 0; k < n; ++k) {
    Part& part = parts_[(static_cast<size_t>(index) + k) % n];
    for (;;) {
      const int64_t begin = part.next.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= part.end) break;
      (*work_)(begin, begin + grain_ < part.end ? begin + grain_ : part.end, index);
    }
  }
}

void ThreadPool::worker(int index) {
  uint64_t seen = 0;
  for (;;) {
    const auto ready = [&] { return round_.load() != seen; };
    if (!spin(ready, true)) {
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.fetch_add(1);
      wake_.wait(lock, ready);
      asleep_.fetch_sub(1);
    }
    ++seen;
    if (stop_) return;
    share(index);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::run(int64_t count, int64_t grain, const Work& work) {
  if (count <= 0) return;
  if (workers_.empty() || count <= grain) {
    for (int64_t i = 0; i < count; i += grain) work(i, i + grain < count ? i + grain : count, 0);
    return;
  }
  work_ = &work;
  grain_ = grain;
  const auto n = static_cast<int64_t>(parts_.size());
  for (int64_t i = 0; i < n; ++i) {
    parts_[static_cast<size_t>(i)].next.store(count * i / n, std::memory_order_relaxed);
    parts_[static_cast<size_t>(i)].end = count * (i + 1) / n;
  }
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  // A worker announces that it sleeps before it looks at the round for the last time; both orders
  // are sequentially consistent, so one of the two sees the other.
  round_.fetch_add(1);
  if (asleep_.load() > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }
  share(0);
  spin([&] { return running_.load(std::memory_order_acquire) == 0; }, false);
}

}  // namespace hfrt
