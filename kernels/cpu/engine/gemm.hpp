// The one inner loop: rows of A (any row stride) times packed panels of weights.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace {

using hfrt::blocks_of;

// c[r][j] = sum_k a[r][k] b[k][j], r < Rows, j < Vectors * 16, always in the order of k: the result
// of a row does not depend on the rows beside it.
//
// Lda: the row stride if it is known (then every row is a constant away from one pointer), or 0.
template <int Rows, int Vectors, int Lda>
__attribute__((noinline)) void micro(const float* a, int64_t lda, int64_t depth, const float* b,
                                     float* c, int64_t ldc) {
  V acc[Rows][Vectors];
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) acc[r][j] = zero();
  // Every third row has a pointer of its own; the two between are reached by base + {1, 2} * lda.
  constexpr int kBases = Lda ? 1 : (Rows + 2) / 3;
  const float* base[kBases];
  for (int i = 0; i < kBases; ++i) base[i] = a + 3 * i * lda;
  const auto step = [&](int offset) __attribute__((always_inline)) {
    V w[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) w[j] = load(b + (offset * Vectors + j) * kLanes);
#pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r) {
      const V x = broadcast(Lda ? base[0][r * Lda + offset]
                                : base[Lda ? 0 : r / 3][(r % 3) * lda + offset]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) acc[r][j] = fma(x, w[j], acc[r][j]);
    }
  };
  int64_t k = 0;
  for (; k + 4 <= depth; k += 4) {
    step(0);
    step(1);
    step(2);
    step(3);
#pragma GCC unroll 16
    for (int i = 0; i < kBases; ++i) base[i] += 4;
    b += 4 * Vectors * kLanes;
  }
  for (; k < depth; ++k) {
    step(0);
#pragma GCC unroll 16
    for (int i = 0; i < kBases; ++i) base[i] += 1;
    b += Vectors * kLanes;
  }
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store(c + r * ldc + j * kLanes, acc[r][j]);
}

using Micro = void (*)(const float*, int64_t, int64_t, const float*, float*, int64_t);

template <int Vectors, int... Row>
struct MicroTable {
  static constexpr Micro table[] = {micro<Row + 1, Vectors, 0>...};
};
template <int Vectors, typename Sequence>
struct FromSequence;
template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
  using type = Sequence<I...>;
};
template <int Vectors, int... I>
struct FromSequence<Vectors, Sequence<I...>> : MicroTable<Vectors, I...> {};

using One = FromSequence<1, MakeSequence<kRows1>::type>;
using Two = FromSequence<kVectorsPerPanel, MakeSequence<kRows2>::type>;

constexpr int64_t kPanel = kVectorsPerPanel * kLanes;

void gemm(const float* a, int64_t lda, int64_t rows, int64_t depth, const float* packed,
          int64_t cout, int64_t first_panel, int64_t last_panel, float* c, int64_t ldc) {
  const int64_t vectors = blocks_of(cout);
  for (int64_t p = first_panel; p < last_panel; ++p) {
    const bool full = (p + 1) * kVectorsPerPanel <= vectors;
    const int64_t most = full ? kRows2 : kRows1;
    const Micro* table = full ? Two::table : One::table;
    // The whole groups of the common narrow layers.
    const Micro whole = lda == 16   ? (full ? micro<kRows2, kVectorsPerPanel, 16> : micro<kRows1, 1, 16>)
                        : lda == 32 ? (full ? micro<kRows2, kVectorsPerPanel, 32> : micro<kRows1, 1, 32>)
                                    : table[most - 1];
    // Equal shares instead of a small last one, which could not hide the latency.
    const int64_t parts = (rows + most - 1) / most;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = rows * i / parts, to = rows * (i + 1) / parts;
      (to - from == most ? whole : table[to - from - 1])(a + from * lda, lda, depth, packed + p * depth * kPanel,
                           c + from * ldc + (p - first_panel) * kPanel, ldc);
    }
  }
}

// weight [depth][cout]
void pack(const float* weight, int64_t cout, int64_t depth, float* out, int64_t begin,
          int64_t end) {
  const int64_t vectors = blocks_of(cout);
  for (int64_t p = begin; p < end; ++p) {
    const int64_t v = p * kVectorsPerPanel, left = vectors - v;
    const int64_t width = (left < kVectorsPerPanel ? left : kVectorsPerPanel) * kLanes;
    float* to = out + v * depth * kLanes;
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t j = 0; j < width; ++j) {
        const int64_t co = v * kLanes + j;
        to[k * width + j] = co < cout ? weight[k * cout + co] : 0.0f;
      }
  }
}

void mix(const float* x, const float* e, int64_t count, int64_t n, float* y, int64_t begin,
         int64_t end) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    V acc = zero();
    for (int64_t k = 0; k < count; ++k) acc = fma(broadcast(e[k]), load(x + k * n + i), acc);
    store(y + i, acc);
  }
  for (; i < end; ++i) {
    float acc = 0;
    for (int64_t k = 0; k < count; ++k) acc = __builtin_fmaf(e[k], x[k * n + i], acc);
    y[i] = acc;
  }
}

}  // namespace
