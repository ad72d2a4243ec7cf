// Pooling, element-wise operations, reductions and small matrix-vector products.
#pragma once

#include "activation.hpp"
#include "kernels.hpp"

namespace {

// A task is 16 voxels of one block; plain [C][voxels] float32, blocked [Cb][voxels][16].
template <typename Call>
HFRT_INLINE void each_square(int64_t channels, int64_t voxels, int64_t begin, int64_t end,
                             const Call& call) {
  const int64_t groups = (voxels + kLanes - 1) / kLanes;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c = task / groups * kLanes, v = task % groups * kLanes;
    call(c * voxels + v, c * voxels + v * kLanes, channels - c < kLanes ? channels - c : kLanes,
         voxels - v < kLanes ? voxels - v : kLanes);
  }
}

void block(const float* plain, void* blocked, int64_t channels, int64_t voxels, int64_t begin,
           int64_t end) {
  auto* out = static_cast<Stored*>(blocked);
  alignas(64) float square[kLanes * kLanes], turned[kLanes * kLanes];
  each_square(channels, voxels, begin, end, [&](int64_t from, int64_t to, int64_t c, int64_t v) {
    if (c < kLanes || v < kLanes) __builtin_memset(square, 0, sizeof square);
    for (int64_t i = 0; i < c; ++i) {
      const float* row = plain + from + i * voxels;
      if (v == kLanes)
        copy(square + i * kLanes, row);
      else
        for (int64_t j = 0; j < v; ++j) square[i * kLanes + j] = row[j];
    }
    transpose(square, turned);
    for (int64_t j = 0; j < v; ++j) store(out + to + j * kLanes, load(turned + j * kLanes));
  });
}

void unblock(const void* blocked, float* plain, int64_t channels, int64_t voxels, int64_t begin,
             int64_t end) {
  const auto* in = static_cast<const Stored*>(blocked);
  alignas(64) float square[kLanes * kLanes] = {}, turned[kLanes * kLanes];
  each_square(channels, voxels, begin, end, [&](int64_t to, int64_t from, int64_t c, int64_t v) {
    for (int64_t j = 0; j < v; ++j) store(square + j * kLanes, load(in + from + j * kLanes));
    transpose(square, turned);
    for (int64_t i = 0; i < c; ++i) {
      float* row = plain + to + i * voxels;
      if (v == kLanes)
        copy(row, turned + i * kLanes);
      else
        for (int64_t j = 0; j < v; ++j) row[j] = turned[i * kLanes + j];
    }
  });
}

// A task is one row (d, h) of one block's outputs.
void pool(const hfrt::PoolArgs& a, int64_t begin, int64_t end) {
  const hfrt::Extent &e = a.in_extent, &o = a.out_extent;
  const hfrt::Window& k = a.window;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / (o.d * o.h), od = task / o.h % o.d, oh = task % o.h;
    const Stored* in = static_cast<const Stored*>(a.in) + block * e.voxels() * kLanes;
    Stored* out = static_cast<Stored*>(a.out) + task * o.w * kLanes;
    const int64_t at[2] = {od * k.stride[0] - k.padding[0], oh * k.stride[1] - k.padding[1]};
    for (int64_t ow = 0; ow < o.w; ++ow) {
      const int64_t w0 = ow * k.stride[2] - k.padding[2];
      V acc = a.average ? zero() : broadcast(-__builtin_inff());
      int64_t inside = 0;
      for (int64_t kd = 0; kd < k.kernel[0]; ++kd) {
        const int64_t d = at[0] + kd * k.dilation[0];
        if (d < 0 || d >= e.d) continue;
        for (int64_t kh = 0; kh < k.kernel[1]; ++kh) {
          const int64_t h = at[1] + kh * k.dilation[1];
          if (h < 0 || h >= e.h) continue;
          for (int64_t kw = 0; kw < k.kernel[2]; ++kw) {
            const int64_t w = w0 + kw * k.dilation[2];
            if (w < 0 || w >= e.w) continue;
            const V x = load(in + ((d * e.h + h) * e.w + w) * kLanes);
            acc = a.average ? acc + x : larger_or_nan(acc, x);
            ++inside;
          }
        }
      }
      if (a.average) {
        int64_t count = inside;
        if (a.count_include_pad) {
          // The window, but not what a rounded-up size lets it reach past the padding.
          count = 1;
          const int64_t size[3] = {e.d, e.h, e.w}, from[3] = {at[0], at[1], w0};
          for (int i = 0; i < 3; ++i) {
            const int64_t limit = size[i] + k.padding[i];
            const int64_t to = from[i] + k.kernel[i] < limit ? from[i] + k.kernel[i] : limit;
            count *= to - from[i];
          }
        }
        acc = acc / broadcast(static_cast<float>(count));
      }
      store(out + ow * kLanes, acc);
    }
  }
}

