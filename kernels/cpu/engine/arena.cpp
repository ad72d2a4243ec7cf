#include "arena.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace hfrt {

// Largest first, each at the lowest place that is free during its life.
ArenaPlan plan_arena(const std::vector<Lifetime>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return values[a].floats > values[b].floats; });
  ArenaPlan plan{std::vector<int64_t>(values.size(), 0), 0};
  for (auto here = order.begin(); here != order.end(); ++here) {
    const Lifetime& v = values[*here];
    std::vector<std::pair<int64_t, int64_t>> taken;  // (offset, floats)
    for (auto before = order.begin(); before != here; ++before) {
      const Lifetime& w = values[*before];
      if (w.first <= v.last && v.first <= w.last)
        taken.emplace_back(plan.offsets[*before], w.floats);
    }
    std::sort(taken.begin(), taken.end());
    int64_t place = 0;
    for (const auto& [start, floats] : taken) {
      if (place + v.floats <= start) break;
      const int64_t lines = (floats + kArenaLine - 1) / kArenaLine + 1;
      place = std::max(place, start + lines * kArenaLine);
    }
    plan.offsets[*here] = place;
    plan.floats = std::max(plan.floats, place + v.floats);
  }
  return plan;
}

}  // namespace hfrt
