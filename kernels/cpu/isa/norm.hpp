// Batch norm in training, with ReLU and max-pooling behind it, forward and backward.
#pragma once

#include "simd.hpp"
#include "training.hpp"

namespace {

// Numbers that are summed in float32, 64 to a lane, before float64 takes over.
constexpr int64_t kFloatRun = 4096;

HFRT_INLINE double total(V a) {
  alignas(64) float x[kLanes];
  store(x, a);
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += static_cast<double>(x[i]);
  return sum;
}

// Sixteen numbers at a time, and what is left at the end: f(offset, how many).
template <typename F>
HFRT_INLINE void by_lanes(int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, static_cast<int64_t>(kLanes));
  if (i < n) f(i, n - i);
}

void norm_sums(const float* x, int64_t voxels, double* out, int64_t begin, int64_t end) {
  const int64_t parts = hfrt::norm_parts(1, 1, voxels, false);
  for (int64_t task = begin; task < end; ++task) {
    const float* plane = x + task / parts * voxels;
    const int64_t first = task % parts * hfrt::kNormRun;
    const int64_t last = first + hfrt::kNormRun < voxels ? first + hfrt::kNormRun : voxels;
    double sum = 0, squares = 0;
    for (int64_t at = first; at < last; at += kFloatRun) {
      const int64_t n = last - at < kFloatRun ? last - at : kFloatRun;
      const float* run = plane + at;
      V acc[4] = {zero(), zero(), zero(), zero()};
      by_lanes(n, [&](int64_t i, int64_t some) HFRT_LAMBDA {
        V& to = acc[i / kLanes % 4];
        to = to + load_some(run + i, some);
      });
      const auto count = static_cast<double>(n);
      const auto mean = static_cast<float>(total((acc[0] + acc[1]) + (acc[2] + acc[3])) / count);
      // Of the differences to that mean, which lose nothing.
      V once[2] = {zero(), zero()}, twice[2] = {zero(), zero()};
      by_lanes(n, [&](int64_t i, int64_t some) HFRT_LAMBDA {
        const V less =
            some < kLanes ? broadcast(mean) * first_lanes(some) : broadcast(mean);
        const V d = load_some(run + i, some) - less;
        const int64_t k = i / kLanes % 2;
        once[k] = once[k] + d;
        twice[k] = fma(d, d, twice[k]);
      });
      const double m = static_cast<double>(mean), d = total(once[0] + once[1]);
      sum += count * m + d;
      squares += total(twice[0] + twice[1]) + 2 * m * d + count * m * m;
    }
    out[2 * task] = sum;
    out[2 * task + 1] = squares;
  }
}

// What a kernel needs of the channel of a plane.
struct Channel {
  V mean, scale, bias, factor;
};
HFRT_INLINE Channel channel_of(const hfrt::Norm& a, int64_t plane) {
  const int64_t c = plane % a.channels;
  return {broadcast(a.mean[c]), broadcast(a.scale[c]), broadcast(a.bias[c]),
          broadcast(a.factor ? a.factor[plane] : 1.0f)};
}
HFRT_INLINE V normed(const Channel& c, V x) { return fma(x - c.mean, c.scale, c.bias); }

// The larger, or a NaN of either.
HFRT_INLINE V most(V a, V b) { return if_nan(a, a, larger(a, b)); }

// The four rows of a window's row `oh` of slices `od`, in the order of their voxels.
HFRT_INLINE void rows_of(const float* plane, const hfrt::Norm& a, int64_t od, int64_t oh,
                         const float* rows[4]) {
  for (int64_t r = 0; r < 4; ++r)
    rows[r] = plane + ((2 * od + r / 2) * a.h + 2 * oh + r % 2) * a.w;
}

// 2 * n voxels of a row, apart: those at even and those at odd places.
HFRT_INLINE void load_pairs(const float* row, int64_t n, V& even, V& odd) {
  const int64_t left = 2 * n;
  const V a = load_some(row, left < kLanes ? left : kLanes);
  part(a, left > kLanes ? load_some(row + kLanes, left - kLanes) : zero(), even, odd);
}

