// 3x3x3 convolution of few channels, stride 1, padding 1, by Winograd's F(4x4x4, 3x3x3): lanes are
// tiles, so that none is spent on channels that are not there. Input and shortcut are `Phases`;
// there every load and store is of 16 neighbouring tiles.
#pragma once

#include "activation.hpp"
#include "kernels.hpp"
#include "winograd_filter.hpp"

namespace {

constexpr int kNarrowGroup = hfrt::kNarrowGroup;

// One of the 36 points along H and W: D's transform of all the input channels (z [channel][6] at
// `step` floats), the products with weight [6][Cin][group], the transform back: to [group][4].
HFRT_INLINE void narrow_point(const float* z, int64_t step, int64_t cin, const float* weight,
                              float* u, float* m, float* to) {
  for (int64_t c = 0; c < cin; ++c) {
    V x[6], y[6];
#pragma GCC unroll 6
    for (int d = 0; d < 6; ++d) x[d] = load(z + (c * 6 + d) * step);
    Filter<4>::input(x, y);
#pragma GCC unroll 6
    for (int d = 0; d < 6; ++d) store(u + (d * cin + c) * kLanes, y[d]);
  }
  for (int d = 0; d < 6; d += 2) {
    V acc[2][kNarrowGroup];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kNarrowGroup; ++j) acc[i][j] = zero();
    const float *w0 = weight + d * cin * kNarrowGroup, *w1 = w0 + cin * kNarrowGroup;
    for (int64_t c = 0; c < cin; ++c, w0 += kNarrowGroup, w1 += kNarrowGroup) {
      const V a = load(u + (d * cin + c) * kLanes), b = load(u + ((d + 1) * cin + c) * kLanes);
#pragma GCC unroll 8
      for (int j = 0; j < kNarrowGroup; ++j) {
        acc[0][j] = fma(a, broadcast(w0[j]), acc[0][j]);
        acc[1][j] = fma(b, broadcast(w1[j]), acc[1][j]);
      }
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
#pragma GCC unroll 8
      for (int j = 0; j < kNarrowGroup; ++j)
        store(m + ((d + i) * kNarrowGroup + j) * kLanes, acc[i][j]);
  }
  for (int j = 0; j < kNarrowGroup; ++j) {
    V x[6], y[4];
#pragma GCC unroll 6
    for (int d = 0; d < 6; ++d) x[d] = load(m + (d * kNarrowGroup + j) * kLanes);
    Filter<4>::output(x, y);
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d) store(to + (j * 4 + d) * step, y[d]);
  }
}

// One plane of 16 tiles' outputs, y [position][16 channels][16 tiles], to a blocked volume. at:
// each tile's first row and column, or -1; with `sparse`, every second voxel is kept.
void narrow_scatter(const float* y, const hfrt::Extent& e, Stored* out, const int64_t (*at)[2],
                    int64_t plane_offset, bool sparse) {
  alignas(64) float turned[kLanes * kLanes];
  const int half = sparse ? 1 : 0;
  const int64_t width = (e.w + half) >> half;
  for (int64_t i = 0; i < 4; i += 1 + half)
    for (int64_t j = 0; j < 4; j += 1 + half) {
      transpose(y + (i * 4 + j) * kLanes * kLanes, turned);
      for (int t = 0; t < kLanes; ++t) {
        const int64_t h = at[t][0] + i, w = at[t][1] + j;
        if (at[t][0] < 0 || h >= e.h || w >= e.w) continue;
        store(out + (plane_offset + (h >> half) * width + (w >> half)) * kLanes,
              load(turned + t * kLanes));
      }
    }
}

