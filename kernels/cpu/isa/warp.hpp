// Samples of a volume that was moved: trilinear, of the brain alone.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.hpp"
#include "training.hpp"

namespace {

// Of a row of new voxels: the first of the eight old ones around each, and the way from there to
// the second along each axis, 0 to 1.
struct WarpRow {
  explicit WarpRow(int64_t size)
      : first(static_cast<size_t>((size + kLanes - 1) / kLanes * kLanes)) {
    for (auto& axis : part) axis.resize(first.size());
  }
  std::vector<int32_t> first;
  std::vector<float> part[3];
};

inline void find_row(const hfrt::Warp& a, int64_t sample, int64_t d, int64_t h, WarpRow& row) {
  const int64_t sizes[] = {a.d, a.h, a.w};
  const float* shift = a.shift + 3 * sample;
  int32_t* first = row.first.data();
  std::fill(first, first + a.w, 0);
  for (int axis = 0; axis < 3; ++axis) {
    const float* m = a.matrix + 9 * sample + 3 * axis;
    const auto half = [&](int of) { return static_cast<float>(sizes[of] - 1) / 2; };
    const float start = m[0] * (static_cast<float>(d) - half(0)) +
                        m[1] * (static_cast<float>(h) - half(1)) + shift[axis] + half(axis);
    const float step = m[2], middle = half(2), last = static_cast<float>(sizes[axis] - 1);
    const float most = std::max(last - 1, 0.0f);
    const auto stride = static_cast<int32_t>(axis == 0 ? a.h * a.w : axis == 1 ? a.w : 1);
    const float* field =
        a.elastic ? a.elastic + (((3 * sample + axis) * a.d + d) * a.h + h) * a.w : nullptr;
    float* part = row.part[axis].data();
    for (int64_t w = 0; w < a.w; ++w) part[w] = start + step * (static_cast<float>(w) - middle);
    if (field)
      for (int64_t w = 0; w < a.w; ++w) part[w] += field[w];
    for (int64_t w = 0; w < a.w; ++w) {
      // In this order no NaN comes through: what is read lies in the volume.
      const float at = std::min(std::max(0.0f, part[w]), last);
      // Not negative: to cut is to round down.
      const auto low = static_cast<int32_t>(std::min(at, most));
      part[w] = at - static_cast<float>(low);
      first[w] += low * stride;
    }
  }
}

HFRT_INLINE V between(V a, V b, V part) { return fma(part, b - a, a); }

HFRT_INLINE V is_brain(V a) { return if_positive(larger(a, zero() - a), broadcast(1.0f), zero()); }

// The new voxels of a run of at most kLanes, from `w` on: values and inside, all kLanes of them.
HFRT_INLINE void warp_run(const hfrt::Warp& a, const float* volume, const WarpRow& row, int64_t w,
                          int64_t count, float* values, float* inside) {
  // To the second voxel along each axis; along one of a single voxel it is the first.
  const int64_t down = a.d > 1 ? a.h * a.w : 0, across = a.h > 1 ? a.w : 0, right = a.w > 1;
  const int64_t from[] = {0, across, down, down + across};
  alignas(64) float read[4][2][kLanes];
  const int32_t* first = row.first.data() + w;
  for (int64_t i = 0; i < count; ++i) {
    const float* at = volume + first[i];
    for (int k = 0; k < 4; ++k) {
      read[k][0][i] = at[from[k]];
      read[k][1][i] = at[from[k] + right];
    }
  }
  for (int64_t i = count; i < kLanes; ++i)
    for (auto& pair : read) pair[0][i] = pair[1][i] = 0;
  const V across_d = load(row.part[0].data() + w), across_h = load(row.part[1].data() + w),
          across_w = load(row.part[2].data() + w);
  V value[4], weight[4];
  for (int k = 0; k < 4; ++k) {
    const V low = load(read[k][0]), high = load(read[k][1]);
    value[k] = between(low, high, across_w);
    weight[k] = between(is_brain(low), is_brain(high), across_w);
  }
  const auto join = [&](const V* of) HFRT_LAMBDA {
    return between(between(of[0], of[1], across_h), between(of[2], of[3], across_h), across_d);
  };
  const V brain = join(weight), half = broadcast(0.5f);
  const V mostly = if_positive(brain - half, broadcast(1.0f), zero());
  store(inside, mostly);
  store(values, join(value) / larger(brain, half) * mostly);
}

// Tasks are slices: of all samples' D.
inline void warp(const hfrt::Warp& a, float* values, float* inside, int64_t begin, int64_t end) {
  WarpRow row(a.w);
  const int64_t voxels = a.d * a.h * a.w;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / a.d, d = task % a.d;
    for (int64_t h = 0; h < a.h; ++h) {
      find_row(a, sample, d, h, row);
      for (int64_t c = 0; c < a.channels; ++c) {
        const float* volume = a.images + (sample * a.channels + c) * voxels;
        const int64_t to = volume - a.images + (d * a.h + h) * a.w;
        for (int64_t w = 0; w < a.w; w += kLanes) {
          const int64_t count = std::min<int64_t>(kLanes, a.w - w);
          float value[kLanes], brain[kLanes];
          warp_run(a, volume, row, w, count, value, brain);
          std::copy_n(value, count, values + to + w);
          std::copy_n(brain, count, inside + to + w);
        }
      }
    }
  }
}

}  // namespace
