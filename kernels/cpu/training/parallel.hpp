// Numbered tasks on the threads of the caller's own runtime.
#pragma once

#include <cstdint>
#include <functional>

namespace hfrt {

// OpenMP's entry, GOMP_parallel: fn(data) on `threads` threads at once. Between two operations
// PyTorch's threads wait actively; others beside them would wait for a core.
using Team = void (*)(void (*fn)(void*), void* data, unsigned threads, unsigned flags);
void set_team(Team team);

// Calls work(begin, end) on ranges that cover 0..count, at most `grain` tasks each. Which thread
// does a task is left to chance; a task must not depend on it. Without a team, with threads of its
// own. `work` must not throw.
void parallel(int threads, int64_t count, int64_t grain,
              const std::function<void(int64_t begin, int64_t end)>& work);

}  // namespace hfrt