template <bool Relu>
HFRT_INLINE void norm_flat(const hfrt::Norm& a, float* y, int64_t task) {
  const int64_t voxels = a.d * a.h * a.w, parts = hfrt::norm_parts(a.d, a.h, a.w, false);
  const int64_t plane = task / parts, first = task % parts * hfrt::kNormRun;
  const int64_t n = voxels - first < hfrt::kNormRun ? voxels - first : hfrt::kNormRun;
  const Channel c = channel_of(a, plane);
  const int64_t at = plane * voxels + first;
  by_lanes(n, [&](int64_t i, int64_t some) HFRT_LAMBDA {
    V v = normed(c, load_some(a.x + at + i, some));
    if (Relu) v = larger(zero(), v);
    store_some(y + at + i, v * c.factor, some);
  });
}

template <bool Relu>
HFRT_INLINE void norm_pooled(const hfrt::Norm& a, float* y, int64_t task) {
  const int64_t parts = hfrt::norm_parts(a.d, a.h, a.w, true);
  const int64_t plane = task / parts, od = task % parts;
  if (2 * od + 1 >= a.d) return;
  const Channel c = channel_of(a, plane);
  const float* x = a.x + plane * a.d * a.h * a.w;
  const int64_t oh_end = a.h / 2, ow_end = a.w / 2;
  y += (plane * (a.d / 2) + od) * oh_end * ow_end;
  for (int64_t oh = 0; oh < oh_end; ++oh, y += ow_end) {
    const float* rows[4];
    rows_of(x, a, od, oh, rows);
    by_lanes(ow_end, [&](int64_t ow, int64_t some) HFRT_LAMBDA {
      V best = zero();
      for (int r = 0; r < 4; ++r) {
        V even, odd;
        load_pairs(rows[r] + 2 * ow, some, even, odd);
        const V row = most(normed(c, even), normed(c, odd));
        best = r || Relu ? most(best, row) : row;
      }
      store_some(y + ow, best * c.factor, some);
    });
  }
}

void norm(const hfrt::Norm& a, float* y, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    if (a.pool)
      a.relu ? norm_pooled<true>(a, y, task) : norm_pooled<false>(a, y, task);
    else
      a.relu ? norm_flat<true>(a, y, task) : norm_flat<false>(a, y, task);
  }
}

// The gradient before the activation; a NaN passes it, as in PyTorch.
template <bool Relu>
HFRT_INLINE V before_relu(V v, V dy) {
  return Relu ? if_nan(v, dy, if_positive(v, dy, zero())) : dy;
}

// The eight voxels of `n` windows: their differences to the mean, and their gradients. That of a
// window goes to the first of its largest voxels.
struct Windows {
  V d[8], g[8];
};
template <bool Relu>
HFRT_INLINE void windows(const Channel& c, const float* const rows[4], int64_t ow, int64_t n,
                         V dy, Windows& to) {
  V v[8];
  for (int r = 0; r < 4; ++r) load_pairs(rows[r] + 2 * ow, n, to.d[2 * r], to.d[2 * r + 1]);
  for (int k = 0; k < 8; ++k) {
    to.d[k] = to.d[k] - c.mean;
    v[k] = fma(to.d[k], c.scale, c.bias);
  }
  V best = v[0];
  for (int k = 1; k < 8; ++k) best = most(best, v[k]);
  V left = before_relu<Relu>(best, dy * c.factor);
  for (int k = 0; k < 8; ++k) {
    const V less = best - v[k];
    to.g[k] = if_positive(less, zero(), left);
    left = if_positive(less, left, zero());
  }
}

// Float32 sums that are emptied into float64 before they grow long.
struct Sums {
  V g[2] = {zero(), zero()}, gd[2] = {zero(), zero()};
  double all[2] = {0, 0};
  int64_t added = 0;

