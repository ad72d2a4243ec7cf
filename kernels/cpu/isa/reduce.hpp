// What is made of many numbers: sums and maxima over voxels, moments, and operations along the
// channels of each voxel.
#pragma once

#include "activation.hpp"
#include "kernels.hpp"

namespace {

HFRT_INLINE V folded(V acc, V x, hfrt::Sum kind) {
  return kind == hfrt::Sum::maximum   ? larger_or_nan(acc, x)
         : kind == hfrt::Sum::squares ? fma(x, x, acc)
                                      : acc + x;
}

// A task is one of the planes that count, of one block: out [task][16]. Four partial results of a
// plane, always over the same voxels: the sum does not depend on the caller.
void reduce(const void* from, hfrt::Extent e, const int64_t stride[3], float* out, hfrt::Sum kind,
            int64_t begin, int64_t end) {
  const auto* x = static_cast<const Stored*>(from);
  const int64_t planes = (e.d + stride[0] - 1) / stride[0];
  const bool maximum = kind == hfrt::Sum::maximum;
  const V none = maximum ? broadcast(-__builtin_inff()) : zero();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / planes, d = task % planes * stride[0];
    V acc[4] = {none, none, none, none};
    int64_t i = 0;
    for (int64_t h = 0; h < e.h; h += stride[1]) {
      const Stored* row = x + ((b * e.d + d) * e.h + h) * e.w * kLanes;
      V line = none;
      for (int64_t w = 0; w < e.w; w += stride[2])
        line = folded(line, load(row + w * kLanes), kind);
      V& to = acc[i++ % 4];
      to = maximum ? larger_or_nan(to, line) : to + line;
    }
    const V low = maximum ? larger_or_nan(acc[0], acc[1]) : acc[0] + acc[1];
    const V high = maximum ? larger_or_nan(acc[2], acc[3]) : acc[2] + acc[3];
    store(out + task * kLanes, maximum ? larger_or_nan(low, high) : low + high);
  }
}

// Mean and sum of squared deviations of runs of `hfrt::kRun` voxels. A task is one run of one
// block: out [task][2][16].
void moments(const void* from, int64_t voxels, float* out, int64_t begin, int64_t end) {
  const auto* x = static_cast<const Stored*>(from);
  const int64_t runs = (voxels + hfrt::kRun - 1) / hfrt::kRun;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t start = task % runs * hfrt::kRun;
    const int64_t n = voxels - start < hfrt::kRun ? voxels - start : hfrt::kRun;
    const Stored* run = x + (task / runs * voxels + start) * kLanes;
    V sum[4] = {zero(), zero(), zero(), zero()}, squares[4] = {zero(), zero(), zero(), zero()};
    for (int64_t i = 0; i < n; ++i) sum[i % 4] = sum[i % 4] + load(run + i * kLanes);
    const V mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / broadcast(static_cast<float>(n));
    for (int64_t i = 0; i < n; ++i) {
      const V d = load(run + i * kLanes) - mean;
      squares[i % 4] = fma(d, d, squares[i % 4]);
    }
    store(out + task * 2 * kLanes, mean);
    store(out + (task * 2 + 1) * kLanes, (squares[0] + squares[1]) + (squares[2] + squares[3]));
  }
}

// --- along the channels of a voxel -------------------------------------------------------------

// 16 voxels at a time, turned: numbers [C][16] of these in `scratch`, C filled up.
HFRT_INLINE void load_turned(const Stored* x, int64_t blocks, int64_t voxels, int64_t first,
                             int64_t n, float* square, float* scratch) {
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t i = 0; i < kLanes; ++i)
      store(square + i * kLanes, i < n ? load(x + (b * voxels + first + i) * kLanes) : zero());
    transpose(square, scratch + b * kLanes * kLanes);
  }
}

HFRT_INLINE void store_turned(Stored* y, int64_t blocks, int64_t voxels, int64_t first, int64_t n,
                              float* square, const float* scratch) {
  for (int64_t b = 0; b < blocks; ++b) {
    transpose(scratch + b * kLanes * kLanes, square);
    for (int64_t i = 0; i < n; ++i)
      store(y + (b * voxels + first + i) * kLanes, load(square + i * kLanes));
  }
}

