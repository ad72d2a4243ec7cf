// The gradient of a 3x3x3 convolution's weights: for each pair of channels and each tap, a sum over
// voxels. Along W, the three taps of all channels of x lie side by side: a small matrix product.
#pragma once

#include "simd.hpp"
#include "training.hpp"

namespace {

// Rows of x's numbers that stay in registers; 6 of two registers each on AVX2.
constexpr int kTileRows = 6;

// out[r] += sum over rows and w of x[r] * dy, 16 channels of dy.
template <int Rows>
HFRT_INLINE void gradient_tile(const float* x, int64_t x_step, int64_t x_row, const float* dy,
                               int64_t channels, int64_t width, int64_t rows, float* out) {
  V sums[Rows];
  for (int r = 0; r < Rows; ++r) sums[r] = load(out + r * channels);
  for (int64_t row = 0; row < rows; ++row, x += x_row)
    for (int64_t i = 0; i < width; ++i, dy += channels) {
      const V d = load(dy);
      for (int r = 0; r < Rows; ++r) sums[r] = fma(broadcast(x[i * x_step + r]), d, sums[r]);
    }
  for (int r = 0; r < Rows; ++r) store(out + r * channels, sums[r]);
}

void filter_gradient(const hfrt::FilterGradient& a, float* scratch, float* out, int64_t begin,
                     int64_t end) {
  const int64_t channels = a.padded(), line = a.line(), taps = 3 * a.cin, most = a.rows();
  const int64_t numbers = a.numbers(), slabs = a.slabs();
  float* const lines = scratch;                              // [3][rows][line]
  float* const copied = scratch + 3 * a.lines(most) * line;  // [rows][ow][channels]
  for (int64_t task = begin; task < end; ++task) {
    const int64_t sample = task / slabs, first = task % slabs * a.slab();
    const int64_t last = first + a.slab() < a.od ? first + a.slab() : a.od;
    float* const found = out + task * numbers;
    for (int64_t i = 0; i < numbers; ++i) found[i] = 0;
    for (int64_t z = first; z < last; ++z)
      for (int64_t y = 0; y < a.oh; y += most) {
        const int64_t rows = a.oh - y < most ? a.oh - y : most, high = a.lines(rows);
        for (int64_t kd = 0; kd < 3; ++kd)
          for (int64_t r = 0; r < high; ++r) {
            float* to = lines + (kd * high + r) * line;
            const int64_t zd = z * a.stride + kd - 1, zh = y * a.stride + r - 1;
            const bool inside = zd >= 0 && zd < a.d && zh >= 0 && zh < a.h;
            const float* from = inside ? a.x + ((sample * a.d + zd) * a.h + zh) * a.w * a.cin : a.x;
            const int64_t whole =
                inside ? (a.w * a.cin < line - a.cin ? a.w * a.cin : line - a.cin) : 0;
            for (int64_t i = 0; i < a.cin; ++i) to[i] = 0;
            for (int64_t i = 0; i < whole; ++i) to[a.cin + i] = from[i];
            for (int64_t i = a.cin + whole; i < line; ++i) to[i] = 0;
          }
        const float* dy = a.dy + (((sample * a.od + z) * a.oh + y) * a.ow) * a.cout;
        if (channels != a.cout) {
          for (int64_t v = 0; v < rows * a.ow; ++v)
            for (int64_t c = 0; c < channels; ++c)
              copied[v * channels + c] = c < a.cout ? dy[v * a.cout + c] : 0.0f;
          dy = copied;
        }
        for (int64_t c = 0; c < channels; c += kLanes) {
          float* at = found + c;
          for (int64_t k = 0; k < 9; ++k) {
            const float* x = lines + (k / 3 * high + k % 3) * line;
            const int64_t step = a.stride * a.cin, next = a.stride * line;
            int64_t m = 0;
            for (; m + kTileRows <= taps; m += kTileRows, at += kTileRows * channels)
              gradient_tile<kTileRows>(x + m, step, next, dy + c, channels, a.ow, rows, at);
            for (; m + 3 <= taps; m += 3, at += 3 * channels)
              gradient_tile<3>(x + m, step, next, dy + c, channels, a.ow, rows, at);
          }
          V bias = load(at);
          for (int64_t v = 0; v < rows * a.ow; ++v) bias = bias + load(dy + c + v * channels);
          store(at, bias);
        }
      }
  }
}

}  // namespace