  HFRT_INLINE void add(int k, V gradient, V d) {
    g[k] = g[k] + gradient;
    gd[k] = fma(gradient, d, gd[k]);
  }
  HFRT_INLINE void empty() {
    all[0] += total(g[0] + g[1]);
    all[1] += total(gd[0] + gd[1]);
    g[0] = g[1] = gd[0] = gd[1] = zero();
    added = 0;
  }
  HFRT_INLINE void grow(int64_t by) {
    if ((added += by) >= kFloatRun) empty();
  }
};

template <bool Relu>
HFRT_INLINE void sums_flat(const hfrt::Norm& a, const float* dy, double* out, int64_t task) {
  const int64_t voxels = a.d * a.h * a.w, parts = hfrt::norm_parts(a.d, a.h, a.w, false);
  const int64_t plane = task / parts, first = task % parts * hfrt::kNormRun;
  const int64_t n = voxels - first < hfrt::kNormRun ? voxels - first : hfrt::kNormRun;
  const Channel c = channel_of(a, plane);
  const float *x = a.x + plane * voxels + first, *g = dy + plane * voxels + first;
  Sums sums;
  for (int64_t start = 0; start < n; start += kFloatRun) {
    by_lanes(n - start < kFloatRun ? n - start : kFloatRun,
             [&](int64_t i, int64_t some) HFRT_LAMBDA {
               const V d = load_some(x + start + i, some) - c.mean;
               const V dy_here = load_some(g + start + i, some) * c.factor;
               sums.add(i / kLanes % 2, before_relu<Relu>(fma(d, c.scale, c.bias), dy_here), d);
             });
    sums.empty();
  }
  out[2 * task] = sums.all[0];
  out[2 * task + 1] = sums.all[1];
}

template <bool Relu>
HFRT_INLINE void sums_pooled(const hfrt::Norm& a, const float* dy, double* out, int64_t task) {
  const int64_t parts = hfrt::norm_parts(a.d, a.h, a.w, true);
  const int64_t plane = task / parts, od = task % parts;
  Sums sums;
  if (2 * od + 1 < a.d) {
    const Channel c = channel_of(a, plane);
    const float* x = a.x + plane * a.d * a.h * a.w;
    const int64_t oh_end = a.h / 2, ow_end = a.w / 2;
    const float* g = dy + (plane * (a.d / 2) + od) * oh_end * ow_end;
    for (int64_t oh = 0; oh < oh_end; ++oh, g += ow_end) {
      const float* rows[4];
      rows_of(x, a, od, oh, rows);
      by_lanes(ow_end, [&](int64_t ow, int64_t some) HFRT_LAMBDA {
        Windows w;
        windows<Relu>(c, rows, ow, some, load_some(g + ow, some), w);
        V sum = w.g[0], product = w.g[0] * w.d[0];
        for (int k = 1; k < 8; ++k) {  // all but one are 0
          sum = sum + w.g[k];
          product = fma(w.g[k], w.d[k], product);
        }
        const int k = ow / kLanes % 2;
        sums.g[k] = sums.g[k] + sum;
        sums.gd[k] = sums.gd[k] + product;
        sums.grow(kLanes);
      });
    }
    sums.empty();
  }
  out[2 * task] = sums.all[0];
  out[2 * task + 1] = sums.all[1];
}

void norm_gradient_sums(const hfrt::Norm& a, const float* dy, double* out, int64_t begin,
                        int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    if (a.pool)
      a.relu ? sums_pooled<true>(a, dy, out, task) : sums_pooled<false>(a, dy, out, task);
    else
      a.relu ? sums_flat<true>(a, dy, out, task) : sums_flat<false>(a, dy, out, task);
  }
}

// scale * g - first - second * d
struct Combination {
  V scale, first, second;
  HFRT_INLINE V of(V g, V d) const { return fnma(second, d, fma(scale, g, zero() - first)); }
};

