// Memory for weights, values and scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace hfrt {

// No tensor of a 3D network comes near; beyond it, a hostile file.
constexpr int64_t kMostFloats = int64_t{1} << 33;

// Frees what `allocate` gave: a mapping of its own, or a part of the heap.
struct Release {
  void* base = nullptr;
  size_t bytes = 0;
  void operator()(float* p) const;
};
using Floats = std::unique_ptr<float[], Release>;
// `count` floats on a cache line's boundary. Throws std::invalid_argument if they cannot be had.
Floats allocate(int64_t count);

}  // namespace hfrt
