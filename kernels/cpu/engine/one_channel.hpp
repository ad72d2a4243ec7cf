// Convolution of one input channel, [D][H][W] plain: vectors run along W, so that no lane is
// spent on channels that are not there. Optionally with 2x2x2 max-pooling.
#pragma once

#include "activation.hpp"

namespace {

#if defined(__AVX512F__)
constexpr int kChannelsAtOnce = 16;
#else
constexpr int kChannelsAtOnce = 4;
#endif

// 16 vectors [channel][16 voxels] -> [voxel][16 channels]
HFRT_INLINE void transpose(const float* from, float* to) {
#if defined(__AVX512F__)
  __m512 r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = _mm512_load_ps(from + 16 * i);
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 2; ++j) {
      r[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[4 * i + j]),
                                                             _mm512_castps_pd(t[4 * i + 2 + j])));
      r[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(
          _mm512_castps_pd(t[4 * i + j]), _mm512_castps_pd(t[4 * i + 2 + j])));
    }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_f32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_f32x4(r[8 + i], r[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    _mm512_store_ps(to + 16 * i, _mm512_shuffle_f32x4(t[i], t[8 + i], 0x88));
    _mm512_store_ps(to + 16 * (8 + i), _mm512_shuffle_f32x4(t[i], t[8 + i], 0xdd));
    _mm512_store_ps(to + 16 * (4 + i), _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0x88));
    _mm512_store_ps(to + 16 * (12 + i), _mm512_shuffle_f32x4(t[4 + i], t[12 + i], 0xdd));
  }
#else
  for (int j = 0; j < kLanes; ++j)
    for (int i = 0; i < kLanes; ++i) to[j * kLanes + i] = from[i * kLanes + j];
#endif
}

