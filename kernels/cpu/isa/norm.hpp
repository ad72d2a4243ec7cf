// Batch norm in training, with ReLU and max-pooling behind it, forward and backward.
#pragma once

#include "simd.hpp"
#include "training.hpp"

namespace {

constexpr int64_t kFloatRun = 4096;  // numbers that float32 sums cover before float64 takes over
constexpr int64_t kMostLanes = hfrt::kNormPeriod * kLanes;

// What a kernel needs of the channels of some lanes.
struct Channels {
  V mean, scale, bias, factor;
};
HFRT_INLINE V normed(const Channels& c, V x) { return fma(x - c.mean, c.scale, c.bias); }

// Numbers of channels, repeated over a period.
struct Lanes {
  alignas(64) float values[kMostLanes];
  HFRT_INLINE void fill(const float* of, int64_t channels, int64_t lanes) {
    for (int64_t l = 0, c = 0; l < lanes; ++l, c = c + 1 == channels ? 0 : c + 1)
      values[l] = of ? of[c] : 1.0f;
  }
  HFRT_INLINE V at(int64_t lane) const { return load(values + lane); }
};
struct AllLanes {
  Lanes mean, scale, bias, factor;
  HFRT_INLINE AllLanes(const hfrt::Norm& a, int64_t sample, int64_t lanes) {
    mean.fill(a.mean, a.channels, lanes);
    scale.fill(a.scale, a.channels, lanes);
    bias.fill(a.bias, a.channels, lanes);
    factor.fill(a.factor ? a.factor + sample * a.channels : nullptr, a.channels, lanes);
  }
  HFRT_INLINE Channels at(int64_t lane) const {
    return {mean.at(lane), scale.at(lane), bias.at(lane), factor.at(lane)};
  }
};

// n numbers that begin with a voxel, a vector of the period after the other: start(lane), then
// f(offset, how many) of all vectors there, then finish(lane, how many whole periods, how many
// lanes of one more).
template <typename Start, typename F, typename Finish>
HFRT_INLINE void by_period(int64_t n, int64_t lanes, const Start& start, const F& f,
                           const Finish& finish) {
  const int64_t whole = n / lanes, rest = n - whole * lanes;
  for (int64_t lane = 0; lane < lanes; lane += kLanes) {
    start(lane);
    for (int64_t g = 0; g < whole; ++g) f(g * lanes + lane, static_cast<int64_t>(kLanes));
    const int64_t left = rest - lane;
    const int64_t some = left < 0 ? 0 : left < kLanes ? left : kLanes;
    if (some) f(whole * lanes + lane, some);
    finish(lane, whole, some);
  }
}

// Runs of at most kFloatRun numbers, whole periods.
template <typename F>
HFRT_INLINE void by_runs(int64_t n, int64_t lanes, const F& f) {
  const int64_t run = (kFloatRun > lanes ? kFloatRun / lanes : 1) * lanes;
  for (int64_t at = 0; at < n; at += run) f(at, n - at < run ? n - at : run);
}

// Where a flat task lies: of which sample, from which number on, how many.
struct Part {
  int64_t sample, at, n;
};
HFRT_INLINE Part part_of(const hfrt::Norm& a, int64_t task) {
  const int64_t sample = a.d * a.h * a.w * a.channels, run = hfrt::norm_run(a.channels);
  const int64_t parts = (sample + run - 1) / run, first = task % parts * run;
  return {task / parts, task / parts * sample + first, sample - first < run ? sample - first : run};
}

// Adds the lanes of `x` to their channels of `out`.
HFRT_INLINE void add_lanes(V x, int64_t lane, int64_t channels, double* out) {
  alignas(64) float values[kLanes];
  store(values, x);
  for (int64_t l = 0, c = lane % channels; l < kLanes; ++l, c = c + 1 == channels ? 0 : c + 1)
    out[c] += static_cast<double>(values[l]);
}

void norm_sums(const hfrt::Norm& a, double* out, int64_t begin, int64_t end) {
  const int64_t lanes = kLanes * hfrt::norm_period(a.channels);
  for (int64_t task = begin; task < end; ++task) {
    const Part part = part_of(a, task);
    double *sums = out + 2 * task * a.channels, *squares = sums + a.channels;
    for (int64_t c = 0; c < 2 * a.channels; ++c) sums[c] = 0;
    by_runs(part.n, lanes, [&](int64_t at, int64_t n) HFRT_LAMBDA {
      const float* x = a.x + part.at + at;
      const int64_t whole = n / lanes;
      V acc;
      alignas(64) float means[kMostLanes];
      by_period(
          n, lanes, [&](int64_t) HFRT_LAMBDA { acc = zero(); },
          [&](int64_t i, int64_t some) HFRT_LAMBDA { acc = acc + load_some(x + i, some); },
          [&](int64_t lane, int64_t, int64_t some) HFRT_LAMBDA {
            const V count = broadcast(static_cast<float>(whole)) + first_lanes(some);
            store(means + lane, acc / larger(count, broadcast(1.0f)));
          });
      V mean, once, twice;
      by_period(
          n, lanes,
          [&](int64_t lane) HFRT_LAMBDA {
            mean = load(means + lane);
            once = twice = zero();
          },
          [&](int64_t i, int64_t some) HFRT_LAMBDA {
            const V less = some < kLanes ? mean * first_lanes(some) : mean;
            const V d = load_some(x + i, some) - less;
            once = once + d;
            twice = fma(d, d, twice);
          },
          [&](int64_t lane, int64_t, int64_t some) HFRT_LAMBDA {
            alignas(64) float d[kLanes], dd[kLanes];
            store(d, once);
            store(dd, twice);
            for (int64_t l = 0, c = lane % a.channels; l < kLanes;
                 ++l, c = c + 1 == a.channels ? 0 : c + 1) {
              const auto m = static_cast<double>(means[lane + l]);
              const auto difference = static_cast<double>(d[l]);
              const auto count = static_cast<double>(whole + (l < some));
              sums[c] += count * m + difference;
              squares[c] += static_cast<double>(dd[l]) + 2 * m * difference + count * m * m;
            }
          });
    });
  }
}

template <bool Relu>
HFRT_INLINE void norm_flat(const hfrt::Norm& a, float* y, int64_t task) {
  const int64_t lanes = kLanes * hfrt::norm_period(a.channels);
  const Part part = part_of(a, task);
  const AllLanes all(a, part.sample, lanes);
  by_runs(part.n, lanes, [&](int64_t at, int64_t n) HFRT_LAMBDA {
    const float* from = a.x + part.at + at;
    float* to = y + part.at + at;
    Channels c;
    by_period(
        n, lanes, [&](int64_t lane) HFRT_LAMBDA { c = all.at(lane); },
        [&](int64_t i, int64_t some) HFRT_LAMBDA {
          V v = normed(c, load_some(from + i, some));
          if (Relu) v = larger(zero(), v);
          store_some(to + i, v * c.factor, some);
        },
        [](int64_t, int64_t, int64_t) HFRT_LAMBDA {});
  });
}

// The gradient before the activation; a NaN passes it, as in PyTorch.
template <bool Relu>
HFRT_INLINE V before_relu(V v, V dy) {
  return Relu ? if_nan(v, dy, if_positive(v, dy, zero())) : dy;
}

template <bool Relu>
HFRT_INLINE void sums_flat(const hfrt::Norm& a, const float* dy, double* out, int64_t task) {
  const int64_t lanes = kLanes * hfrt::norm_period(a.channels);
  const Part part = part_of(a, task);
  const AllLanes all(a, part.sample, lanes);
  by_runs(part.n, lanes, [&](int64_t at, int64_t n) HFRT_LAMBDA {
    const float *x = a.x + part.at + at, *given = dy + part.at + at;
    Channels c;
    V sum, product;
    by_period(
        n, lanes,
        [&](int64_t lane) HFRT_LAMBDA {
          c = all.at(lane);
          sum = product = zero();
        },
        [&](int64_t i, int64_t some) HFRT_LAMBDA {
          const V d = load_some(x + i, some) - c.mean;
          const V g =
              before_relu<Relu>(fma(d, c.scale, c.bias), load_some(given + i, some) * c.factor);
          sum = sum + g;
          product = fma(g, d, product);
        },
        [&](int64_t lane, int64_t, int64_t) HFRT_LAMBDA {
          add_lanes(sum, lane, a.channels, out);
          add_lanes(product, lane, a.channels, out + a.channels);
        });
  });
}

// scale * g - first - second * d
struct Combination {
  V scale, first, second;
  HFRT_INLINE V of(V g, V d) const { return fnma(second, d, fma(scale, g, zero() - first)); }
};
struct AllCombinations {
  Lanes first, second;
  HFRT_INLINE AllCombinations(const float* a, const float* b, int64_t channels, int64_t lanes) {
    first.fill(a, channels, lanes);
    second.fill(b, channels, lanes);
  }
};

template <bool Relu>
HFRT_INLINE void gradient_flat(const hfrt::Norm& a, const float* dy, const AllCombinations& by,
                               float* dx, int64_t task) {
  const int64_t lanes = kLanes * hfrt::norm_period(a.channels);
  const Part part = part_of(a, task);
  const AllLanes all(a, part.sample, lanes);
  by_runs(part.n, lanes, [&](int64_t at, int64_t n) HFRT_LAMBDA {
    const float *x = a.x + part.at + at, *given = dy + part.at + at;
    float* to = dx + part.at + at;
    Channels c;
    Combination combine;
    by_period(
        n, lanes,
        [&](int64_t lane) HFRT_LAMBDA {
          c = all.at(lane);
          combine = {c.scale, by.first.at(lane), by.second.at(lane)};
        },
        [&](int64_t i, int64_t some) HFRT_LAMBDA {
          const V d = load_some(x + i, some) - c.mean;
          const V g =
              before_relu<Relu>(fma(d, c.scale, c.bias), load_some(given + i, some) * c.factor);
          store_some(to + i, combine.of(g, d), some);
        },
        [](int64_t, int64_t, int64_t) HFRT_LAMBDA {});
  });
}

// --- with pooling --------------------------------------------------------------------------------

// The larger, or a NaN of either.
HFRT_INLINE V most(V a, V b) { return if_nan(a, a, larger(a, b)); }

// N channels at once: 16, 8 (a vector's first lanes), or a number known only when it runs.
HFRT_INLINE V load_half(const float* p) {
#if defined(__AVX512F__)
  return {_mm512_castps256_ps512(_mm256_loadu_ps(p))};
#elif defined(__AVX2__)
  return {_mm256_loadu_ps(p), _mm256_setzero_ps()};
#else
  return {{vld1q_f32(p), vld1q_f32(p + 4), vdupq_n_f32(0), vdupq_n_f32(0)}};
#endif
}
HFRT_INLINE void store_half(float* p, V a) {
#if defined(__AVX512F__)
  _mm256_storeu_ps(p, _mm512_castps512_ps256(a.v));
#elif defined(__AVX2__)
  _mm256_storeu_ps(p, a.a);
#else
  vst1q_f32(p, a.q[0]);
  vst1q_f32(p + 4, a.q[1]);
#endif
}
template <int N>
HFRT_INLINE V load_channels(const float* p, int64_t some) {
  return N == 16 ? load(p) : N == 8 ? load_half(p) : load_some(p, some);
}
template <int N>
HFRT_INLINE void store_channels(float* p, V x, int64_t some) {
  N == 16 ? store(p, x) : N == 8 ? store_half(p, x) : store_some(p, x, some);
}

// f.row<N>(od, oh, first channel, how many): of every row of windows, for all channels.
template <typename F>
HFRT_INLINE void by_rows(const hfrt::Norm& a, int64_t od, const F& f) {
  for (int64_t oh = 0; oh < a.h / 2; ++oh) {
    int64_t c = 0;
    for (; c + kLanes <= a.channels; c += kLanes) f.template row<16>(od, oh, c, 16);
    if (a.channels - c == 8)
      f.template row<8>(od, oh, c, 8);
    else if (c < a.channels)
      f.template row<0>(od, oh, c, a.channels - c);
  }
}

// Where the eight voxels of a window lie from its first, in the order of a volume.
struct Corners {
  int64_t at[8];
  HFRT_INLINE explicit Corners(const hfrt::Norm& a) {
    for (int64_t k = 0; k < 8; ++k) at[k] = ((k / 4 * a.h + k / 2 % 2) * a.w + k % 2) * a.channels;
  }
};
// The first window of a row: its first voxel, and what stands for it in y.
HFRT_INLINE int64_t first_voxel(const hfrt::Norm& a, int64_t sample, int64_t od, int64_t oh) {
  return ((sample * a.d + 2 * od) * a.h + 2 * oh) * a.w * a.channels;
}
HFRT_INLINE int64_t first_window(const hfrt::Norm& a, int64_t sample, int64_t od, int64_t oh) {
  return ((sample * (a.d / 2) + od) * (a.h / 2) + oh) * (a.w / 2) * a.channels;
}

template <bool Relu>
struct Pooled {
  const hfrt::Norm& a;
  const AllLanes& all;
  const Corners& corners;
  int64_t sample;
  float* y;

