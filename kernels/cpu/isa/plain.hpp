// Volumes of few channels as they come from the caller, [C][voxels] float32: in blocks most lanes
// would be empty. A task is a run of `hfrt::kRun` voxels of one channel.
#pragma once

#include "elementwise.hpp"
#include "reduce.hpp"

namespace {

// f(channel, first voxel, how many of up to 16), vector by vector.
template <typename F>
HFRT_INLINE void each_run(int64_t voxels, int64_t begin, int64_t end, const F& f) {
  const int64_t runs = (voxels + hfrt::kRun - 1) / hfrt::kRun;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t channel = task / runs, first = task % runs * hfrt::kRun;
    const int64_t left = voxels - first, n = left < hfrt::kRun ? left : hfrt::kRun;
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) f(channel, first + i, kLanes);
    if (i < n) f(channel, first + i, n - i);
  }
}

// An activation as channel c has it, for a vector of its voxels.
HFRT_INLINE Activation of_channel(const Activation& act, int64_t c) {
  Activation one = act;
  if (act.kind == Act::prelu) one.kind = Act::leaky_relu, one.alpha = act.slope[c];
  return one;
}

void affine_plain(const hfrt::AffineArgs& a, int64_t begin, int64_t end) {
  const auto* x = static_cast<const float*>(a.in);
  auto* y = static_cast<float*>(a.out);
  each_run(a.voxels, begin, end, [&](int64_t c, int64_t v, int64_t n) HFRT_LAMBDA {
    V r = load_some(x + c * a.voxels + v, n);
    if (a.centre) r = r - broadcast(a.centre[c]);
    if (a.scale) r = fma(r, broadcast(a.scale[c]), broadcast(a.shift[c]));
    store_some(y + c * a.voxels + v, activate(r, of_channel(a.act, c), 0), n);
  });
}

HFRT_INLINE V operand_plain(const hfrt::Operand& x, int64_t c, int64_t v, int64_t n,
                            int64_t voxels) {
  const auto* at = static_cast<const float*>(x.at);
  switch (x.spread) {
    case hfrt::Spread::channels: return broadcast(at[c]);
    case hfrt::Spread::voxels: return load_some(at + v, n);
    case hfrt::Spread::everywhere: return broadcast(*at);
    default: return load_some(at + c * voxels + v, n);
  }
}

void binary_plain(const hfrt::PairArgs& a, int64_t begin, int64_t end) {
  auto* y = static_cast<float*>(a.out);
  each_run(a.voxels, begin, end, [&](int64_t c, int64_t v, int64_t n) HFRT_LAMBDA {
    const V p = operand_plain(a.first, c, v, n, a.voxels);
    const V q = operand_plain(a.second, c, v, n, a.voxels);
    V r = p;
    with_pair(a.pair, [&](const auto& f) HFRT_LAMBDA { r = f(p, q); });
    store_some(y + c * a.voxels + v, activate(r, of_channel(a.act, c), 0), n);
  });
}

HFRT_INLINE float lanes_sum(V x) {
  alignas(64) float lanes[kLanes];
  store(lanes, x);
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += lanes[i];
  return sum;
}

// As `moments`: out [task][2], mean and sum of squared deviations of a run.
void moments_plain(const float* x, int64_t voxels, float* out, int64_t begin, int64_t end) {
  const int64_t runs = (voxels + hfrt::kRun - 1) / hfrt::kRun;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % runs * hfrt::kRun;
    const int64_t n = voxels - first < hfrt::kRun ? voxels - first : hfrt::kRun;
    const float* run = x + task / runs * voxels + first;
    V sum[4] = {zero(), zero(), zero(), zero()}, squares[4] = {zero(), zero(), zero(), zero()};
    const auto part = [&](int64_t i) { return n - i < kLanes ? n - i : int64_t{kLanes}; };
    for (int64_t i = 0; i < n; i += kLanes)
      sum[i / kLanes % 4] = sum[i / kLanes % 4] + load_some(run + i, part(i));
    const float mean = lanes_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / static_cast<float>(n);
    for (int64_t i = 0; i < n; i += kLanes) {
      const V d =
          if_positive(first_lanes(part(i)), load_some(run + i, part(i)) - broadcast(mean), zero());
      squares[i / kLanes % 4] = fma(d, d, squares[i / kLanes % 4]);
    }
    out[2 * task] = mean;
    out[2 * task + 1] = lanes_sum((squares[0] + squares[1]) + (squares[2] + squares[3]));
  }
}

// As `blend`. A task is one row (d, h) of one channel of the result. scratch: a row of the input.
void blend_plain(const hfrt::BlendArgs& a, int64_t begin, int64_t end, float* scratch) {
  const int64_t width = a.out_extent.w;
  for (int64_t task = begin; task < end; ++task) {
    blend_rows<1>(a, static_cast<const float*>(a.in), task, scratch);
    float* to = static_cast<float*>(a.out) + task * width;
    for (int64_t w = 0; w < width; ++w) {
      const float x = scratch[a.low[2][w]], pw = a.part[2][w];
      to[w] = pw == 0 ? x : x * (1.0f - pw) + scratch[a.high[2][w]] * pw;
    }
  }
}

}  // namespace
