// Layouts, pooling, operations number by number, and small matrix-vector products.
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
    if (c < kLanes) __builtin_memset(square, 0, sizeof square);
    for (int64_t i = 0; i < c; ++i)
      store(square + i * kLanes, load_some(plain + from + i * voxels, v));
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
    for (int64_t i = 0; i < c; ++i)
      store_some(plain + to + i * voxels, load(turned + i * kLanes), v);
  });
}

// A task is one row (d, h) of one block's outputs.
void pool(const hfrt::PoolArgs& a, int64_t begin, int64_t end) {
  const hfrt::Extent &e = a.in_extent, &o = a.out_extent;
  const hfrt::Window& k = a.window;
  int64_t reach[3];
  for (int i = 0; i < 3; ++i) reach[i] = (k.kernel[i] - 1) * k.dilation[i];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / (o.d * o.h), od = task / o.h % o.d, oh = task % o.h;
    const Stored* in = static_cast<const Stored*>(a.in) + block * e.voxels() * kLanes;
    Stored* out = static_cast<Stored*>(a.out) + task * o.w * kLanes;
    const int64_t at[2] = {od * k.stride[0] - k.padding[0], oh * k.stride[1] - k.padding[1]};
    for (int64_t ow = 0; ow < o.w; ++ow) {
      const int64_t w0 = ow * k.stride[2] - k.padding[2];
      V acc = a.average ? zero() : broadcast(-__builtin_inff());
      int64_t inside = 0;
      const bool whole = at[0] >= 0 && at[0] + reach[0] < e.d && at[1] >= 0 &&
                         at[1] + reach[1] < e.h && w0 >= 0 && w0 + reach[2] < e.w;
      if (whole && !a.average) {
        for (int64_t kd = 0; kd < k.kernel[0]; ++kd)
          for (int64_t kh = 0; kh < k.kernel[1]; ++kh) {
            const Stored* x =
                in +
                (((at[0] + kd * k.dilation[0]) * e.h + at[1] + kh * k.dilation[1]) * e.w + w0) *
                    kLanes;
            for (int64_t kw = 0; kw < k.kernel[2]; ++kw)
              acc = larger_or_nan(acc, load(x + kw * k.dilation[2] * kLanes));
          }
        store(out + ow * kLanes, acc);
        continue;
      }
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

// f(block, first, last) for the vectors begin..end of all blocks, `voxels` each.
template <typename F>
HFRT_INLINE void each_block(int64_t voxels, int64_t begin, int64_t end, const F& f) {
  for (int64_t i = begin; i < end;) {
    const int64_t block = i / voxels,
                  last = (block + 1) * voxels < end ? (block + 1) * voxels : end;
    f(block, i, last);
    i = last;
  }
}

// Vectors begin..end of all blocks.
void affine(const hfrt::AffineArgs& a, int64_t begin, int64_t end) {
  const auto* x = static_cast<const Stored*>(a.in);
  auto* y = static_cast<Stored*>(a.out);
  const Activation& act = a.act;
  each_block(a.voxels, begin, end, [&](int64_t b, int64_t first, int64_t last) HFRT_LAMBDA {
    const V m = a.centre ? load(a.centre + b * kLanes) : zero();
    const V s = a.scale ? load(a.scale + b * kLanes) : broadcast(1.0f);
    const V t = a.scale ? load(a.shift + b * kLanes) : zero();
    const V kept = first_lanes(a.channels - b * kLanes);
    const auto mapped = [&](V v) HFRT_LAMBDA { return a.scale ? fma(v - m, s, t) : v; };
    if (act.kind == Act::none || act.kind == Act::relu || act.kind == Act::leaky_relu) {
      const V below = broadcast(act.kind == Act::none   ? 1.0f
                                : act.kind == Act::relu ? 0.0f
                                                        : act.alpha);
      for (int64_t i = first; i < last; ++i) {
        const V r = mapped(load(x + i * kLanes));
        store(y + i * kLanes,
              act.kind == Act::relu ? larger(zero(), r) : if_positive(r, r, r * below));
      }
      return;
    }
    for (int64_t i = first; i < last; ++i) {
      const V r = activate(mapped(load(x + i * kLanes)), act, b);
      store(y + i * kLanes, if_positive(kept, r, zero()));
    }
  });
}

// Vector i of an operand, of block b.
HFRT_INLINE V operand(const hfrt::Operand& x, int64_t i, int64_t b, int64_t voxels) {
  switch (x.spread) {
    case hfrt::Spread::channels: return load(static_cast<const float*>(x.at) + b * kLanes);
    case hfrt::Spread::voxels: {
      alignas(64) float lanes[kLanes];
      store(lanes, load(static_cast<const Stored*>(x.at) + (i - b * voxels) * kLanes));
      return broadcast(lanes[0]);
    }
    case hfrt::Spread::everywhere: return broadcast(*static_cast<const float*>(x.at));
    default: return load(static_cast<const Stored*>(x.at) + i * kLanes);
  }
}

template <typename F>
HFRT_INLINE void pairs_of(const hfrt::PairArgs& a, int64_t begin, int64_t end, const F& f) {
  auto* y = static_cast<Stored*>(a.out);
  each_block(a.voxels, begin, end, [&](int64_t b, int64_t first, int64_t last) HFRT_LAMBDA {
    const V kept = first_lanes(a.channels - b * kLanes);
    for (int64_t i = first; i < last; ++i) {
      const V r = f(operand(a.first, i, b, a.voxels), operand(a.second, i, b, a.voxels));
      store(y + i * kLanes, if_positive(kept, activate(r, a.act, b), zero()));
    }
  });
}

// call(f), where f of two vectors is what `pair` says.
template <typename Call>
HFRT_INLINE void with_pair(hfrt::Pair pair, const Call& call) {
  using hfrt::Pair;
  switch (pair) {
    case Pair::add: return call([](V x, V y) HFRT_LAMBDA { return x + y; });
    case Pair::sub: return call([](V x, V y) HFRT_LAMBDA { return x - y; });
    case Pair::mul: return call([](V x, V y) HFRT_LAMBDA { return x * y; });
    case Pair::div: return call([](V x, V y) HFRT_LAMBDA { return x / y; });
    case Pair::maximum: return call([](V x, V y) HFRT_LAMBDA { return larger_or_nan(x, y); });
    case Pair::minimum:
      return call([](V x, V y) HFRT_LAMBDA { return if_nan(x, x, smaller(x, y)); });
  }
}

void binary(const hfrt::PairArgs& a, int64_t begin, int64_t end) {
  with_pair(a.pair, [&](const auto& f) HFRT_LAMBDA { pairs_of(a, begin, end, f); });
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
