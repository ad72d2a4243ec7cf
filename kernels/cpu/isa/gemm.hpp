// The one inner loop: rows of A (any row stride) times packed panels of weights.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace {

using hfrt::blocks_of;

// One step of a matrix product: 32 bits of each operand per lane, a float or a pair of bfloat16.
template <typename T>
HFRT_INLINE V multiply_add(V a, V b, V acc) {
#if defined(__AVX512BF16__)
  if constexpr (kPair<T> == 2) return dot(a, b, acc);
#endif
  return fma(a, b, acc);
}

// c[r][j] = sum_k a[r][k] b[k][j], r < Rows, j < Vectors * 16, always in the order of k: the result
// of a row does not depend on the rows beside it. a and b in units of 32 bits.
//
// Lda: the row stride if it is known (then every row is a constant away from one pointer), or 0.
template <typename T, int Rows, int Vectors, int Lda>
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
  const auto step = [&](int offset) HFRT_LAMBDA {
    V w[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) w[j] = load(b + (offset * Vectors + j) * kLanes);
#pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r) {
      const V x = broadcast(Lda ? base[0][r * Lda + offset]
                                : base[Lda ? 0 : r / 3][(r % 3) * lda + offset]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) acc[r][j] = multiply_add<T>(x, w[j], acc[r][j]);
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

template <typename T, int Vectors, int... Row>
struct MicroTable {
  static constexpr Micro table[] = {micro<T, Row + 1, Vectors, 0>...};
};
template <typename T, int Vectors, typename Sequence>
struct FromSequence;
template <int... I>
struct Sequence {};
template <int N, int... I>
struct MakeSequence : MakeSequence<N - 1, N - 1, I...> {};
template <int... I>
struct MakeSequence<0, I...> {
  using type = Sequence<I...>;
};
template <typename T, int Vectors, int... I>
struct FromSequence<T, Vectors, Sequence<I...>> : MicroTable<T, Vectors, I...> {};

template <typename T>
using One = FromSequence<T, 1, MakeSequence<kRows1>::type>;
template <typename T>
using Two = FromSequence<T, kVectorsPerPanel, MakeSequence<kRows2>::type>;

constexpr int64_t kPanel = kVectorsPerPanel * kLanes;

// As `micro`, with rows of a volume as it lies: a block of channels of row r at r * 16 numbers, the
// next block `block_step` floats on. depth: in units of 32 bits.
template <typename T, int Rows, int Vectors>
__attribute__((noinline)) void micro_blocked(const float* a, int64_t block_step, int64_t depth,
                                             const float* b, float* c, int64_t ldc) {
  constexpr int kSteps = kLanes / kPair<T>;
  V acc[Rows][Vectors];
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) acc[r][j] = zero();
  const auto step = [&](const float* at, int offset) HFRT_LAMBDA {
    V w[Vectors];
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) w[j] = load(b + (offset * Vectors + j) * kLanes);
#pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r) {
      const V x = broadcast(at[r * kSteps + offset]);
#pragma GCC unroll 4
      for (int j = 0; j < Vectors; ++j) acc[r][j] = multiply_add<T>(x, w[j], acc[r][j]);
    }
  };
  for (int64_t k = 0; k < depth; k += kSteps, a += block_step) {
    const int64_t n = depth - k < kSteps ? depth - k : kSteps;
    int64_t i = 0;
    for (; i + 4 <= n; i += 4, b += 4 * Vectors * kLanes) {
      step(a + i, 0);
      step(a + i, 1);
      step(a + i, 2);
      step(a + i, 3);
    }
    for (; i < n; ++i, b += Vectors * kLanes) step(a + i, 0);
  }
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Vectors; ++j) store(c + r * ldc + j * kLanes, acc[r][j]);
}

template <typename T, int Vectors, int... Row>
struct BlockedTable {
  static constexpr Micro table[] = {micro_blocked<T, Row + 1, Vectors>...};
};
template <typename T, int Vectors, typename Sequence>
struct BlockedFrom;
template <typename T, int Vectors, int... I>
struct BlockedFrom<T, Vectors, Sequence<I...>> : BlockedTable<T, Vectors, I...> {};

