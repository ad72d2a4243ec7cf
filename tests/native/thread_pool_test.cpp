// The thread pool alone, for ThreadSanitizer: `make sanitize`.
#include "../../kernels/cpu/engine/thread_pool.hpp"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

int main() {
  for (int threads : {1, 2, 3, 8}) {
    hfrt::ThreadPool pool(threads);
    // Plain integers: a task that is done twice, or is not seen by the caller, is a data race.
    for (int round = 0; round < 2000; ++round) {
      const int64_t count = round % 37, grain = 1 + round % 5;
      std::vector<int> done(static_cast<size_t>(count), 0);
      std::vector<int> busy(static_cast<size_t>(threads), 0);
      pool.run(count, grain, [&](int64_t begin, int64_t end, int thread) {
        ++busy[static_cast<size_t>(thread)];
        for (int64_t i = begin; i < end; ++i) ++done[static_cast<size_t>(i)];
      });
      for (int n : done)
        if (n != 1) {
          std::printf("a task was done %d times\n", n);
          return EXIT_FAILURE;
        }
      // Now and then long enough for the workers to fall asleep.
      if (round % 400 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  std::printf("thread pool: ok\n");
  return EXIT_SUCCESS;
}
