// Where the engine's values stand in one block of memory.
#pragma once

#include <cstdint>
#include <vector>

namespace hfrt {

// Floats of a cache line: every value begins on one, and leaves one free behind the value before.
constexpr int64_t kArenaLine = 16;

// A value that is alive from step `first` to step `last`, both included; never if `last` < `first`.
struct Lifetime {
  int64_t floats = 0;
  int first = 0, last = 0;
};

struct ArenaPlan {
  std::vector<int64_t> offsets;  // floats from the arena's start, one per value
  int64_t floats = 0;            // of the whole arena
};

// Values that are alive at the same time do not overlap; others may share their place. The plan
// depends on the arguments alone.
ArenaPlan plan_arena(const std::vector<Lifetime>& values);

}  // namespace hfrt