  template <int N>
  HFRT_INLINE void row(int64_t od, int64_t oh, int64_t channel, int64_t some) const {
    const Channels c = all.at(channel);
    const float* x = a.x + first_voxel(a, sample, od, oh) + channel;
    float* to = y + first_window(a, sample, od, oh) + channel;
    for (int64_t ow = 0; ow < a.w / 2; ++ow, x += 2 * a.channels, to += a.channels) {
      V best = normed(c, load_channels<N>(x, some));
      for (int k = 1; k < 8; ++k)
        best = most(best, normed(c, load_channels<N>(x + corners.at[k], some)));
      if (Relu) best = larger(zero(), best);
      store_channels<N>(to, best * c.factor, some);
    }
  }
};

// The eight voxels of a window: their differences to the mean, and their gradients. That of the
// window goes to the first of its largest voxels.
struct Window {
  V d[8], g[8];
};
template <bool Relu, int N>
HFRT_INLINE Window window(const Channels& c, const Corners& corners, const float* x, V dy,
                          int64_t some) {
  Window w;
  V v[8];
  for (int k = 0; k < 8; ++k) {
    w.d[k] = load_channels<N>(x + corners.at[k], some) - c.mean;
    v[k] = fma(w.d[k], c.scale, c.bias);
  }
  V best = v[0];
  for (int k = 1; k < 8; ++k) best = most(best, v[k]);
  V left = before_relu<Relu>(best, dy * c.factor);
  for (int k = 0; k < 8; ++k) {
    const V less = best - v[k];
    w.g[k] = if_positive(less, zero(), left);
    left = if_positive(less, left, zero());
  }
  return w;
}

template <bool Relu>
struct PooledSums {
  const hfrt::Norm& a;
  const AllLanes& all;
  const Corners& corners;
  int64_t sample;
  const float* dy;
  double* out;