// acc[c] = sum over taps of w[tap][first + c] * x: channels first.. of 16 outputs along W.
template <int N>
HFRT_INLINE void correlate(const float* const* rows, const hfrt::Window& k, int64_t phase_step,
                           int64_t at, const float* weight, float* to) {
  V acc[N];
#pragma GCC unroll 16
  for (int c = 0; c < N; ++c) acc[c] = zero();
  const int64_t lines = k.kernel[0] * k.kernel[1];
  for (int64_t line = 0; line < lines; ++line) {
    const float* row = rows[line] + at;
    for (int64_t kw = 0; kw < k.kernel[2]; ++kw, weight += kLanes) {
      const int64_t shift = kw * k.dilation[2];
      const V x = load(row + shift % k.stride[2] * phase_step + shift / k.stride[2]);
#pragma GCC unroll 16
      for (int c = 0; c < N; ++c) acc[c] = fma(x, broadcast(weight[c]), acc[c]);
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < N; ++c) store(to + c * kLanes, acc[c]);
}

HFRT_INLINE void correlate_block(const float* const* rows, const hfrt::Window& k,
                                 int64_t phase_step, int64_t at, const float* weight,
                                 int64_t channels, float* to) {
  for (int64_t c = 0; c < kLanes; c += kChannelsAtOnce) {
    const int64_t left = channels - c;
    float* part = to + c * kLanes;
    if (left <= 0) {
      for (int i = 0; i < kChannelsAtOnce; ++i) store(part + i * kLanes, zero());
    } else if (kChannelsAtOnce > 4 && left <= 4) {
      correlate<4>(rows, k, phase_step, at, weight + c, part);
      for (int i = 4; i < kChannelsAtOnce; ++i) store(part + i * kLanes, zero());
    } else if (kChannelsAtOnce > 8 && left <= 8) {
      correlate<8>(rows, k, phase_step, at, weight + c, part);
      for (int i = 8; i < kChannelsAtOnce; ++i) store(part + i * kLanes, zero());
    } else {
      correlate<kChannelsAtOnce>(rows, k, phase_step, at, weight + c, part);
    }
  }
}

// A task is one row (d, h) of the output after pooling; weight [block][tap][16].
// scratch: 2 * 16 * 16, then the input rows that the task reads.
void one_channel(const hfrt::ConvArgs& a, int64_t begin, int64_t end, float* scratch) {
  const hfrt::Extent &e = a.in_extent, &o = a.conv_extent, &out = a.out_extent;
  const hfrt::Window& k = a.window;
  const int64_t s = k.stride[2], many = a.epilogue.pool ? 2 : 1;
  const int64_t taps = k.kernel[0] * k.kernel[1] * k.kernel[2];
  const int64_t vectors = (many * out.w + kLanes - 1) / kLanes;
  // One stride phase of a row: what 16 * vectors outputs read.
  const int64_t phase_step =
      (vectors * kLanes + (k.kernel[2] - 1) * k.dilation[2] / s + 1 + kLanes) / kLanes * kLanes;
  float *tile = scratch, *turned = scratch + kLanes * kLanes, *lines = turned + kLanes * kLanes;
  const int64_t plane = out.h * out.w * kLanes;
  const int64_t d_lines = k.kernel[0] * (many == 2 ? 2 : 1), h_lines = k.kernel[1] * many;
  const float** rows = reinterpret_cast<const float**>(lines);
  lines += (k.kernel[0] * k.kernel[1] * 2 + kLanes) / kLanes * kLanes;
  (void)d_lines, (void)h_lines;
  const auto line_at = [&](int64_t od, int64_t oh, int64_t kd, int64_t kh) {
    return lines + (((od * many + oh) * k.kernel[0] + kd) * k.kernel[1] + kh) * s * phase_step;
  };
  const int64_t planes = a.ring ? a.ring : out.d;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t od = task / out.h, oh = task % out.h;
    for (int64_t sub = 0; sub < many * many; ++sub)
      for (int64_t kd = 0; kd < k.kernel[0]; ++kd)
        for (int64_t kh = 0; kh < k.kernel[1]; ++kh) {
          float* line = line_at(sub / many, sub % many, kd, kh);
          const int64_t d = (od * many + sub / many) * k.stride[0] - k.padding[0] + kd * k.dilation[0];
          const int64_t h = (oh * many + sub % many) * k.stride[1] - k.padding[1] + kh * k.dilation[1];
          const int64_t p = k.padding[2], length = phase_step * s;
          if (d < 0 || d >= e.d || h < 0 || h >= e.h) {
            for (int64_t i = 0; i < length; ++i) line[i] = 0;
            continue;
          }
          const float* from = a.in + (d * e.h + h) * e.w - p;
          if (s == 1) {
            const int64_t last = e.w + p < length ? e.w + p : length;
            int64_t i = 0;
            for (; i < p && i < length; ++i) line[i] = 0;
            for (; i < last; ++i) line[i] = from[i];
            for (; i < length; ++i) line[i] = 0;
          } else {
            for (int64_t i = 0; i < length; ++i)
              line[i % s * phase_step + i / s] = i < p || i >= e.w + p ? 0 : from[i];
          }
        }
    for (int64_t b = 0; b < blocks_of(o.c); ++b) {
      const float* weight = a.weight + b * taps * kLanes;
      const int64_t base = b * planes * plane + od % planes * plane + oh * out.w * kLanes;
      for (int64_t v = 0; v < vectors; ++v) {
        for (int64_t sub = 0; sub < many * many; ++sub) {
          for (int64_t i = 0; i < k.kernel[0] * k.kernel[1]; ++i)
            rows[i] = line_at(sub / many, sub % many, i / k.kernel[1], i % k.kernel[1]);
          float* to = sub == 0 ? tile : turned;
          correlate_block(rows, k, phase_step, v * kLanes, weight, o.c - b * kLanes, to);
          if (sub > 0)
            for (int64_t c = 0; c < kLanes; ++c)
              store(tile + c * kLanes,
                    larger_or_nan(load(tile + c * kLanes), load(turned + c * kLanes)));
        }
        transpose(tile, turned);
        const int64_t first = v * kLanes / many, left = out.w - first;
        const int64_t n = left < kLanes / many ? left : kLanes / many;
        for (int64_t w = 0; w < n; ++w) {
          V x = load(turned + w * many * kLanes);
          if (many == 2) x = larger_or_nan(x, load(turned + (2 * w + 1) * kLanes));
          finish(x, a.epilogue, a.out, base + (first + w) * kLanes, b);
        }
      }
    }
  }
}

}  // namespace