HFRT_INLINE V sum_of(const float* rows, int64_t channels) {
  V sum[4] = {zero(), zero(), zero(), zero()};
  for (int64_t c = 0; c < channels; ++c) sum[c % 4] = sum[c % 4] + load(rows + c * kLanes);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

HFRT_INLINE V largest_of(const float* rows, int64_t channels) {
  V most = load(rows);
  for (int64_t c = 1; c < channels; ++c) most = larger_or_nan(most, load(rows + c * kLanes));
  return most;
}

HFRT_INLINE void softmax_rows(float* rows, int64_t channels, bool log) {
  const V most = largest_of(rows, channels);
  V sum = zero();
  for (int64_t c = 0; c < channels; ++c) {
    const V x = load(rows + c * kLanes) - most, e = exponential(x);
    sum = sum + e;
    store(rows + c * kLanes, log ? x : e);
  }
  const V part = broadcast(1.0f) / sum, less = log ? logarithm(sum) : zero();
  for (int64_t c = 0; c < channels; ++c) {
    const V x = load(rows + c * kLanes);
    store(rows + c * kLanes, log ? x - less : x * part);
  }
}

HFRT_INLINE void normalise_rows(float* rows, int64_t channels, const hfrt::ChannelArgs& a) {
  const V count = broadcast(static_cast<float>(channels));
  const V mean = sum_of(rows, channels) / count;
  V squares = zero();
  for (int64_t c = 0; c < channels; ++c) {
    const V d = load(rows + c * kLanes) - mean;
    squares = fma(d, d, squares);
    store(rows + c * kLanes, d);
  }
  const V gain = broadcast(1.0f) / root(squares / count + broadcast(a.eps));
  for (int64_t c = 0; c < channels; ++c)
    store(rows + c * kLanes,
          fma(load(rows + c * kLanes) * gain, broadcast(a.scale[c]), broadcast(a.shift[c])));
}

HFRT_INLINE V reduced_rows(const float* rows, int64_t channels, hfrt::Along kind) {
  using hfrt::Along;
  if (kind == Along::maximum) return largest_of(rows, channels);
  if (kind == Along::l2) {
    V squares = zero();
    for (int64_t c = 0; c < channels; ++c) {
      const V x = load(rows + c * kLanes);
      squares = fma(x, x, squares);
    }
    return root(squares);
  }
  const V sum = sum_of(rows, channels);
  return kind == Along::sum ? sum : sum / broadcast(static_cast<float>(channels));
}

// Softmax of two numbers: one power of e. `least` is the less of them, so that e is at most 1; an
// infinite number gives NaN, as what is taken from it in the general case does.
HFRT_INLINE void softmax_pair(V& x, V& y, bool log) {
  const V d = x - y, most = larger_or_nan(x, y), least = smaller(x, y);
  const V e = exponential((least - most) + (most - most)), sum = broadcast(1.0f) + e;
  if (log) {
    const V less = logarithm(sum);
    x = (x - most) - less, y = (y - most) - less;
    return;
  }
  const V large = broadcast(1.0f) / sum, small = e * large;
  x = if_nan(d, d, if_positive(d, large, small)), y = if_nan(d, d, if_positive(d, small, large));
}

// Softmax of two planes of numbers.
void softmax_planes(const hfrt::ChannelArgs& a, int64_t begin, int64_t end) {
  const int64_t voxels = a.in_extent.voxels();
  const auto* from = static_cast<const float*>(a.in);
  auto* to = static_cast<float*>(a.out);
  const bool log = a.kind == hfrt::Along::log_softmax;
  for (int64_t at = begin * kLanes; at < end * kLanes && at < voxels; at += kLanes) {
    const int64_t n = voxels - at < kLanes ? voxels - at : kLanes;
    V x = load_some(from + at, n), y = load_some(from + voxels + at, n);
    softmax_pair(x, y, log);
    store_some(to + at, x, n), store_some(to + voxels + at, y, n);
  }
}

// A task is 16 voxels. scratch: 16 C filled up + 256 floats.
void along_channels(const hfrt::ChannelArgs& a, int64_t begin, int64_t end, float* scratch) {
  using hfrt::Along;
  const int64_t c = a.in_extent.c, blocks = blocks_of(c), voxels = a.in_extent.voxels();
  if (a.plain && c == 2) return softmax_planes(a, begin, end);
  const auto* x = static_cast<const Stored*>(a.in);
  auto* y = static_cast<Stored*>(a.out);
  float *square = scratch, *rows = scratch + kLanes * kLanes;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task * kLanes, n = voxels - first < kLanes ? voxels - first : kLanes;
    if (a.plain) {
      const auto* from = static_cast<const float*>(a.in) + first;
      for (int64_t i = 0; i < c; ++i)
        if (n == kLanes)
          copy(rows + i * kLanes, from + i * voxels);
        else
          for (int64_t j = 0; j < kLanes; ++j)
            rows[i * kLanes + j] = j < n ? from[i * voxels + j] : 0;
    } else {
      load_turned(x, blocks, voxels, first, n, square, rows);
    }
    int64_t made = blocks;
    if (a.kind == Along::softmax || a.kind == Along::log_softmax) {
      softmax_rows(rows, c, a.kind == Along::log_softmax);
    } else if (a.kind == Along::norm) {
      normalise_rows(rows, c, a);
    } else {
      store(rows, reduced_rows(rows, c, a.kind));
      made = 1;
    }
    if (a.plain) {
      auto* to = static_cast<float*>(a.out) + first;
      for (int64_t i = 0; i < a.out_channels; ++i)
        if (n == kLanes)
          copy(to + i * voxels, rows + i * kLanes);
        else
          for (int64_t j = 0; j < n; ++j) to[i * voxels + j] = rows[i * kLanes + j];
      continue;
    }
    // Lanes without a channel stay 0.
    for (int64_t i = made == 1 && blocks > 0 && a.out_channels == 1 ? 1 : c; i < made * kLanes; ++i)
      store(rows + i * kLanes, zero());
    store_turned(y, made, voxels, first, n, square, rows);
  }
}