// A task is 16 tiles of one layer of tiles. scratch: hfrt::narrow_scratch.
void narrow(const hfrt::ConvArgs& a, int64_t begin, int64_t end, float* scratch) {
  const hfrt::Extent& e = a.conv_extent;
  const hfrt::Phases& g = a.phases;
  const hfrt::Epilogue& p = a.epilogue;
  const auto* in = static_cast<const Stored*>(a.in);
  const auto* skip = static_cast<const Stored*>(a.shortcut.in);
  auto *out = static_cast<Stored*>(a.out), *second = static_cast<Stored*>(p.second);
  const int64_t cin = a.in_extent.c, groups = hfrt::narrow_groups(e.c);
  const int64_t across = g.vectors();
  float* half = scratch;                       // [cin][6][36][16]
  float* made = half + cin * 6 * 36 * kLanes;  // [group][8][4][36][16]
  float* u = made + groups * kNarrowGroup * 4 * 36 * kLanes;
  float* m = u + 6 * cin * kLanes;
  float* y = m + 6 * kNarrowGroup * kLanes;  // [position][channel][16], for a blocked output
  float* y2 = y + 16 * kLanes * kLanes;
  int64_t shift[36];
  for (int64_t i = 0; i < 36; ++i) shift[i] = g.at(i / 6 - 1, i % 6 - 1);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t z0 = task / across * 4, l0 = task % across * kLanes;
    for (int64_t c = 0; c < cin; ++c)
      for (int64_t d = 0; d < 6; ++d) {
        const int64_t z = z0 - 1 + d;
        float* to = half + (c * 6 + d) * 36 * kLanes;
        if (z < 0 || z >= e.d) {
          for (int i = 0; i < 36; ++i) store(to + i * kLanes, zero());
          continue;
        }
        const Stored* from = in + g.plane_of(c, z, e.d) + l0;
        plane_input<Filter<4>, Filter<4>>(
            [from, at = shift](int h, int w) HFRT_LAMBDA { return from + at[h * 6 + w]; }, to);
      }
    for (int64_t i = 0; i < 36; ++i)
      for (int64_t j = 0; j < groups; ++j)
        narrow_point(half + i * kLanes, 36 * kLanes, cin,
                     a.narrow_weight + (i * groups + j) * 6 * cin * kNarrowGroup, u, m,
                     made + j * kNarrowGroup * 4 * 36 * kLanes + i * kLanes);
    int64_t at[kLanes][2];  // blocked: each tile's first row and column, or -1
    if (!a.phased)
      for (int64_t t = 0; t < kLanes; ++t) {
        const int64_t row = (l0 + t) / g.row, column = (l0 + t) % g.row;
        const bool inside = row < g.rows && column * 4 < e.w;
        at[t][0] = inside ? row * 4 : -1, at[t][1] = column * 4;
      }
    for (int64_t d = 0; d < 4 && z0 + d < e.d; ++d) {
      const int64_t z = z0 + d;
      for (int64_t c = 0; c < e.c; ++c) {
        alignas(64) float tile[16 * kLanes];
        plane_output<Filter<4>, Filter<4>>(made + (c * 4 + d) * 36 * kLanes, tile);
        const V bias = broadcast(p.bias[c]);
        const V scale = broadcast(second ? p.second_scale[c] : 0.0f);
        const V offset = broadcast(second ? p.second_shift[c] : 0.0f);
        for (int64_t i = 0; i < 16; ++i) {
          V v = load(tile + i * kLanes) + bias;
          if (skip)
            for (int64_t s = 0; s < a.shortcut.in_extent.c; ++s)
              v = fma(load(skip + g.plane_of(s, z, e.d) + i * g.plane + l0),
                      broadcast(a.narrow_shortcut[s * e.c + c]), v);
          v = activate(v, p.act, 0);
          V w = zero();
          if (second) w = activate(fma(v, scale, offset), p.second_act, 0);
          if (a.phased) {
            const V valid = load(a.valid + i * g.plane + l0);
            const int64_t place = g.plane_of(c, z, e.d) + i * g.plane + l0;
            store(out + place, if_positive(valid, v, zero()));
            if (second) store(second + place, if_positive(valid, w, zero()));
          } else {
            store(y + (i * kLanes + c) * kLanes, v);
            if (second) store(y2 + (i * kLanes + c) * kLanes, w);
          }
        }
      }
      if (a.phased) continue;
      if (!p.sparse || z % 2 == 0) {
        const int64_t layer = p.sparse ? (e.h + 1) / 2 * ((e.w + 1) / 2) : e.h * e.w;
        narrow_scatter(y, e, out, at, (p.sparse ? z / 2 : z) * layer, p.sparse);
      }
      if (second) narrow_scatter(y2, e, second, at, z * e.h * e.w, false);
    }
  }
}

}  // namespace
