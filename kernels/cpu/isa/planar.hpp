// Convolution of few input channels, [C][D][H][W] plain, optionally with 2x2x2 max-pooling. A tap
// is one voxel of one channel. From 16 output channels on, vectors hold these and each input is
// broadcast; with fewer, vectors run along W, so that no lane is spent on channels that are not
// there.
#pragma once

#include "activation.hpp"
#include "gemm.hpp"
#include "plain.hpp"

namespace {

// Accumulators: channels times vectors of outputs. A vector of inputs serves all the channels and a
// weight all the vectors, so that loads do not bound the multiply-adds.
#if defined(__AVX512F__)
constexpr int kPoolChannels = 4, kNarrowChannels = 8;
#else
constexpr int kPoolChannels = 1, kNarrowChannels = 4;
#endif

// Taps: the window's voxels times the input channels, which are the faster index.
HFRT_INLINE int64_t taps_of(const hfrt::ConvArgs& a) {
  const int64_t* k = a.window.kernel;
  return k[0] * k[1] * k[2] * a.in_extent.c;
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

// Groups of C channels of one block; `put(channel, vectors)` takes the results, the zeros of a last
// group that is not full as well.
template <int C, int N, typename Put>
HFRT_INLINE void correlate_block(const float* const* at, const int64_t* shift, int64_t taps,
                                 const float* weight, int64_t channels, const Put& put) {
  V acc[C][N];
  for (int c = 0; c < kLanes && c < channels; c += C) {
    correlate<C, N>(at, shift, taps, weight + c, acc);
#pragma GCC unroll 16
    for (int i = 0; i < C; ++i) put(c + i, acc[i]);
  }
}

// 16 outputs along W, or 8 pooled ones; turned: [w][16]. Returns how many of `left` these are.
HFRT_INLINE int64_t along_w(const float* const* at, const int64_t* shift, int64_t taps,
                            const float* weight, int64_t channels, bool pooled, int64_t left,
                            float* tile, float* turned) {
  if (!pooled) {
    correlate_block<kNarrowChannels, 1>(
        at, shift, taps, weight, channels,
        [&](int c, const V(&y)[1]) { store(tile + c * kLanes, y[0]); });
    transpose(tile, turned);
    return left < kLanes ? left : kLanes;
  }
  correlate_block<kPoolChannels, 4>(at, shift, taps, weight, channels, [&](int c, const V(&y)[4]) {
    store(tile + c * kLanes, larger_or_nan(larger_or_nan(y[0], y[1]), larger_or_nan(y[2], y[3])));
  });
  transpose(tile, turned);
  for (int w = 0; w < kLanes / 2; ++w)
    store(turned + w * kLanes,
          larger_or_nan(load(turned + 2 * w * kLanes), load(turned + (2 * w + 1) * kLanes)));
  return left < kLanes / 2 ? left : kLanes / 2;
}

// Which of 16 outputs along W stands in each lane, phase by phase; pooled, in the two halves the
// pairs whose maximum is taken.
alignas(64) constexpr int32_t kByPhase[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
alignas(64) constexpr int32_t kPairsByPhase[16] = {0, 8, 2, 10, 4, 12, 6, 14,
                                                   1, 9, 3, 11, 5, 13, 7, 15};

// `n` outputs of the row (z, y) from column w on (a multiple of 4), lanes as above, to `Phases`.
HFRT_INLINE void put_phases(V y, Stored* row, int64_t plane, int64_t n, bool pooled) {
  alignas(64) Stored numbers[kLanes];
  store(numbers, y);
  const int64_t each = pooled ? 2 : 4;
  for (int64_t phase = 0; phase < 4; ++phase) {
    Stored* to = row + phase * plane;
    const Stored* from = numbers + phase * each;
    if (n == 4 * each) {
      if (pooled)
        __builtin_memcpy(to, from, 2 * sizeof(Stored));
      else
        __builtin_memcpy(to, from, 4 * sizeof(Stored));
    } else {
      for (int64_t i = 0; i * 4 + phase < n; ++i) to[i] = from[i];
    }
  }
}

// 16 outputs along W, or 8 pooled ones, of every channel, finished.
HFRT_INLINE void along_w_phased(const hfrt::ConvArgs& a, const float* const* at, int64_t z,
                                int64_t y, int64_t w, int64_t n) {
  const hfrt::Phases& g = a.phases;
  const hfrt::Epilogue& e = a.epilogue;
  const int64_t taps = taps_of(a), channels = a.out_extent.c;
  const int64_t first = y % 4 * 4 * g.plane + y / 4 * g.row + w / 4;
  const auto finish_phased = [&](int64_t c, V x) {
    if (c >= channels) return;
    x = x + broadcast(e.bias[c]);
    x = activate(x, e.act, 0);
    const int64_t place = g.plane_of(c, z, a.out_extent.d) + first;
    put_phases(x, static_cast<Stored*>(a.out) + place, g.plane, n, e.pool);
    if (!e.second) return;
    x = activate(fma(x, broadcast(e.second_scale[c]), broadcast(e.second_shift[c])), e.second_act,
                 0);
    put_phases(x, static_cast<Stored*>(e.second) + place, g.plane, n, e.pool);
  };
  if (!e.pool)
    correlate_block<kNarrowChannels, 1>(
        at, a.shift, taps, a.weight, channels,
        [&](int c, const V(&r)[1]) { finish_phased(c, permuted(r[0], kByPhase)); });
  else
    correlate_block<kPoolChannels, 4>(
        at, a.shift, taps, a.weight, channels, [&](int c, const V(&r)[4]) {
          const V most = larger_or_nan(larger_or_nan(r[0], r[1]), larger_or_nan(r[2], r[3]));
          const V pairs = permuted(most, kPairsByPhase);
          finish_phased(c, larger_or_nan(pairs, upper_half(pairs)));
        });
}

// N vectors of outputs along W of every channel, n of them there, finished, to a plain output;
// `place`: of channel 0.
template <int N>
HFRT_INLINE void along_w_plain(const hfrt::ConvArgs& a, const float* line, int64_t place,
                               int64_t n) {
  const hfrt::Epilogue& e = a.epilogue;
  const int64_t channels = a.out_extent.c, voxels = a.out_extent.voxels();
  const auto* beside = static_cast<const float*>(e.residual);
  const float* at[N];
#pragma GCC unroll 4
  for (int j = 0; j < N; ++j) at[j] = line + j * kLanes;
  correlate_block<kNarrowChannels, N>(
      at, a.shift, taps_of(a), a.weight, channels, [&](int c, const V(&r)[N]) HFRT_LAMBDA {
        if (c >= channels) return;
        const Activation act = of_channel(e.act, c);
#pragma GCC unroll 4
        for (int j = 0; j < N; ++j) {
          const int64_t left = n - j * kLanes, some = left < kLanes ? left : kLanes;
          const int64_t to = c * voxels + place + j * kLanes;
          V x = r[j] + broadcast(e.bias[c]);
          if (beside) x = x + load_some(beside + to, some);
          store_some(static_cast<float*>(a.out) + to, activate(x, act, 0), some);
        }
      });
}

// acc[g][r] = sum over taps of weight * x at `at[g] + shift[tap] + r * Step`, for `Vectors` blocks
// of 16 channels whose weights lie `block_step` floats apart.
template <int Groups, int Rows, int Vectors, int Step>
HFRT_INLINE void broadcast_rows(const float* const* at, const int64_t* shift, int64_t taps,
                                const float* weight, int64_t block_step,
                                V (&acc)[Groups][Rows][Vectors]) {
#pragma GCC unroll 4
  for (int g = 0; g < Groups; ++g)
#pragma GCC unroll 32
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
      for (int j = 0; j < Vectors; ++j) acc[g][r][j] = zero();
  for (int64_t t = 0; t < taps; ++t, weight += kLanes) {
    V w[Vectors];
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) w[j] = load(weight + j * block_step);
#pragma GCC unroll 4
    for (int g = 0; g < Groups; ++g) {
      const float* x = at[g] + shift[t];
#pragma GCC unroll 32
      for (int r = 0; r < Rows; ++r) {
        const V v = broadcast(x[r * Step]);
#pragma GCC unroll 2
        for (int j = 0; j < Vectors; ++j) acc[g][r][j] = fma(v, w[j], acc[g][r][j]);
      }
    }
  }
}

// Where results go: voxel w of vector j at `to + w * 16 + j * step`, after bias and relu if `done`.
struct Target {
  Stored* to;
  int64_t step;
  const float* bias;
  bool relu;
  float* raw = nullptr;  // instead of `to`: the results as they are
  HFRT_INLINE void put(V y, int64_t w, int64_t j) const {
    if (raw) {
      store(raw + w * kLanes + j * step, y);
      return;
    }
    y = y + load(bias + j * kLanes);
    store(to + w * kLanes + j * step, relu ? larger(zero(), y) : y);
  }
};

template <int Rows, int Vectors, int Step>
HFRT_INLINE void broadcast_store(const float* line, const int64_t* shift, int64_t taps,
                                 const float* weight, int64_t block_step, const Target& target) {
  V acc[1][Rows][Vectors];
  broadcast_rows<1, Rows, Vectors, Step>(&line, shift, taps, weight, block_step, acc);
#pragma GCC unroll 32
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < Vectors; ++j) target.put(acc[0][r][j], r, j);
}

// Three pooled outputs: the maxima of four rows of 6 outputs.
template <int Step>
HFRT_INLINE void broadcast_pooled(const float* const* at, const int64_t* shift, int64_t taps,
                                  const float* weight, const Target& target) {
  V acc[4][6][1];
  broadcast_rows<4, 6, 1, Step>(at, shift, taps, weight, 0, acc);
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    V most = larger_or_nan(acc[0][2 * i][0], acc[0][2 * i + 1][0]);
#pragma GCC unroll 3
    for (int g = 1; g < 4; ++g)
      most = larger_or_nan(most, larger_or_nan(acc[g][2 * i][0], acc[g][2 * i + 1][0]));
    target.put(most, i, 0);
  }
}

