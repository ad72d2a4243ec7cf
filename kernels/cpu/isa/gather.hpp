// Every other dense convolution (1x1x1, strided, dilated, any kernel): the inputs of a block of
// outputs are gathered into rows, then multiplied with the packed weights.
#pragma once

#include "activation.hpp"
#include "gemm.hpp"

namespace {

// One tap of a row: the channels at `from`, without the gaps of a last block that is not full.
// Vectors are stored in rising order, so that each one overwrites what the one before spilt; the
// last spills into the row's own 16 spare numbers.
HFRT_INLINE void gather_tap(const hfrt::ConvArgs& a, const Stored* from, int64_t blocks,
                            int64_t block_step, Factor* to) {
  if (!a.prologue.scale) {
    for (int64_t b = 0; b < blocks; ++b) copy(to + b * kLanes, from + b * block_step);
    return;
  }
  for (int64_t b = 0; b < blocks; ++b) {
    const V x = fma(load(from + b * block_step), load(a.prologue.scale + b * kLanes),
                    load(a.prologue.shift + b * kLanes));
    store(to + b * kLanes, activate(x, a.prologue.act, b));
  }
}

// A row: (tap, channel) in this order. at: the first tap's voxel.
HFRT_INLINE void gather_row(const hfrt::ConvArgs& a, const int64_t* at, Factor* to) {
  const hfrt::Extent& e = a.in_extent;
  const hfrt::Window& k = a.window;
  const auto* in = static_cast<const Stored*>(a.in);
  const int64_t blocks = blocks_of(e.c), block_step = e.voxels() * kLanes;
  const auto within = [&](int axis, int64_t size) {
    return at[axis] >= 0 && at[axis] + k.dilation[axis] * (k.kernel[axis] - 1) < size;
  };
  const bool whole = within(0, e.d) && within(1, e.h) && within(2, e.w);
  for (int64_t kd = 0; kd < k.kernel[0]; ++kd) {
    const int64_t d = at[0] + kd * k.dilation[0];
    for (int64_t kh = 0; kh < k.kernel[1]; ++kh) {
      const int64_t h = at[1] + kh * k.dilation[1];
      const bool row_inside = whole || (d >= 0 && d < e.d && h >= 0 && h < e.h);
      const int64_t row = (d * e.h + h) * e.w;
      for (int64_t kw = 0; kw < k.kernel[2]; ++kw, to += e.c) {
        const int64_t w = at[2] + kw * k.dilation[2];
        if (whole || (row_inside && w >= 0 && w < e.w))
          gather_tap(a, in + (row + w) * kLanes, blocks, block_step, to);
        else
          for (int64_t b = 0; b < blocks; ++b) store(to + b * kLanes, zero());
      }
    }
  }
}

// --- where results go --------------------------------------------------------------------------

// Results [rows][ldc] of `rows` voxels from `from` on, of one block, to a plain [C][voxels]
// float32.
HFRT_INLINE void finish_plain(const hfrt::ConvArgs& a, const float* c, int64_t ldc, int64_t from,
                              int64_t rows, int64_t block) {
  alignas(64) float square[kLanes * kLanes], turned[kLanes * kLanes];
  const int64_t voxels = a.conv_extent.voxels(), left = a.conv_extent.c - block * kLanes;
  const int64_t channels = left < kLanes ? left : kLanes;
  float* out = static_cast<float*>(a.out) + block * kLanes * voxels + from;
  const V bias = load(a.epilogue.bias + block * kLanes);
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t n = rows - r < kLanes ? rows - r : kLanes;
    for (int64_t i = 0; i < n; ++i)
      store(square + i * kLanes, activate(load(c + (r + i) * ldc) + bias, a.epilogue.act, block));
    transpose(square, turned);
    for (int64_t j = 0; j < channels; ++j) {
      float* row = out + j * voxels + r;
      if (n == kLanes)
        copy(row, turned + j * kLanes);
      else  // as most tiles end; `store_some`, by way of memory, is slower
        for (int64_t i = 0; i < n; ++i) row[i] = turned[j * kLanes + i];
    }
  }
}