// --- between voxels ----------------------------------------------------------------------------

HFRT_INLINE V mixed(V x, V y, float part) {
  return fma(y, broadcast(part), x * broadcast(1.0f - part));
}

// What row `task` (d, h) of a block or a channel of the result is made of along W: four rows of the
// input, `Each` numbers a voxel, mixed along D and H.
template <int Each, typename T>
HFRT_INLINE void blend_rows(const hfrt::BlendArgs& a, const T* in, int64_t task, float* scratch) {
  const hfrt::Extent &e = a.in_extent, &o = a.out_extent;
  const int64_t width = e.w * Each, b = task / (o.d * o.h), d = task / o.h % o.d, h = task % o.h;
  const float pd = a.part[0][d], ph = a.part[1][h];
  const T* rows[2][2];
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      rows[i][j] = in + ((b * e.d + (i ? a.high[0][d] : a.low[0][d])) * e.h +
                         (j ? a.high[1][h] : a.low[1][h])) *
                            width;
  for (int64_t w = 0; w < width; w += kLanes) {
    const int64_t n = Each == kLanes || width - w > kLanes ? kLanes : width - w;
    // What has no part may be infinite.
    const auto along_h = [&](int i) HFRT_LAMBDA {
      const V x = load_some(rows[i][0] + w, n);
      return ph == 0 ? x : mixed(x, load_some(rows[i][1] + w, n), ph);
    };
    const V x = along_h(0);
    store_some(scratch + w, pd == 0 ? x : mixed(x, along_h(1), pd), n);
  }
}

// Linear between neighbours. A task is one row (d, h) of one block of the result. scratch: the row
// of the input, 16 W floats.
void blend(const hfrt::BlendArgs& a, int64_t begin, int64_t end, float* scratch) {
  const int64_t width = a.out_extent.w;
  for (int64_t task = begin; task < end; ++task) {
    blend_rows<kLanes>(a, static_cast<const Stored*>(a.in), task, scratch);
    Stored* to = static_cast<Stored*>(a.out) + task * width * kLanes;
    for (int64_t w = 0; w < width; ++w) {
      const V x = load(scratch + a.low[2][w] * kLanes);
      const float pw = a.part[2][w];
      store(to + w * kLanes, pw == 0 ? x : mixed(x, load(scratch + a.high[2][w] * kLanes), pw));
    }
  }
}

}  // namespace