// Blocks begin..end, each `voxels` vectors.
void affine(const void* from, void* to, int64_t voxels, const float* scale, const float* shift,
            const Activation& act, int64_t begin, int64_t end) {
  const auto* x = static_cast<const Stored*>(from);
  auto* y = static_cast<Stored*>(to);
  for (int64_t b = begin; b < end; ++b) {
    const V s = scale ? load(scale + b * kLanes) : broadcast(1.0f);
    const V t = scale ? load(shift + b * kLanes) : zero();
    for (int64_t i = b * voxels; i < (b + 1) * voxels; ++i) {
      const V v = load(x + i * kLanes);
      store(y + i * kLanes, activate(scale ? fma(v, s, t) : v, act, b));
    }
  }
}

void binary(const void* first, const void* second, void* to, int64_t voxels, bool b_per_channel,
            bool multiply, const Activation& act, int64_t begin, int64_t end) {
  const auto* a = static_cast<const Stored*>(first);
  auto* y = static_cast<Stored*>(to);
  for (int64_t block = begin; block < end; ++block)
    for (int64_t i = block * voxels; i < (block + 1) * voxels; ++i) {
      const V p = load(a + i * kLanes);
      const V q = b_per_channel ? load(static_cast<const float*>(second) + block * kLanes)
                                : load(static_cast<const Stored*>(second) + i * kLanes);
      store(y + i * kLanes, activate(multiply ? p * q : p + q, act, block));
    }
}

// Four partial results, always over the same voxels: the sum does not depend on the caller.
void reduce(const void* from, hfrt::Extent e, const int64_t stride[3], float* out, bool maximum,
            int64_t begin, int64_t end) {
  const auto* x = static_cast<const Stored*>(from);
  for (int64_t b = begin; b < end; ++b) {
    V acc[4];
    for (auto& v : acc) v = maximum ? broadcast(-__builtin_inff()) : zero();
    int64_t i = 0;
    for (int64_t d = 0; d < e.d; d += stride[0])
      for (int64_t h = 0; h < e.h; h += stride[1]) {
        const Stored* row = x + ((b * e.d + d) * e.h + h) * e.w * kLanes;
        V line = maximum ? broadcast(-__builtin_inff()) : zero();
        for (int64_t w = 0; w < e.w; w += stride[2]) {
          const V v = load(row + w * kLanes);
          line = maximum ? larger_or_nan(line, v) : line + v;
        }
        V& to = acc[i++ % 4];
        to = maximum ? larger_or_nan(to, line) : to + line;
      }
    const V low = maximum ? larger_or_nan(acc[0], acc[1]) : acc[0] + acc[1];
    const V high = maximum ? larger_or_nan(acc[2], acc[3]) : acc[2] + acc[3];
    store(out + b * kLanes, maximum ? larger_or_nan(low, high) : low + high);
  }
}

void deviation(const void* from, int64_t voxels, const float* mean, float* out, int64_t begin,
               int64_t end) {
  const auto* x = static_cast<const Stored*>(from);
  for (int64_t b = begin; b < end; ++b) {
    const V m = load(mean + b * kLanes);
    V acc[4];
    for (auto& v : acc) v = zero();
    for (int64_t i = 0; i < voxels; ++i) {
      const V d = load(x + (b * voxels + i) * kLanes) - m;
      acc[i % 4] = fma(d, d, acc[i % 4]);
    }
    store(out + b * kLanes, (acc[0] + acc[1]) + (acc[2] + acc[3]));
  }
}

// weight [inputs][ld]; outputs in panels of 16: panels begin..end.
void linear(const float* x, int64_t inputs, const float* weight, int64_t ld, const float* bias,
            const Activation& act, float* y, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    V acc[8];
    for (auto& v : acc) v = zero();
    const float* w = weight + p * kLanes;
    int64_t i = 0;
    for (; i + 8 <= inputs; i += 8)
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) acc[j] = fma(broadcast(x[i + j]), load(w + (i + j) * ld), acc[j]);
    for (int j = 0; i < inputs; ++i, ++j) acc[j] = fma(broadcast(x[i]), load(w + i * ld), acc[j]);
    const V sum = ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]));
    store(y + p * kLanes, activate(sum + load(bias + p * kLanes), act, p));
  }
}

}  // namespace
