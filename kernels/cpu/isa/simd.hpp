// Sixteen float32 lanes on every instruction set: one channel block. Included only by the sources
// that are compiled once per set; everything is in an unnamed namespace or inlined, so that no
// definition for one set can be linked into the code of another.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define HFRT_INLINE __attribute__((always_inline)) inline
#define HFRT_LAMBDA __attribute__((always_inline))

namespace {

constexpr int kLanes = 16;

// HFRT_STORED_bf16: volumes are stored in bfloat16, the upper half of a float32, rounded to nearest
// even. With AVX512_BF16, `Factor`s, which pairwise products take, are bfloat16 too.
using Bf16 = uint16_t;
#if defined(HFRT_STORED_bf16)
using Stored = Bf16;
#else
using Stored = float;
#endif
#if defined(HFRT_STORED_bf16) && defined(__AVX512BF16__)
using Factor = Bf16;
#else
using Factor = float;
#endif
// Factors in 32 bits: the unit of the matrix products' rows.
template <typename T>
constexpr int kPair = sizeof(float) / sizeof(T);

#if defined(__AVX512F__)

// Accumulators: 14 rows of 2 vectors, or 28 rows of 1; 4 of 32 registers stay for operands.
constexpr int kVectorsPerPanel = 2;
constexpr int kRows2 = 14, kRows1 = 28;

struct V {
  __m512 v;
};
HFRT_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
HFRT_INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
HFRT_INLINE V broadcast(float s) { return {_mm512_set1_ps(s)}; }
HFRT_INLINE V load(const Bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
#if defined(__AVX512BF16__)
HFRT_INLINE __m256i rounded(V a) { return (__m256i)_mm512_cvtneps_pbh(a.v); }
// acc + a[2i] b[2i] + a[2i + 1] b[2i + 1], in float32
HFRT_INLINE V dot(V a, V b, V acc) {
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)a.v, (__m512bh)b.v)};
}
#else
HFRT_INLINE __m256i rounded(V a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, up, quiet), 16));
}
#endif
HFRT_INLINE void store(Bf16* p, V a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(a));
}
HFRT_INLINE V zero() { return {_mm512_setzero_ps()}; }
HFRT_INLINE V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
HFRT_INLINE V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
HFRT_INLINE V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
HFRT_INLINE V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
HFRT_INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
HFRT_INLINE V fnma(V a, V b, V c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
HFRT_INLINE V permuted(V a, const int32_t* from) {
  return {_mm512_permutexvar_ps(_mm512_load_si512(from), a.v)};
}
HFRT_INLINE V upper_half(V a) { return {_mm512_shuffle_f32x4(a.v, a.v, 0xee)}; }
// b where a < b or a is NaN; otherwise a. `larger(zero, x)` keeps a NaN in x.
HFRT_INLINE V larger(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
HFRT_INLINE V smaller(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
// a > 0 ? b : c, lane by lane
HFRT_INLINE V if_positive(V a, V b, V c) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_GT_OQ), c.v, b.v)};
}
HFRT_INLINE V if_nan(V a, V b, V c) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q), c.v, b.v)};
}
HFRT_INLINE V round_even(V a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127]
HFRT_INLINE V power_of_two(V n) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127)), 23))};
}

#elif defined(__AVX2__)

// 6 rows of one block (two registers each); 4 of 16 registers stay for operands.
constexpr int kVectorsPerPanel = 1;
constexpr int kRows2 = 6, kRows1 = 6;