// As `scatter`, for phases of stride 2 along W in pairs, to a plain output: 16 voxels at a time.
HFRT_INLINE void scatter_pairs(const hfrt::ConvArgs& a, const float* c, int64_t ldc, int64_t from,
                               int64_t rows) {
  const hfrt::Extent &o = a.conv_extent, &whole = a.out_extent;
  const int64_t each = whole.c, voxels = whole.voxels();
  alignas(64) float square[kLanes * kLanes], turned[kLanes * kLanes];
  const V bias = load(a.epilogue.bias);
  const V kept = first_lanes(each);
  alignas(64) float again[kLanes];
  store(again, if_positive(kept, bias, zero()));
  for (int i = 0; i < kLanes; ++i) again[i] = again[i % each];
  const V biases = load(again);
  int64_t d = from / (o.h * o.w), h = from / o.w % o.h, w = from % o.w;
  for (int64_t r = 0; r < rows;) {
    const int64_t left = rows - r < o.w - w ? rows - r : o.w - w, n = left < kLanes ? left : kLanes;
    for (int64_t first = 0; first < o.c; first += kLanes) {
      for (int64_t i = 0; i < n; ++i)
        store(square + i * kLanes,
              activate(load(c + (r + i) * ldc + first) + biases, a.epilogue.act, 0));
      transpose(square, turned);
      const int64_t sets = (o.c - first < kLanes ? o.c - first : kLanes) / each;
      for (int64_t set = 0; set < sets; set += 2) {
        const int64_t* start = a.starts + (first / each + set) * 3;
        const int64_t row = (d * a.place[0] + start[0]) * whole.h + h * a.place[1] + start[1];
        for (int64_t j = 0; j < each; ++j) {
          float* to = static_cast<float*>(a.out) + j * voxels + row * whole.w + 2 * w;
          const float *even = turned + (set * each + j) * kLanes, *odd = even + each * kLanes;
          if (n == kLanes) {
            for (int i = 0; i < kLanes; ++i) to[2 * i] = even[i], to[2 * i + 1] = odd[i];
          } else {
            for (int64_t i = 0; i < n; ++i) to[2 * i] = even[i], to[2 * i + 1] = odd[i];
          }
        }
      }
    }
    r += n;
    if ((w += n) < o.w) continue;
    w = 0;
    if (++h == o.h) h = 0, ++d;
  }
}

// Results of the voxels from `from` on, which stand apart in the output.
HFRT_INLINE void scatter(const hfrt::ConvArgs& a, const float* c, int64_t ldc, int64_t from,
                         int64_t rows, int64_t first_lane, int64_t last_lane) {
  const hfrt::Extent &o = a.conv_extent, &whole = a.out_extent;
  const int64_t each = whole.c, place = a.place[2] * kLanes, voxels = whole.voxels();
  auto* out = static_cast<Stored*>(a.out);
  auto* plain = static_cast<float*>(a.out);
  alignas(64) float numbers[kLanes];
  // Runs of up to 16 lanes that are channels of one block of one set.
  for (int64_t lane = first_lane; lane < last_lane;) {
    const int64_t set = lane / each, channel = lane % each, block = channel / kLanes;
    const int64_t left = each - channel, n = left < kLanes ? left : kLanes;
    const int64_t* start = a.starts + set * 3;
    const V kept = first_lanes(n);
    const V bias = load(a.epilogue.bias + block * kLanes);
    int64_t d = from / (o.h * o.w), h = from / o.w % o.h, w = from % o.w;
    for (int64_t r = 0; r < rows;) {
      const int64_t run = rows - r < o.w - w ? rows - r : o.w - w;
      const int64_t row = (d * a.place[0] + start[0]) * whole.h + h * a.place[1] + start[1];
      const int64_t voxel = row * whole.w + w * a.place[2] + start[2];
      const float* y = c + r * ldc + lane - first_lane;
      if (a.plain) {
        float* to = plain + channel * voxels + voxel;
        for (int64_t i = 0; i < run; ++i) {
          store(numbers, activate(load(y + i * ldc) + bias, a.epilogue.act, block));
          for (int64_t j = 0; j < n; ++j) to[j * voxels + i * a.place[2]] = numbers[j];
        }
      } else {
        Stored* to = out + (block * voxels + voxel) * kLanes;
        const Stored* beside = static_cast<const Stored*>(a.epilogue.residual);
        for (int64_t i = 0; i < run; ++i) {
          V x = load(y + i * ldc) + bias;
          if (beside) x = x + load(beside + (to - out) + i * place);
          store(to + i * place, if_positive(kept, activate(x, a.epilogue.act, block), zero()));
        }
      }
      r += run;
      w = 0;
      if (++h == o.h) h = 0, ++d;
    }
    lane += n;
  }
}

