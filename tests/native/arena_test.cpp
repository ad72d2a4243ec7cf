// The plan of the arena alone, without an engine: `make native-test`.
#include "../../kernels/cpu/engine/arena.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using hfrt::ArenaPlan;
using hfrt::kArenaLine;
using hfrt::Lifetime;

namespace {

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("arena: %s\n", what);
  std::exit(EXIT_FAILURE);
}

bool alive_together(const Lifetime& a, const Lifetime& b) {
  return a.first <= b.last && b.first <= a.last;
}

// What a value takes at most: whole lines, and one more.
int64_t share_of(const Lifetime& v) {
  return ((v.floats + kArenaLine - 1) / kArenaLine + 1) * kArenaLine;
}

// What holds for every plan. Returns it.
ArenaPlan checked(const std::vector<Lifetime>& values) {
  const ArenaPlan plan = hfrt::plan_arena(values);
  expect(plan.offsets.size() == values.size(), "not one offset for each value");
  int64_t sum = 0, end = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const int64_t from = plan.offsets[i], to = from + values[i].floats;
    expect(from >= 0 && from % kArenaLine == 0, "a value does not begin on a cache line");
    sum += share_of(values[i]);
    end = std::max(end, to);
    for (size_t j = 0; j < i; ++j)
      if (alive_together(values[i], values[j]))
        expect(to <= plan.offsets[j] || plan.offsets[j] + values[j].floats <= from,
               "two values that are alive at the same time overlap");
  }
  expect(plan.floats == end, "the total is not where the last value ends");
  expect(plan.floats <= sum, "the total is more than the values one after the other");
  return plan;
}

// Sizes around a cache line and much larger ones, equal ones among them; short and long lives.
std::vector<Lifetime> random_values(std::mt19937& random) {
  const auto number = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  const int steps = number(1, 30), longest = number(0, steps);
  std::vector<Lifetime> values(static_cast<size_t>(number(0, 40)));
  for (Lifetime& v : values) {
    v.floats = number(0, 3) ? 8 * number(0, 12) : number(0, 100'000);
    v.first = number(-1, steps);
    v.last = v.first + number(0, longest);
  }
  return values;
}

}  // namespace

int main() {
  std::mt19937 random(0);
  for (int round = 0; round < 20'000; ++round) checked(random_values(random));

  expect(checked({}).floats == 0, "no values, but an arena");
  // A chain: each value is made of the one before, so that never more than two are alive. A plan
  // that takes all for alive needs the sum; one that takes none for alive lets them overlap.
  std::vector<Lifetime> chain;
  for (int i = 0; i < 10; ++i) chain.push_back({1024, i, i + 1});
  expect(checked(chain).floats == 2 * 1024 + kArenaLine, "a chain needs two places");
  // One after the other: a single place.
  expect(checked({{1024, 0, 1}, {512, 2, 3}, {1024, 4, 4}}).floats == 1024, "one place is enough");
  // The last step of one value is the first of the next: the step reads one and writes the other.
  expect(checked({{64, 0, 3}, {64, 3, 5}}).floats == 2 * 64 + kArenaLine, "a step needs both");
  // A gap that is too short once the value begins on a cache line.
  checked({{40, 0, 1}, {40, 1, 10}, {24, 5, 10}, {24, 5, 10}});

  std::printf("arena: ok\n");
  return EXIT_SUCCESS;
}
