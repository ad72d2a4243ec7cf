// Convolution of one input channel, [D][H][W] plain: vectors run along W, so that no lane is
// spent on channels that are not there. Optionally with 2x2x2 max-pooling.
#pragma once

#include "activation.hpp"

namespace {

// Accumulators: channels times vectors of outputs. A vector of inputs serves all the channels and a
// weight all the vectors, so that loads do not bound the multiply-adds.
#if defined(__AVX512F__)
constexpr int kPoolChannels = 4, kWideChannels = 8, kWide = 2, kNarrowChannels = 16;
#else
constexpr int kPoolChannels = 1, kWideChannels = 2, kWide = 2, kNarrowChannels = 4;
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

// acc[c][j] = sum over taps of weight[tap][c] * x: channels 0..C of the vectors that start at
// `at[j]` in their lines. shift[tap]: floats from there.
template <int C, int N>
HFRT_INLINE void correlate(const float* const* at, const int64_t* shift, int64_t taps,
                           const float* weight, V (&acc)[C][N]) {
#pragma GCC unroll 16
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) acc[c][j] = zero();
  for (int64_t t = 0; t < taps; ++t, weight += kLanes) {
    V x[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) x[j] = load(at[j] + shift[t]);
#pragma GCC unroll 16
    for (int c = 0; c < C; ++c) {
      const V w = broadcast(weight[c]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) acc[c][j] = fma(x[j], w, acc[c][j]);
    }
  }
}

// Groups of C channels of one block; `put(channel, vectors)` takes the results.
template <int C, int N, typename Put>
HFRT_INLINE void correlate_block(const float* const* at, const int64_t* shift, int64_t taps,
                                 const float* weight, int64_t channels, const Put& put) {
  V acc[C][N];
  for (int c = 0; c < kLanes; c += C) {
    if (c < channels) {
      correlate<C, N>(at, shift, taps, weight + c, acc);
    } else {
      for (auto& row : acc)
        for (auto& v : row) v = zero();
    }
#pragma GCC unroll 16
    for (int i = 0; i < C; ++i) put(c + i, acc[i]);
  }
}

// What a task of `one_channel` reads: lines of the input, one stride phase after the other.
struct Lines {
  int64_t deep, high, phase, length;  // lines along d and h; floats of a phase and of a line
  HFRT_INLINE Lines(const hfrt::Window& k, int64_t many, int64_t vectors) {
    deep = (many - 1) * k.stride[0] + (k.kernel[0] - 1) * k.dilation[0] + 1;
    high = (many - 1) * k.stride[1] + (k.kernel[1] - 1) * k.dilation[1] + 1;
    phase = (vectors * kLanes + (k.kernel[2] - 1) * k.dilation[2] / k.stride[2] + kLanes) /
            kLanes * kLanes;
    length = phase * k.stride[2];
  }
};