// scratch: rows * (K filled up + 16) factors, then rows * Cout filled up floats
void gather(const hfrt::ConvArgs& a, int64_t begin, int64_t end, float* scratch) {
  const hfrt::Window& k = a.window;
  const int64_t depth = a.in_extent.c * k.kernel[0] * k.kernel[1] * k.kernel[2];
  const int64_t lda = blocks_of(depth) * kLanes + kLanes;
  const int64_t blocks = blocks_of(a.conv_extent.c), voxels = a.conv_extent.voxels();
  const int64_t panels = (blocks + kVectorsPerPanel - 1) / kVectorsPerPanel;
  auto* out = static_cast<Stored*>(a.out);
  auto* inputs = reinterpret_cast<Factor*>(scratch);
  float* c = scratch + a.rows * lda / kPair<Factor>;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / a.splits, split = task % a.splits;
    const int64_t first_panel = panels * split / a.splits;
    const int64_t last_panel = panels * (split + 1) / a.splits;
    const int64_t ldc = (last_panel - first_panel) * kPanel;
    const int64_t from = a.first + block * a.rows;
    const int64_t left = a.first + a.count - from, rows = left < a.rows ? left : a.rows;
    const hfrt::Extent& o = a.conv_extent;
    int64_t at[3] = {from / (o.h * o.w), from / o.w % o.h, from % o.w};
    for (int i = 0; i < 3; ++i) at[i] = at[i] * k.stride[i] - k.padding[i];
    for (int64_t r = 0; r < rows; ++r) {
      gather_row(a, at, inputs + r * lda);
      at[2] += k.stride[2];
      if (at[2] < o.w * k.stride[2] - k.padding[2]) continue;
      at[2] = -k.padding[2], at[1] += k.stride[1];
      if (at[1] < o.h * k.stride[1] - k.padding[1]) continue;
      at[1] = -k.padding[1], at[0] += k.stride[0];
    }
    gemm(inputs, lda, rows, depth, a.weight, a.conv_extent.c, first_panel, last_panel, c, ldc);
    const int64_t first_block = first_panel * kVectorsPerPanel;
    const int64_t last_block =
        last_panel * kVectorsPerPanel < blocks ? last_panel * kVectorsPerPanel : blocks;
    if (a.paired) {
      scatter_pairs(a, c, ldc, from, rows);
      continue;
    }
    if (a.starts) {
      const int64_t last = last_block * kLanes;
      scatter(a, c, ldc, from, rows, first_block * kLanes, last < o.c ? last : o.c);
      continue;
    }
    for (int64_t b = first_block; b < last_block; ++b) {
      const float* results = c + (b - first_block) * kLanes;
      if (a.plain) {
        finish_plain(a, results, ldc, from, rows, b);
        continue;
      }
      for (int64_t r = 0; r < rows; ++r)
        finish(load(results + r * ldc), a.epilogue, out, (b * voxels + from + r) * kLanes, b);
    }
  }
}

// A 1x1x1 convolution of every voxel, from the volume as it lies. scratch: a tile of results.
void pointwise(const hfrt::ConvArgs& a, int64_t begin, int64_t end, float* scratch) {
  using T = Factor;
  const int64_t voxels = a.conv_extent.voxels(), blocks = blocks_of(a.conv_extent.c);
  const int64_t panels = (blocks + kVectorsPerPanel - 1) / kVectorsPerPanel;
  const int64_t depth = (a.in_extent.c + kPair<T> - 1) / kPair<T>;
  constexpr int64_t kRow = kLanes / kPair<T>;  // floats of a voxel's block
  const auto* in = static_cast<const float*>(a.in);
  auto* out = static_cast<Stored*>(a.out);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t from = task / a.splits * a.rows, split = task % a.splits;
    const int64_t left = a.count - from, rows = left < a.rows ? left : a.rows;
    for (int64_t p = panels * split / a.splits; p < panels * (split + 1) / a.splits; ++p) {
      const int64_t first = p * kVectorsPerPanel,
                    many = blocks - first < kVectorsPerPanel ? blocks - first : kVectorsPerPanel;
      const bool full = many == kVectorsPerPanel;
      const int64_t most = full ? kRows2 : kRows1;
      const Micro* table = full
                               ? BlockedFrom<T, kVectorsPerPanel, MakeSequence<kRows2>::type>::table
                               : BlockedFrom<T, 1, MakeSequence<kRows1>::type>::table;
      const float* weight = a.weight + first * depth * kLanes;
      const int64_t parts = (rows + most - 1) / most, ldc = many * kLanes;
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t start = rows * i / parts, n = rows * (i + 1) / parts - start;
        table[n - 1](in + (from + start) * kRow, voxels * kRow, depth, weight, scratch, ldc);
        for (int64_t j = 0; j < many; ++j) {
          if (a.plain) {
            finish_plain(a, scratch + j * kLanes, ldc, from + start, n, first + j);
            continue;
          }
          const int64_t at = ((first + j) * voxels + from + start) * kLanes;
          for (int64_t r = 0; r < n; ++r)
            finish(load(scratch + r * ldc + j * kLanes), a.epilogue, out, at + r * kLanes,
                   first + j);
        }
      }
    }
  }
}