// Rows of `depth` factors, `lda` apart (with pairs, an even number), times weights as `pack` leaves
// them.
template <typename T>
void gemm(const T* rows_at, int64_t lda, int64_t rows, int64_t depth, const float* packed,
          int64_t cout, int64_t first_panel, int64_t last_panel, float* c, int64_t ldc) {
  const auto* a = reinterpret_cast<const float*>(rows_at);
  lda /= kPair<T>;
  depth = (depth + kPair<T> - 1) / kPair<T>;
  const int64_t vectors = blocks_of(cout);
  constexpr int kV = kVectorsPerPanel;
  for (int64_t p = first_panel; p < last_panel; ++p) {
    const bool full = (p + 1) * kV <= vectors;
    const int64_t most = full ? kRows2 : kRows1;
    const Micro* table = full ? Two<T>::table : One<T>::table;
    // The whole groups of the common narrow layers.
    const Micro whole = lda == 16   ? (full ? micro<T, kRows2, kV, 16> : micro<T, kRows1, 1, 16>)
                        : lda == 32 ? (full ? micro<T, kRows2, kV, 32> : micro<T, kRows1, 1, 32>)
                                    : table[most - 1];
    // Equal shares instead of a small last one, which could not hide the latency.
    const int64_t parts = (rows + most - 1) / most;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = rows * i / parts, to = rows * (i + 1) / parts;
      (to - from == most ? whole : table[to - from - 1])(
          a + from * lda, lda, depth, packed + p * depth * kPanel,
          c + from * ldc + (p - first_panel) * kPanel, ldc);
    }
  }
}

// 16 columns of the weights [depth][cout] from `co` on, with zeros beyond.
HFRT_INLINE V weights_at(const float* weight, int64_t cout, int64_t depth, int64_t k, int64_t co) {
  if (k >= depth) return zero();
  const float* from = weight + k * cout + co;
  if (co + kLanes <= cout) return load(from);
  alignas(64) float part[kLanes] = {};
  for (int64_t j = 0; j < cout - co; ++j) part[j] = from[j];
  return load(part);
}

// The weights of one step of a product, for 16 outputs: of one input, or of a pair.
template <typename T>
HFRT_INLINE void store_step(float* to, V first, V second) {
#if defined(__AVX512BF16__)
  if constexpr (kPair<T> == 2) {
    const __m512i low = _mm512_cvtepu16_epi32(rounded(first));
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded(second)), 16);
    store(to, V{_mm512_castsi512_ps(_mm512_or_si512(low, high))});
    return;
  }
#endif
  static_cast<void>(second);
  store(to, first);
}

// weight [depth][cout]
void pack(const float* weight, int64_t cout, int64_t depth, float* out, int64_t begin,
          int64_t end) {
  const int64_t vectors = blocks_of(cout), steps = (depth + kPair<Factor> - 1) / kPair<Factor>;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t v = p * kVectorsPerPanel, left = vectors - v;
    const int64_t width = left < kVectorsPerPanel ? left : kVectorsPerPanel;
    float* to = out + v * steps * kLanes;
    for (int64_t k = 0; k < steps; ++k)
      for (int64_t j = 0; j < width; ++j, to += kLanes) {
        const int64_t co = (v + j) * kLanes;
        const auto at = [&](int64_t i) { return weights_at(weight, cout, depth, i, co); };
        store_step<Factor>(to, at(k * kPair<Factor>), at(k * kPair<Factor> + 1));
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
  const int64_t left = end - i;
  float acc[kLanes] = {};  // side by side, so that no sum waits for another
  for (int64_t k = 0; k < count; ++k)
    for (int64_t j = 0; j < left; ++j) acc[j] = __builtin_fmaf(e[k], x[k * n + i + j], acc[j]);
  for (int64_t j = 0; j < left; ++j) y[i + j] = acc[j];
}

}  // namespace