// A task is one row (d, h) of the output after pooling; weight [block][tap][16].
// scratch: 3 * 256 floats, the taps' shifts, and the lines.
void one_channel(const hfrt::ConvArgs& a, int64_t begin, int64_t end, float* scratch) {
  const hfrt::Extent &e = a.in_extent, &o = a.conv_extent, &out = a.out_extent;
  const hfrt::Window& k = a.window;
  const int64_t many = a.epilogue.pool ? 2 : 1, s = k.stride[2];
  const int64_t taps = k.kernel[0] * k.kernel[1] * k.kernel[2];
  const int64_t vectors = (many * out.w + kLanes - 1) / kLanes;
  const Lines size(k, many, vectors);
  float *tile = scratch, *turned = scratch + 2 * kLanes * kLanes;
  auto* shift = reinterpret_cast<int64_t*>(turned + kLanes * kLanes);
  float* lines = turned + kLanes * kLanes + (2 * taps + kLanes) / kLanes * kLanes;
  for (int64_t t = 0; t < taps; ++t) {
    const int64_t kd = t / (k.kernel[1] * k.kernel[2]), kh = t / k.kernel[2] % k.kernel[1];
    const int64_t w = t % k.kernel[2] * k.dilation[2];
    shift[t] = (kd * k.dilation[0] * size.high + kh * k.dilation[1]) * size.length +
               w % s * size.phase + w / s;
  }
  const int64_t plane = a.ring_rows * out.w * kLanes;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t od = task / out.h, oh = task % out.h;
    for (int64_t i = 0; i < size.deep * size.high; ++i) {
      const int64_t d = od * many * k.stride[0] - k.padding[0] + i / size.high;
      const int64_t h = oh * many * k.stride[1] - k.padding[1] + i % size.high;
      float* line = lines + i * size.length;
      if (d < 0 || d >= e.d || h < 0 || h >= e.h) {
        for (int64_t x = 0; x < size.length; ++x) line[x] = 0;
        continue;
      }
      const int64_t p = k.padding[2];
      const float* from = a.in + (d * e.h + h) * e.w;
      if (s == 1) {
        const int64_t last = e.w + p < size.length ? e.w + p : size.length;
        int64_t x = 0;
        for (; x < p && x < size.length; ++x) line[x] = 0;
        for (; x < last; ++x) line[x] = from[x - p];
        for (; x < size.length; ++x) line[x] = 0;
      } else {
        for (int64_t phase = 0; phase < s; ++phase)
          for (int64_t i = 0; i < size.phase; ++i) {
            const int64_t x = i * s + phase - p;
            line[phase * size.phase + i] = x < 0 || x >= e.w ? 0 : from[x];
          }
      }
    }
    for (int64_t b = 0; b < blocks_of(o.c); ++b) {
      const float* weight = a.weight + b * taps * kLanes;
      const int64_t channels = o.c - b * kLanes;
      const int64_t base = (b * a.ring + od % a.ring) * plane + oh % a.ring_rows * out.w * kLanes;
      if (many == 2) {
        for (int64_t v = 0; v < vectors; ++v) {
          const float* at[4];
          for (int64_t j = 0; j < 4; ++j)
            at[j] = lines + v * kLanes +
                    (j / 2 * k.stride[0] * size.high + j % 2 * k.stride[1]) * size.length;
          correlate_block<kPoolChannels, 4>(
              at, shift, taps, weight, channels, [&](int c, const V(&y)[4]) {
                store(tile + c * kLanes,
                      larger_or_nan(larger_or_nan(y[0], y[1]), larger_or_nan(y[2], y[3])));
              });
          transpose(tile, turned);
          const int64_t first = v * kLanes / 2, left = out.w - first;
          for (int64_t w = 0; w < kLanes / 2 && w < left; ++w)
            finish(larger_or_nan(load(turned + 2 * w * kLanes),
                                 load(turned + (2 * w + 1) * kLanes)),
                   a.epilogue, a.out, base + (first + w) * kLanes, b);
        }
        continue;
      }
      for (int64_t v = 0; v < vectors; v += kWide) {
        const float* at[kWide] = {lines + v * kLanes, lines + (v + 1) * kLanes};
        const bool both = v + 1 < vectors;
        if (both)
          correlate_block<kWideChannels, kWide>(
              at, shift, taps, weight, channels, [&](int c, const V(&y)[kWide]) {
                store(tile + c * kLanes, y[0]);
                store(tile + (kLanes + c) * kLanes, y[1]);
              });
        else
          correlate_block<kNarrowChannels, 1>(
              at, shift, taps, weight, channels,
              [&](int c, const V(&y)[1]) { store(tile + c * kLanes, y[0]); });
        for (int64_t j = 0; j < (both ? 2 : 1); ++j) {
          transpose(tile + j * kLanes * kLanes, turned);
          const int64_t first = (v + j) * kLanes, left = out.w - first;
          for (int64_t w = 0; w < kLanes && w < left; ++w)
            finish(load(turned + w * kLanes), a.epilogue, a.out, base + (first + w) * kLanes, b);
        }
      }
    }
  }
}

}  // namespace