  template <int N>
  HFRT_INLINE void row(int64_t od, int64_t oh, int64_t channel, int64_t some) const {
    const Channels c = all.at(channel);
    const float* x = a.x + first_voxel(a, sample, od, oh) + channel;
    const float* given = dy + first_window(a, sample, od, oh) + channel;
    V sum = zero(), product = zero();
    for (int64_t ow = 0; ow < a.w / 2; ++ow, x += 2 * a.channels, given += a.channels) {
      const Window w = window<Relu, N>(c, corners, x, load_channels<N>(given, some), some);
      V g = w.g[0], gd = w.g[0] * w.d[0];
      for (int k = 1; k < 8; ++k) {  // all but one are 0
        g = g + w.g[k];
        gd = fma(w.g[k], w.d[k], gd);
      }
      sum = sum + g;
      product = product + gd;
    }
    alignas(64) float sums[kLanes], products[kLanes];
    store(sums, sum);
    store(products, product);
    for (int64_t l = 0; l < some; ++l) {
      out[channel + l] += static_cast<double>(sums[l]);
      out[a.channels + channel + l] += static_cast<double>(products[l]);
    }
  }
};

// n numbers that no window holds.
HFRT_INLINE void gradient_outside(const AllLanes& all, const AllCombinations& by, const float* x,
                                  float* dx, int64_t n, int64_t lanes) {
  V mean;
  Combination combine;
  by_period(
      n, lanes,
      [&](int64_t lane) HFRT_LAMBDA {
        mean = all.mean.at(lane);
        combine = {all.scale.at(lane), by.first.at(lane), by.second.at(lane)};
      },
      [&](int64_t i, int64_t some) HFRT_LAMBDA {
        store_some(dx + i, combine.of(zero(), load_some(x + i, some) - mean), some);
      },
      [](int64_t, int64_t, int64_t) HFRT_LAMBDA {});
}

template <bool Relu>
struct PooledGradient {
  const hfrt::Norm& a;
  const AllLanes& all;
  const Corners& corners;
  const AllCombinations& by;
  int64_t sample;
  const float* dy;
  float* dx;