// --- depthwise ---------------------------------------------------------------------------------

// Outputs of a row at once, in registers.
#if defined(__AVX512F__)
constexpr int kDepthwise = 14;
#else
constexpr int kDepthwise = 5;
#endif

// N outputs of a row, from column w on. Checked: some of their taps may be outside along W.
template <int N, bool Checked>
HFRT_INLINE void depthwise_run(const hfrt::ConvArgs& a, const Stored* in, const int64_t* at,
                               int64_t w, int64_t block, int64_t to) {
  const hfrt::Extent& e = a.in_extent;
  const hfrt::Window& k = a.window;
  const int64_t filled = blocks_of(e.c) * kLanes, step = k.stride[2] * kLanes;
  const int64_t first = w * k.stride[2] - k.padding[2];
  V acc[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) acc[i] = zero();
  for (int64_t kd = 0; kd < k.kernel[0]; ++kd) {
    const int64_t d = at[0] + kd * k.dilation[0];
    if (d < 0 || d >= e.d) continue;
    for (int64_t kh = 0; kh < k.kernel[1]; ++kh) {
      const int64_t h = at[1] + kh * k.dilation[1];
      if (h < 0 || h >= e.h) continue;
      const Stored* x = in + ((d * e.h + h) * e.w + first) * kLanes;
      const float* weight =
          a.weight + (kd * k.kernel[1] + kh) * k.kernel[2] * filled + block * kLanes;
      for (int64_t kw = 0; kw < k.kernel[2]; ++kw, weight += filled, x += k.dilation[2] * kLanes) {
        const int64_t column = first + kw * k.dilation[2];
        if (Checked && (column < 0 || column >= e.w)) continue;
        const V v = load(weight);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) acc[i] = fma(load(x + i * step), v, acc[i]);
      }
    }
  }
  const int64_t place = a.place[2] * kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i)
    finish(acc[i], a.epilogue, static_cast<Stored*>(a.out), to + i * place, block);
}

// groups = Cin = Cout; weight [tap][C filled up]. A task is one row of outputs of one block.
void depthwise(const hfrt::ConvArgs& a, int64_t begin, int64_t end) {
  const hfrt::Extent &e = a.in_extent, &o = a.conv_extent, &whole = a.out_extent;
  const hfrt::Window& k = a.window;
  const int64_t s = k.stride[2], reach = (k.kernel[2] - 1) * k.dilation[2];
  // Outputs first..last have all their taps inside.
  const int64_t first = k.padding[2] > 0 ? (k.padding[2] + s - 1) / s : 0;
  const int64_t room = e.w - 1 - reach + k.padding[2], last = room < 0 ? 0 : room / s + 1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task / (o.d * o.h), od = task / o.h % o.d, oh = task % o.h;
    const Stored* in = static_cast<const Stored*>(a.in) + block * e.voxels() * kLanes;
    const int64_t at[2] = {od * k.stride[0] - k.padding[0], oh * k.stride[1] - k.padding[1]};
    const int64_t row =
        (block * whole.d + od * a.place[0] + a.start[0]) * whole.h + oh * a.place[1] + a.start[1];
    const auto to = [&](int64_t w) {
      return (row * whole.w + w * a.place[2] + a.start[2]) * kLanes;
    };
    for (int64_t w = 0; w < o.w;) {
      const int64_t left = (last < o.w ? last : o.w) - w;
      if (w < first || left < 1) {
        depthwise_run<1, true>(a, in, at, w, block, to(w));
        ++w;
      } else if (left >= kDepthwise) {
        depthwise_run<kDepthwise, false>(a, in, at, w, block, to(w));
        w += kDepthwise;
      } else if (left >= 4) {
        depthwise_run<4, false>(a, in, at, w, block, to(w));
        w += 4;
      } else {
        depthwise_run<1, false>(a, in, at, w, block, to(w));
        ++w;
      }
    }
  }
}

}  // namespace
