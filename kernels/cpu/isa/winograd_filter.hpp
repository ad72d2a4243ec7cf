// Winograd's minimal filtering F(m, 3) along one axis, m = 2 or 4 (Winograd 1980; Lavin and Gray
// 2016), and along two of them. With stride 2, the odd inputs pass two taps, by F(2, 2), and the
// even ones the third: 5 products for 2 outputs, not 6.
//
// F(4, 3) takes the points 0, ±3/4, ±3/2, ∞: the largest error of F(4x4x4, 3x3x3) over 32 channels
// is then 3e-6 of the output's scale, against 2e-5 with the usual 0, ±1, ±2, ∞.
#pragma once

#include "simd.hpp"

namespace {

// Along one axis: N inputs become N points and these M outputs; the next tile's inputs are S on.
template <int Outputs, int Stride = 1>
struct Filter;

template <>
struct Filter<2> {
  static constexpr int M = 2, N = 4, S = 2;
  // B^T: x [4] -> y [4]
  static HFRT_INLINE void input(const V* x, V* y) {
    const V a = x[0] - x[2], b = x[1] + x[2], c = x[2] - x[1], d = x[3] - x[1];
    y[0] = a, y[1] = b, y[2] = c, y[3] = d;
  }
  // A^T: m [4] -> y [2]
  static HFRT_INLINE void output(const V* m, V* y) {
    const V s = m[1] + m[2], d = m[1] - m[2];
    y[0] = m[0] + s, y[1] = d + m[3];
  }
  // G: g [3] -> u [4]
  static HFRT_INLINE void weight(const V* g, V* u) {
    const V half = broadcast(0.5f), even = half * (g[0] + g[2]), odd = half * g[1];
    u[0] = g[0], u[1] = even + odd, u[2] = even - odd, u[3] = g[2];
  }
};

template <>
struct Filter<4> {
  static constexpr int M = 4, N = 6, S = 4;
  static HFRT_INLINE void input(const V* x, V* y) {
    constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b;
    const V x0 = x[0], x1 = x[1], x2 = x[2], x3 = x[3], x4 = x[4], x5 = x[5];
    const V even_a = fnma(broadcast(b2), x2, x4), odd_a = fnma(broadcast(b2), x1, x3);
    const V even_b = fnma(broadcast(a2), x2, x4), odd_b = fnma(broadcast(a2), x1, x3);
    y[0] = fma(broadcast(a2 * b2), x0, fnma(broadcast(a2 + b2), x2, x4));
    y[1] = fma(broadcast(a), odd_a, even_a);
    y[2] = fnma(broadcast(a), odd_a, even_a);
    y[3] = fma(broadcast(b), odd_b, even_b);
    y[4] = fnma(broadcast(b), odd_b, even_b);
    y[5] = fma(broadcast(a2 * b2), x1, fnma(broadcast(a2 + b2), x3, x5));
  }
  static HFRT_INLINE void output(const V* m, V* y) {
    constexpr float a = 0.75f, b = 1.5f;
    const V s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
    y[0] = m[0] + (s1 + s2);
    y[1] = fma(broadcast(a), d1, broadcast(b) * d2);
    y[2] = fma(broadcast(a * a), s1, broadcast(b * b) * s2);
    y[3] = fma(broadcast(a * a * a), d1, fma(broadcast(b * b * b), d2, m[5]));
  }
  // The point p has the row (1, p, p²) / Π (p - q) over the other finite points q.
  static HFRT_INLINE void weight(const V* g, V* u) {
    constexpr double a = 0.75, b = 1.5, a2 = a * a, b2 = b * b;
    constexpr double fa = 1 / (2 * a2 * (a2 - b2)), fb = 1 / (2 * b2 * (b2 - a2));
    const V even_a = broadcast(float(fa)) * fma(broadcast(float(a2)), g[2], g[0]);
    const V odd_a = broadcast(float(fa * a)) * g[1];
    const V even_b = broadcast(float(fb)) * fma(broadcast(float(b2)), g[2], g[0]);
    const V odd_b = broadcast(float(fb * b)) * g[1];
    u[0] = broadcast(float(1 / (a2 * b2))) * g[0];
    u[1] = even_a + odd_a, u[2] = even_a - odd_a;
    u[3] = even_b + odd_b, u[4] = even_b - odd_b;
    u[5] = g[2];
  }
};

template <>
struct Filter<2, 2> {
  static constexpr int M = 2, N = 5, S = 4;
  static HFRT_INLINE void input(const V* x, V* y) {
    const V a = x[0] - x[2], b = x[2], c = x[4] - x[2], d = x[1], e = x[3];
    y[0] = a, y[1] = b, y[2] = c, y[3] = d, y[4] = e;
  }
  static HFRT_INLINE void output(const V* m, V* y) {
    const V a = (m[0] + m[1]) + m[3], b = (m[1] + m[2]) + m[4];
    y[0] = a, y[1] = b;
  }
  static HFRT_INLINE void weight(const V* g, V* u) {
    u[0] = g[0], u[1] = g[0] + g[2], u[2] = g[2], u[3] = u[4] = g[1];
  }
};

// A plane along H and W: `at(h, w)` gives the inputs; to [points of H][points of W].
template <typename H, typename W, typename At>
HFRT_INLINE void plane_input(const At& at, float* to) {
  V rows[H::N][W::N];
#pragma GCC unroll 6
  for (int h = 0; h < H::N; ++h) {
    V x[W::N];
#pragma GCC unroll 6
    for (int w = 0; w < W::N; ++w) x[w] = load(at(h, w));
    W::input(x, rows[h]);
  }
#pragma GCC unroll 6
  for (int w = 0; w < W::N; ++w) {
    V x[H::N], y[H::N];
#pragma GCC unroll 6
    for (int h = 0; h < H::N; ++h) x[h] = rows[h][w];
    H::input(x, y);
#pragma GCC unroll 6
    for (int h = 0; h < H::N; ++h) store(to + (h * W::N + w) * kLanes, y[h]);
  }
}

// And back: from [points of H][points of W] to the outputs [H][W].
template <typename H, typename W>
HFRT_INLINE void plane_output(const float* from, float* to) {
  V rows[H::M][W::N];
#pragma GCC unroll 6
  for (int w = 0; w < W::N; ++w) {
    V x[H::N], r[H::M];
#pragma GCC unroll 6
    for (int h = 0; h < H::N; ++h) x[h] = load(from + (h * W::N + w) * kLanes);
    H::output(x, r);
#pragma GCC unroll 4
    for (int h = 0; h < H::M; ++h) rows[h][w] = r[h];
  }
#pragma GCC unroll 4
  for (int h = 0; h < H::M; ++h) {
    V r[W::M];
    W::output(rows[h], r);
#pragma GCC unroll 4
    for (int w = 0; w < W::M; ++w) store(to + (h * W::M + w) * kLanes, r[w]);
  }
}

}  // namespace