struct V {
  __m256 a, b;
};
HFRT_INLINE V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
HFRT_INLINE void store(float* p, V x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
HFRT_INLINE V broadcast(float s) {
  const __m256 v = _mm256_set1_ps(s);
  return {v, v};
}
HFRT_INLINE __m256 widened(const Bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
HFRT_INLINE V load(const Bf16* p) { return {widened(p), widened(p + 8)}; }
HFRT_INLINE __m256i rounded(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  return _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, _mm256_castps_si256(nan)), 16);
}
HFRT_INLINE void store(Bf16* p, V x) {
  const __m256i packed = _mm256_packus_epi32(rounded(x.a), rounded(x.b));  // by 128 bits: 0 2 1 3
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
HFRT_INLINE V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
#define HFRT_BINARY(name, f) \
  HFRT_INLINE V name(V x, V y) { return {f(x.a, y.a), f(x.b, y.b)}; }
HFRT_BINARY(operator+, _mm256_add_ps)
HFRT_BINARY(operator-, _mm256_sub_ps)
HFRT_BINARY(operator*, _mm256_mul_ps)
HFRT_BINARY(operator/, _mm256_div_ps)
HFRT_BINARY(larger, _mm256_max_ps)
HFRT_BINARY(smaller, _mm256_min_ps)
#undef HFRT_BINARY
HFRT_INLINE V fma(V x, V y, V z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
HFRT_INLINE V fnma(V x, V y, V z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
HFRT_INLINE V if_positive(V x, V y, V z) {
  const __m256 o = _mm256_setzero_ps();
  return {_mm256_blendv_ps(z.a, y.a, _mm256_cmp_ps(x.a, o, _CMP_GT_OQ)),
          _mm256_blendv_ps(z.b, y.b, _mm256_cmp_ps(x.b, o, _CMP_GT_OQ))};
}
HFRT_INLINE V if_nan(V x, V y, V z) {
  return {_mm256_blendv_ps(z.a, y.a, _mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q)),
          _mm256_blendv_ps(z.b, y.b, _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q))};
}
HFRT_INLINE V round_even(V x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
HFRT_INLINE __m256 power_of_two8(__m256 n) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
HFRT_INLINE V power_of_two(V n) { return {power_of_two8(n.a), power_of_two8(n.b)}; }

#elif defined(__ARM_NEON)

constexpr int kVectorsPerPanel = 1;
constexpr int kRows2 = 6, kRows1 = 6;

struct V {
  float32x4_t q[4];
};
#define HFRT_EACH(expression)                        \
  V r;                                               \
  for (int i = 0; i < 4; ++i) r.q[i] = (expression); \
  return r
HFRT_INLINE V load(const float* p) { HFRT_EACH(vld1q_f32(p + 4 * i)); }
HFRT_INLINE void store(float* p, V a) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.q[i]);
}
HFRT_INLINE V broadcast(float s) { HFRT_EACH(vdupq_n_f32(s)); }
HFRT_INLINE V load(const Bf16* p) {
  HFRT_EACH(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)));
}
HFRT_INLINE uint16x4_t rounded(float32x4_t a) {
  const uint32x4_t bits = vreinterpretq_u32_f32(a);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t up = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
  return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), up, quiet), 16);
}
HFRT_INLINE void store(Bf16* p, V a) {
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, rounded(a.q[i]));
}
HFRT_INLINE V zero() { return broadcast(0.0f); }
HFRT_INLINE V operator+(V a, V b) { HFRT_EACH(vaddq_f32(a.q[i], b.q[i])); }
HFRT_INLINE V operator-(V a, V b) { HFRT_EACH(vsubq_f32(a.q[i], b.q[i])); }
HFRT_INLINE V operator*(V a, V b) { HFRT_EACH(vmulq_f32(a.q[i], b.q[i])); }
HFRT_INLINE V operator/(V a, V b) { HFRT_EACH(vdivq_f32(a.q[i], b.q[i])); }
HFRT_INLINE V fma(V a, V b, V c) { HFRT_EACH(vfmaq_f32(c.q[i], a.q[i], b.q[i])); }
HFRT_INLINE V fnma(V a, V b, V c) { HFRT_EACH(vfmsq_f32(c.q[i], a.q[i], b.q[i])); }
// As x86: the second operand where the comparison fails.
HFRT_INLINE V larger(V a, V b) { HFRT_EACH(vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i])); }
HFRT_INLINE V smaller(V a, V b) { HFRT_EACH(vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i])); }
HFRT_INLINE V if_positive(V a, V b, V c) {
  HFRT_EACH(vbslq_f32(vcgtq_f32(a.q[i], vdupq_n_f32(0)), b.q[i], c.q[i]));
}
HFRT_INLINE V if_nan(V a, V b, V c) {
  HFRT_EACH(vbslq_f32(vceqq_f32(a.q[i], a.q[i]), c.q[i], b.q[i]));
}
HFRT_INLINE V round_even(V a) { HFRT_EACH(vrndnq_f32(a.q[i])); }
HFRT_INLINE V power_of_two(V n) {
  HFRT_EACH(
      vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.q[i]), vdupq_n_s32(127)), 23)));
}
#undef HFRT_EACH