// Outputs that `broadcast_group` makes at once, when `left` are left of the row.
template <int Vectors>
HFRT_INLINE int64_t group_size(int64_t left, bool pooled) {
  constexpr int kMost = Vectors == 1 ? kRows1 : kRows2;
  return pooled ? 3 : left > (kMost + 1) / 2 ? kMost : (kMost + 1) / 2;
}

template <int Vectors, int Step>
HFRT_INLINE void broadcast_group(const float* const* at, const int64_t* shift, int64_t taps,
                                 const float* weight, int64_t size, bool pooled,
                                 const Target& target) {
  constexpr int kMost = Vectors == 1 ? kRows1 : kRows2;
  const int64_t step = taps * kLanes;
  if (pooled)
    broadcast_pooled<Step>(at, shift, taps, weight, target);
  else if (size == kMost)
    broadcast_store<kMost, Vectors, Step>(at[0], shift, taps, weight, step, target);
  else
    broadcast_store<(kMost + 1) / 2, Vectors, Step>(at[0], shift, taps, weight, step, target);
}

// A task is one row (d, h) of the output after pooling; weight [block][tap][16]. `in` is padded
// already, and readable for kSpare floats after its end: what is read there is not used.
// scratch: 3 * 256 floats.
void planar(const hfrt::ConvArgs& a, int64_t begin, int64_t end, float* scratch) {
  const hfrt::Extent &e = a.in_extent, &o = a.conv_extent, &out = a.out_extent;
  const hfrt::Window& k = a.window;
  const int64_t many = a.epilogue.pool ? 2 : 1, s = k.stride[2];
  const int64_t taps = taps_of(a);
  float *tile = scratch, *turned = scratch + 2 * kLanes * kLanes;
  const int64_t* shift = a.shift;
  const auto* in = static_cast<const float*>(a.in);
  auto* out_at = static_cast<Stored*>(a.out);
  const bool broadcast_inputs = o.c >= kLanes && (many == 1 || kRows1 > 16);
  // Then results go to the output at once.
  const bool simple = !a.epilogue.residual && !a.epilogue.second &&
                      (a.epilogue.act.kind == Act::none || a.epilogue.act.kind == Act::relu);
  const int64_t row = out.w * kLanes, plane = out.h * row, block = a.ring * plane;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t od = task / out.h, oh = task % out.h;
    const float* line = in + (od * many * k.stride[0] * e.h + oh * many * k.stride[1]) * e.w;
    for (int64_t b = 0; b < blocks_of(o.c); ++b) {
      const float* weight = a.weight + b * taps * kLanes;
      const int64_t channels = o.c - b * kLanes;
      if (!broadcast_inputs) __builtin_memset(tile, 0, kLanes * kLanes * sizeof(float));
      const int64_t base = b * block + od % a.ring * plane + oh * row;
      const bool pair =
          broadcast_inputs && many == 1 && kVectorsPerPanel == 2 && b + 1 < blocks_of(o.c);
      for (int64_t w = 0; w < out.w;) {
        const float* at[4];
        for (int64_t j = 0; j < 4; ++j)
          at[j] = line + w * many * s + (j / 2 * k.stride[0] * e.h + j % 2 * k.stride[1]) * e.w;
        const int64_t left = out.w - w, offset = base + w * kLanes;
        if (a.plain) {
          // Two vectors, where they are there: a weight is then read for both.
          const int64_t most = left > kLanes ? 2 * kLanes : kLanes, n = left < most ? left : most;
          if (most > kLanes)
            along_w_plain<2>(a, at[0], task * out.w + w, n);
          else
            along_w_plain<1>(a, at[0], task * out.w + w, n);
          w += n;
          continue;
        }
        if (a.phased) {
          const int64_t most = kLanes / many, n = left < most ? left : most;
          along_w_phased(a, at, od, oh, w, n);
          w += n;
          continue;
        }
        int64_t n = left;
        const float* result = tile;
        int64_t result_step = 0;
        if (!broadcast_inputs) {
          n = along_w(at, shift, taps, weight, channels, many == 2, left, tile, turned);
          result = turned;
        } else {
          const int64_t size = pair ? group_size<2>(left, false) : group_size<1>(left, many == 2);
          n = left < size ? left : size;
          result_step = size * kLanes;
          const bool direct = simple && n == size;
          const Target target = direct
                                    ? Target{out_at + offset, block, a.epilogue.bias + b * kLanes,
                                             a.epilogue.act.kind == Act::relu}
                                    : Target{nullptr, result_step, nullptr, false, tile};
          if (pair)
            s == 1 ? broadcast_group<2, 1>(at, shift, taps, weight, size, false, target)
                   : broadcast_group<2, 2>(at, shift, taps, weight, size, false, target);
          else
            s == 1 ? broadcast_group<1, 1>(at, shift, taps, weight, size, many == 2, target)
                   : broadcast_group<1, 2>(at, shift, taps, weight, size, many == 2, target);
          if (direct) {
            w += n;
            continue;
          }
        }
        for (int64_t j = 0; j < (pair ? 2 : 1); ++j)
          for (int64_t i = 0; i < n; ++i)
            finish(load(result + j * result_step + i * kLanes), a.epilogue, out_at,
                   offset + j * block + i * kLanes, b + j);
        w += n;
      }
      b += pair;
    }
  }
}

}  // namespace
