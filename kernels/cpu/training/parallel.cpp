#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace hfrt {
namespace {

std::atomic<Team> team_of_caller{nullptr};

struct Shared {
  const std::function<void(int64_t, int64_t)>& work;
  int64_t count, grain;
  std::atomic<int64_t> next{0};
};

void take(void* data) {
  auto& shared = *static_cast<Shared*>(data);
  for (;;) {
    const int64_t begin = shared.next.fetch_add(shared.grain, std::memory_order_relaxed);
    if (begin >= shared.count) return;
    shared.work(begin, std::min(begin + shared.grain, shared.count));
  }
}

}  // namespace

void set_team(Team team) { team_of_caller.store(team); }

void parallel(int threads, int64_t count, int64_t grain,
              const std::function<void(int64_t begin, int64_t end)>& work) {
  Shared shared{work, count, grain};
  const int64_t useful = std::min<int64_t>(threads, (count + grain - 1) / grain);
  if (useful <= 1) return take(&shared);
  if (const Team team = team_of_caller.load())
    return team(take, &shared, static_cast<unsigned>(useful), 0);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < useful; ++i) others.emplace_back(take, &shared);
  take(&shared);
  for (auto& thread : others) thread.join();
}

}  // namespace hfrt