#else
#error "simd.hpp: compile with AVX2 and FMA, AVX-512, or NEON"
#endif

HFRT_INLINE void copy(float* to, const float* from) { store(to, load(from)); }
HFRT_INLINE void copy(float* to, const Bf16* from) { store(to, load(from)); }
HFRT_INLINE void copy(Bf16* to, const Bf16* from) { __builtin_memcpy(to, from, 2 * kLanes); }

// The first n of 16 numbers, 0 in the other lanes; and the first n lanes alone.
template <typename T>
HFRT_INLINE V load_some(const T* from, int64_t n) {
  if (n == kLanes) return load(from);
  alignas(64) T part[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = from[i];
  return load(part);
}
HFRT_INLINE void store_some(float* to, V x, int64_t n) {
  if (n == kLanes) return store(to, x);
  alignas(64) float part[kLanes];
  store(part, x);
  for (int64_t i = 0; i < n; ++i) to[i] = part[i];
}

#if !defined(__AVX512F__)
// a[from[i]] in lane i
HFRT_INLINE V permuted(V a, const int32_t* from) {
  alignas(64) float x[kLanes], y[kLanes];
  store(x, a);
  for (int i = 0; i < kLanes; ++i) y[i] = x[from[i]];
  return load(y);
}
// Lanes 8 to 15 in lanes 0 to 7.
HFRT_INLINE V upper_half(V a) {
  alignas(64) float x[2 * kLanes] = {};
  store(x, a);
  return load(x + kLanes / 2);
}
#endif

// 16 vectors of 16 numbers, turned; both aligned to 64 bytes.
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
      r[4 * i + 2 * j] = _mm512_castpd_ps(
          _mm512_unpacklo_pd(_mm512_castps_pd(t[4 * i + j]), _mm512_castps_pd(t[4 * i + 2 + j])));
      r[4 * i + 2 * j + 1] = _mm512_castpd_ps(
          _mm512_unpackhi_pd(_mm512_castps_pd(t[4 * i + j]), _mm512_castps_pd(t[4 * i + 2 + j])));
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

// 1 in the first `n` lanes, 0 in the others.
alignas(64) constexpr float kOnesThenZeros[2 * kLanes] = {1, 1, 1, 1, 1, 1, 1, 1,
                                                          1, 1, 1, 1, 1, 1, 1, 1};
HFRT_INLINE V first_lanes(int64_t n) {
  return load(kOnesThenZeros + (n >= kLanes ? 0 : n <= 0 ? kLanes : kLanes - n));
}

// A function of each number, for what is rare.
template <typename F>
HFRT_INLINE V each_lane(V a, const F& f) {
  alignas(64) float x[kLanes];
  store(x, a);
  for (int i = 0; i < kLanes; ++i) x[i] = f(x[i]);
  return load(x);
}
HFRT_INLINE V root(V a) {
  return each_lane(a, [](float x) { return __builtin_sqrtf(x); });
}
HFRT_INLINE V logarithm(V a) {
  return each_lane(a, [](float x) { return __builtin_logf(x); });
}

// e^x, relative error below 3e-7; 0 below -87.3 and infinity above 88.7; NaN stays NaN.
HFRT_INLINE V exponential(V x) {
  const V low = broadcast(-87.3f), high = broadcast(88.72f);
  const V clamped = smaller(larger(x, low), high);
  const V n = round_even(clamped * broadcast(1.44269504f));
  // Cody-Waite: ln 2 in two parts, so that r is exact to the last bits.
  const V r = fnma(n, broadcast(-2.12194440e-4f), fnma(n, broadcast(0.693359375f), clamped));
  V p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  p = fma(p, r * r, r + broadcast(1.0f));
  // 2^128 is no float: the factor is split.
  const V half = round_even(n * broadcast(0.5f));
  V y = p * power_of_two(half) * power_of_two(n - half);
  y = if_positive(low - x, zero(), y);
  y = if_positive(x - high, broadcast(__builtin_inff()), y);
  return if_nan(x, x, y);
}

}  // namespace
