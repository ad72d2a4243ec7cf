// What the engine's sources share.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.hpp"

namespace hfrt {

[[noreturn]] inline void refuse(const std::string& why) { throw std::invalid_argument(why); }

inline std::string text(const Extent& e) {
  return "[" + std::to_string(e.c) + ", " + std::to_string(e.d) + ", " + std::to_string(e.h) +
         ", " + std::to_string(e.w) + "]";
}

inline int64_t product(std::initializer_list<int64_t> factors) {
  int64_t result = 1;
  for (int64_t f : factors)
    if (f < 0 || __builtin_mul_overflow(result, f, &result) || result > kMostFloats)
      refuse("a tensor of more than 2^33 numbers");
  return result;
}

inline bool same(const Extent& a, const Extent& b) {
  return a.c == b.c && a.d == b.d && a.h == b.h && a.w == b.w;
}

inline bool same_voxels(const Extent& a, const Extent& b) {
  return a.d == b.d && a.h == b.h && a.w == b.w;
}

inline int64_t filled(int64_t channels) { return blocks_of(channels) * kBlock; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool has(const std::vector<int>& values, int value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

inline void copy_floats(float* to, const float* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}
inline void copy_bytes(char* to, const char* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count));
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float from_bf16(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

// The number at `index` of memory with numbers of 4 (float32) or 2 bytes (bfloat16).
inline float get(const char* from, int64_t index, int64_t bytes) {
  if (bytes == 2) return from_bf16(reinterpret_cast<const uint16_t*>(from)[index]);
  return reinterpret_cast<const float*>(from)[index];
}
inline void put(char* to, int64_t index, int64_t bytes, float x) {
  if (bytes == 2)
    reinterpret_cast<uint16_t*>(to)[index] = to_bf16(x);
  else
    reinterpret_cast<float*>(to)[index] = x;
}

inline int64_t window_size(int64_t in, const Window& k, int axis, bool ceil = false) {
  const int64_t reach = k.dilation[axis] * (k.kernel[axis] - 1) + 1;
  const int64_t room = in + 2 * k.padding[axis] + k.more[axis] - reach;
  if (room < 0)
    refuse("a window of " + std::to_string(reach) + " voxels on an axis of " + std::to_string(in) +
           " with padding " + std::to_string(k.padding[axis]));
  int64_t size = room / k.stride[axis] + 1;
  if (ceil && room % k.stride[axis] != 0 &&
      size * k.stride[axis] < in + k.padding[axis])  // the last window starts inside
    ++size;
  return size;
}

inline void check(const Window& k) {
  for (int i = 0; i < 3; ++i) {
    const int64_t most = int64_t{1} << 20;
    if (k.kernel[i] < 1 || k.stride[i] < 1 || k.dilation[i] < 1 || k.padding[i] < 0 ||
        k.kernel[i] > most || k.stride[i] > most || k.dilation[i] > most || k.padding[i] > most ||
        k.padding[i] + k.more[i] < 0 || k.padding[i] + k.more[i] > most)
      refuse("kernel, stride and dilation must be 1 or more, padding 0 or more");
  }
}

// Volumes of so many channels may be plain between two steps.
constexpr int64_t kPlainChannels = 8;

struct Engine::Conv {
  StepKind kind = StepKind::gather;  // the kernel that computes it
  ConvArgs args;
  int in = -1, out = -1, second = -1, residual = -1, condition = -1, shortcut = -1;
  int64_t points = 0;  // Winograd: of a tile
  int64_t tasks = 0;
  // generated weights
  Array generator, bias_generator;
  int64_t conditions = 0;
  float *raw = nullptr, *packed = nullptr, *bias = nullptr;
  float* padded = nullptr;  // planar: the input with zeros around each channel
  std::vector<int64_t> shift;
  // Computed inside this step, into a ring of planes; see run_ring.
  std::shared_ptr<Conv> producer;
  // Does the same if the input is plain; see choose_plain.
  std::shared_ptr<Conv> planar;
  // Instead of itself; see conv_parts.cpp. A part's channels begin so many numbers after the
  // whole's.
  std::vector<std::shared_ptr<Conv>> parts;
  int64_t in_offset = 0, out_offset = 0;
  std::vector<int64_t> starts;
};

// Of a part: its first channel and their number, of the input and of the output.
struct Engine::Channels {
  int64_t in, inputs, out, outputs;
};

inline int64_t taps_of(const Window& window) {
  const int64_t* k = window.kernel;
  return product({k[0], k[1], k[2]});
}

// The points of a Winograd tile; 0 without a tile.
int64_t winograd_points(const ConvSpec& spec);

}  // namespace hfrt
