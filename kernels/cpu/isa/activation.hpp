// Activations on one vector of 16 channels, and the end of every convolution.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace {

using hfrt::Act;
using hfrt::Activation;

// e^x - 1 for x <= 0, without the cancellation near 0.
HFRT_INLINE V exponential_minus_one(V x) {
  V p = fma(x, broadcast(1.0f / 9), broadcast(1.0f));
  for (int n = 8; n >= 2; --n)
    p = fma(x * broadcast(1.0f / static_cast<float>(n)), p, broadcast(1.0f));
  return if_positive(x + broadcast(0.5f), x * p, exponential(x) - broadcast(1.0f));
}

// 1 / (1 + e^-x), absolute error below 2e-7.
HFRT_INLINE V sigmoid(V x) { return broadcast(1.0f) / (broadcast(1.0f) + exponential(zero() - x)); }

// Error below 4e-7 of the result near 0 and of 1 elsewhere.
HFRT_INLINE V tanh_of(V x) {
  const V e = exponential(broadcast(-2.0f) * larger(x, zero() - x));
  const V t = (broadcast(1.0f) - e) / (broadcast(1.0f) + e);
  const V signed_t = if_positive(x, t, zero() - t);
  // Near 0 the quotient cancels; a series takes over.
  const V s = x * x;
  V p = fma(s, broadcast(-0.0539682540f), broadcast(0.1333333333f));
  p = fma(s, p, broadcast(-0.3333333333f));
  const V small = fma(x * s, p, x);
  return if_nan(x, x, if_positive(s - broadcast(0.04f), signed_t, small));
}

// ln(1 + e^x), by Newton's method on e^y = 1 + e^x from a good first guess.
HFRT_INLINE V softplus(V x) {
  const V magnitude = larger(x, zero() - x);
  const V e = exponential(zero() - magnitude);  // 0..1
  // ln(1 + e) = 2 artanh(e / (2 + e)), |argument| <= 1/3
  const V z = e / (broadcast(2.0f) + e), s = z * z;
  V p = broadcast(2.0f / 15.0f);
  p = fma(s, p, broadcast(2.0f / 13.0f));
  p = fma(s, p, broadcast(2.0f / 11.0f));
  p = fma(s, p, broadcast(2.0f / 9.0f));
  p = fma(s, p, broadcast(2.0f / 7.0f));
  p = fma(s, p, broadcast(2.0f / 5.0f));
  p = fma(s, p, broadcast(2.0f / 3.0f));
  p = fma(s, p, broadcast(2.0f));
  return if_nan(x, x, larger(x, zero()) + z * p);
}

// erf, absolute error below 2e-7 (Abramowitz and Stegun 7.1.26 has 1.5e-7 in exact arithmetic).
HFRT_INLINE V erf_of(V x) {
  const V a = larger(x, zero() - x);
  const V t = broadcast(1.0f) / fma(a, broadcast(0.3275911f), broadcast(1.0f));
  V p = broadcast(1.061405429f);
  p = fma(p, t, broadcast(-1.453152027f));
  p = fma(p, t, broadcast(1.421413741f));
  p = fma(p, t, broadcast(-0.284496736f));
  p = fma(p, t, broadcast(0.254829592f));
  const V y = fnma(p * t, exponential(zero() - a * a), broadcast(1.0f));
  return if_positive(x, y, zero() - y);
}

// Not inlined: its constants would take the registers of the loops around.
__attribute__((noinline)) V activate_other(V x, const Activation& act, int64_t block) {
  switch (act.kind) {
    case Act::none:
    case Act::relu: break;
    case Act::relu6: return if_nan(x, x, smaller(larger(zero(), x), broadcast(6.0f)));
    case Act::leaky_relu: return if_positive(x, x, x * broadcast(act.alpha));
    case Act::prelu: return if_positive(x, x, x * load(act.slope + block * kLanes));
    case Act::elu: return if_positive(x, x, broadcast(act.alpha) * exponential_minus_one(x));
    case Act::silu:
      // -inf * 0 would be NaN, as it is in the definition.
      return x * sigmoid(x);
    case Act::gelu: {
      const V half = x * broadcast(0.5f);
      return fma(half, erf_of(x * broadcast(0.70710678f)), half);
    }
    case Act::gelu_tanh: {
      const V inner = x * fma(x * x, broadcast(0.035677408f), broadcast(0.79788456f));
      const V half = x * broadcast(0.5f);
      return fma(half, tanh_of(inner), half);
    }
    case Act::sigmoid: return sigmoid(x);
    case Act::tanh: return tanh_of(x);
    case Act::hardswish:
    case Act::hardsigmoid: {
      const V gate =
          smaller(larger(x + broadcast(3.0f), zero()), broadcast(6.0f)) * broadcast(1.0f / 6.0f);
      return if_nan(x, x, act.kind == Act::hardswish ? x * gate : gate);
    }
    case Act::softplus: return softplus(x);
    case Act::mish: return x * tanh_of(softplus(x));
    case Act::clip:
      return if_nan(x, x, smaller(larger(x, broadcast(act.alpha)), broadcast(act.beta)));
    case Act::exp: return exponential(x);
    case Act::log: return logarithm(x);
    case Act::sqrt: return root(x);
    case Act::abs: return larger(x, zero() - x);
    case Act::erf: {
      // Near 0 a series, whose error is relative.
      const V q = x * x;
      constexpr float kSeries[] = {-1.0f / 1320, 1.0f / 216, -1.0f / 42, 0.1f, -1.0f / 3, 1.0f};
      V p = broadcast(1.0f / 9360);
      for (const float c : kSeries) p = fma(q, p, broadcast(c));
      const V small = x * broadcast(1.12837917f) * p;
      return if_nan(x, x, if_positive(broadcast(0.25f) - q, small, erf_of(x)));
    }
    case Act::power: {
      if (act.alpha == -1) return broadcast(1.0f) / x;
      const float power = act.alpha;
      return each_lane(x, [power](float v) { return __builtin_powf(v, power); });
    }
  }
  return x;
}

HFRT_INLINE V activate(V x, const Activation& act, int64_t block) {
  if (act.kind == Act::relu) return larger(zero(), x);
  return act.kind == Act::none ? x : activate_other(x, act, block);
}

// The larger value; NaN if either is.
HFRT_INLINE V larger_or_nan(V a, V b) { return if_nan(a, a, larger(a, b)); }

// Bias, residual, activation and the second output for one vector at `offset` in the output; `out`
// stands at `kept`, or is not kept at all (-1).
HFRT_INLINE void finish(V x, const hfrt::Epilogue& e, Stored* out, int64_t offset, int64_t kept,
                        int64_t block) {
  x = x + load(e.bias + block * kLanes);
  if (e.residual) x = x + load(static_cast<const Stored*>(e.residual) + offset);
  x = activate(x, e.act, block);
  if (kept >= 0) store(out + kept, x);
  if (e.second)
    store(static_cast<Stored*>(e.second) + offset,
          activate(
              fma(x, load(e.second_scale + block * kLanes), load(e.second_shift + block * kLanes)),
              e.second_act, block));
}
HFRT_INLINE void finish(V x, const hfrt::Epilogue& e, Stored* out, int64_t offset, int64_t block) {
  finish(x, e, out, offset, offset, block);
}

}  // namespace