template <bool Relu>
HFRT_INLINE void gradient_flat(const hfrt::Norm& a, const float* dy, const Combination& combine,
                               float* dx, int64_t task) {
  const int64_t voxels = a.d * a.h * a.w, parts = hfrt::norm_parts(a.d, a.h, a.w, false);
  const int64_t plane = task / parts, first = task % parts * hfrt::kNormRun;
  const int64_t n = voxels - first < hfrt::kNormRun ? voxels - first : hfrt::kNormRun;
  const Channel c = channel_of(a, plane);
  const int64_t at = plane * voxels + first;
  by_lanes(n, [&](int64_t i, int64_t some) HFRT_LAMBDA {
    const V d = load_some(a.x + at + i, some) - c.mean;
    const V g = before_relu<Relu>(fma(d, c.scale, c.bias),
                                  load_some(dy + at + i, some) * c.factor);
    store_some(dx + at + i, combine.of(g, d), some);
  });
}

// The voxels from `from` on that no window holds.
HFRT_INLINE void gradient_outside(const Channel& c, const Combination& combine, const float* x,
                                  float* dx, int64_t n) {
  by_lanes(n, [&](int64_t i, int64_t some) HFRT_LAMBDA {
    store_some(dx + i, combine.of(zero(), load_some(x + i, some) - c.mean), some);
  });
}

template <bool Relu>
HFRT_INLINE void gradient_pooled(const hfrt::Norm& a, const float* dy, const Combination& combine,
                                 float* dx, int64_t task) {
  const int64_t parts = hfrt::norm_parts(a.d, a.h, a.w, true);
  const int64_t plane = task / parts, od = task % parts;
  const Channel c = channel_of(a, plane);
  const float* x = a.x + plane * a.d * a.h * a.w;
  dx += plane * a.d * a.h * a.w;
  const int64_t slice = a.h * a.w, oh_end = a.h / 2, ow_end = a.w / 2;
  if (2 * od + 1 >= a.d)
    return gradient_outside(c, combine, x + 2 * od * slice, dx + 2 * od * slice, slice);
  const float* g = dy + (plane * (a.d / 2) + od) * oh_end * ow_end;
  for (int64_t oh = 0; oh < oh_end; ++oh, g += ow_end) {
    const float* rows[4];
    rows_of(x, a, od, oh, rows);
    by_lanes(ow_end, [&](int64_t ow, int64_t some) HFRT_LAMBDA {
      Windows w;
      windows<Relu>(c, rows, ow, some, load_some(g + ow, some), w);
      for (int r = 0; r < 4; ++r) {
        V low, high;
        interleave(combine.of(w.g[2 * r], w.d[2 * r]), combine.of(w.g[2 * r + 1], w.d[2 * r + 1]),
                   low, high);
        float* row = dx + (rows[r] - x) + 2 * ow;
        const int64_t left = 2 * some;
        store_some(row, low, left < kLanes ? left : kLanes);
        if (left > kLanes) store_some(row + kLanes, high, left - kLanes);
      }
    });
    if (a.w % 2)
      for (int r = 0; r < 4; ++r) {
        const int64_t last = rows[r] - x + a.w - 1;
        gradient_outside(c, combine, x + last, dx + last, 1);
      }
  }
  if (a.h % 2)
    for (int64_t d = 2 * od; d < 2 * od + 2; ++d) {
      const int64_t last = d * slice + (a.h - 1) * a.w;
      gradient_outside(c, combine, x + last, dx + last, a.w);
    }
}

void norm_gradient(const hfrt::Norm& a, const float* dy, const float* first, const float* second,
                   float* dx, int64_t begin, int64_t end) {
  const int64_t parts = hfrt::norm_parts(a.d, a.h, a.w, a.pool);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c = task / parts % a.channels;
    const Combination combine{broadcast(a.scale[c]), broadcast(first[c]), broadcast(second[c])};
    if (a.pool)
      a.relu ? gradient_pooled<true>(a, dy, combine, dx, task)
             : gradient_pooled<false>(a, dy, combine, dx, task);
    else
      a.relu ? gradient_flat<true>(a, dy, combine, dx, task)
             : gradient_flat<false>(a, dy, combine, dx, task);
  }
}

}  // namespace