  template <int N>
  HFRT_INLINE void row(int64_t od, int64_t oh, int64_t channel, int64_t some) const {
    const Channels c = all.at(channel);
    const Combination combine{c.scale, by.first.at(channel), by.second.at(channel)};
    const int64_t first = first_voxel(a, sample, od, oh) + channel;
    const float *x = a.x + first, *given = dy + first_window(a, sample, od, oh) + channel;
    float* to = dx + first;
    const int64_t step = 2 * a.channels;
    for (int64_t ow = 0; ow < a.w / 2; ++ow, x += step, to += step, given += a.channels) {
      const Window w = window<Relu, N>(c, corners, x, load_channels<N>(given, some), some);
      for (int k = 0; k < 8; ++k)
        store_channels<N>(to + corners.at[k], combine.of(w.g[k], w.d[k]), some);
    }
  }
};

template <bool Relu>
HFRT_INLINE void norm_pooled(const hfrt::Norm& a, float* y, int64_t task) {
  const int64_t parts = (a.d + 1) / 2, sample = task / parts, od = task % parts;
  if (2 * od + 1 >= a.d) return;
  const AllLanes all(a, sample, kLanes * hfrt::norm_period(a.channels));
  const Corners corners(a);
  by_rows(a, od, Pooled<Relu>{a, all, corners, sample, y});
}

template <bool Relu>
HFRT_INLINE void sums_pooled(const hfrt::Norm& a, const float* dy, double* out, int64_t task) {
  const int64_t parts = (a.d + 1) / 2, sample = task / parts, od = task % parts;
  if (2 * od + 1 >= a.d) return;
  const AllLanes all(a, sample, kLanes * hfrt::norm_period(a.channels));
  const Corners corners(a);
  by_rows(a, od, PooledSums<Relu>{a, all, corners, sample, dy, out});
}

template <bool Relu>
HFRT_INLINE void gradient_pooled(const hfrt::Norm& a, const float* dy, const AllCombinations& by,
                                 float* dx, int64_t task) {
  const int64_t parts = (a.d + 1) / 2, sample = task / parts, od = task % parts;
  const int64_t lanes = kLanes * hfrt::norm_period(a.channels);
  const AllLanes all(a, sample, lanes);
  const int64_t line = a.w * a.channels, slice = a.h * line,
                first = (sample * a.d + 2 * od) * slice;
  const auto outside = [&](int64_t at, int64_t n) {
    gradient_outside(all, by, a.x + first + at, dx + first + at, n, lanes);
  };
  if (2 * od + 1 >= a.d) return outside(0, slice);
  const Corners corners(a);
  by_rows(a, od, PooledGradient<Relu>{a, all, corners, by, sample, dy, dx});
  for (int64_t d = 0; d < 2; ++d) {
    if (a.w % 2)
      for (int64_t h = 0; h < a.h / 2 * 2; ++h)
        outside(d * slice + (h + 1) * line - a.channels, a.channels);
    if (a.h % 2) outside((d + 1) * slice - line, line);
  }
}

// --- all tasks -----------------------------------------------------------------------------------

void norm(const hfrt::Norm& a, float* y, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    if (a.pool)
      a.relu ? norm_pooled<true>(a, y, task) : norm_pooled<false>(a, y, task);
    else
      a.relu ? norm_flat<true>(a, y, task) : norm_flat<false>(a, y, task);
  }
}

void norm_gradient_sums(const hfrt::Norm& a, const float* dy, double* out, int64_t begin,
                        int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    double* own = out + 2 * task * a.channels;
    for (int64_t c = 0; c < 2 * a.channels; ++c) own[c] = 0;
    if (a.pool)
      a.relu ? sums_pooled<true>(a, dy, own, task) : sums_pooled<false>(a, dy, own, task);
    else
      a.relu ? sums_flat<true>(a, dy, own, task) : sums_flat<false>(a, dy, own, task);
  }
}

void norm_gradient(const hfrt::Norm& a, const float* dy, const float* first, const float* second,
                   float* dx, int64_t begin, int64_t end) {
  const AllCombinations by(first, second, a.channels, kLanes * hfrt::norm_period(a.channels));
  for (int64_t task = begin; task < end; ++task) {
    if (a.pool)
      a.relu ? gradient_pooled<true>(a, dy, by, dx, task)
             : gradient_pooled<false>(a, dy, by, dx, task);
    else
      a.relu ? gradient_flat<true>(a, dy, by, dx, task) : gradient_flat<false>(a, dy, by, dx, task);
  }
}

}  // namespace
