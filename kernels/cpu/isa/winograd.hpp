// 3x3x3 convolution by Winograd's minimal filtering (winograd_filter.hpp) along each of three axes
// (Jia et al., PPoPP 2018). The inputs of a block of tiles are transformed to U and multiplied,
// point by point, with the transformed weights; the products M are transformed back.
#pragma once

#include "activation.hpp"
#include "gemm.hpp"
#include "winograd_filter.hpp"

namespace {

constexpr int64_t kNoRow = INT64_MIN;
alignas(64) constexpr Stored zeros[6 * kLanes] = {};

struct Blocked {
  int64_t row, plane, block;  // from one row, plane, channel block to the next
};

// T: what the transformed inputs and weights are rounded to.
template <typename D, typename H, typename W, typename T>
struct Winograd {
  static constexpr int MD = D::M, MH = H::M, MW = W::M, ND = D::N, NH = H::N, NW = W::N;
  static constexpr int kPoints = ND * NH * NW;

  // rows[d * NH + h]: the row's first vector. to: U for this tile and block, points `step` apart.
  static HFRT_INLINE void input(const Stored* const* rows, T* to, int64_t step) {
    alignas(64) float half[kPoints * kLanes];
    for (int d = 0; d < ND; ++d)
      plane_input<H, W>([rows, d](int h, int w)
                            HFRT_LAMBDA { return rows[d * NH + h] + w * kLanes; },
                        half + d * NH * NW * kLanes);
    for (int i = 0; i < NH * NW; ++i) {
      V x[ND], y[ND];
#pragma GCC unroll 6
      for (int d = 0; d < ND; ++d) x[d] = load(half + (d * NH * NW + i) * kLanes);
      D::input(x, y);
#pragma GCC unroll 6
      for (int d = 0; d < ND; ++d) store(to + (d * NH * NW + i) * step, y[d]);
    }
  }

  // m: M for this tile and block -> y [MD][MH][MW] vectors.
  static HFRT_INLINE void output(const float* m, int64_t step, float* y) {
    alignas(64) float half[MD * NH * NW * kLanes];
    for (int i = 0; i < NH * NW; ++i) {
      V x[ND], r[MD];
#pragma GCC unroll 6
      for (int d = 0; d < ND; ++d) x[d] = load(m + (d * NH * NW + i) * step);
      D::output(x, r);
#pragma GCC unroll 4
      for (int d = 0; d < MD; ++d) store(half + (d * NH * NW + i) * kLanes, r[d]);
    }
    for (int d = 0; d < MD; ++d)
      plane_output<H, W>(half + d * NH * NW * kLanes, y + d * MH * MW * kLanes);
  }

  // Where a tile's rows of input begin, from the block's start, or kNoRow for zeros.
  static HFRT_INLINE void locate(const hfrt::ConvArgs& a, const Blocked& s, const int64_t* at,
                                 int64_t* offsets) {
    for (int d = 0; d < ND; ++d) {
      const int64_t z = at[0] + d, plane = z % a.ring * s.plane;
      for (int h = 0; h < NH; ++h) {
        const int64_t y = at[1] + h;
        const bool inside = z >= 0 && z < a.in_extent.d && y >= 0 && y < a.in_extent.h;
        offsets[d * NH + h] = inside ? plane + y * s.row + at[2] * kLanes : kNoRow;
      }
    }
  }

  // A row of a tile that reaches over the border along W, or passes a prologue: [NW][16].
  static HFRT_INLINE void copy_row(const hfrt::ConvArgs& a, const Stored* from, int64_t block,
                                   int64_t x, Stored* to) {
    for (int64_t w = 0; w < NW; ++w) {
      V v = zero();
      if (x + w >= 0 && x + w < a.in_extent.w) {
        v = load(from + w * kLanes);
        if (a.prologue.scale)
          v = activate(fma(v, load(a.prologue.scale + block * kLanes),
                           load(a.prologue.shift + block * kLanes)),
                       a.prologue.act, block);
      }
      store(to + w * kLanes, v);
    }
  }

  // The shortcut's share of a tile: to [MD * MH * MW][ldc]. Beyond the border the last repeats.
  static void shortcut(const hfrt::ConvArgs& a, const int64_t* at, int64_t first_panel,
                       int64_t last_panel, Factor* rows, float* to, int64_t ldc) {
    const hfrt::Shortcut& s = a.shortcut;
    const hfrt::Extent& e = s.in_extent;
    const int64_t blocks = blocks_of(e.c), lda = blocks * kLanes;
    const auto clamp = [](int64_t v, int64_t size) { return v < size ? v : size - 1; };
    for (int64_t i = 0; i < MD * MH * MW; ++i) {
      const int64_t z = clamp((at[0] + i / (MH * MW)) * s.stride[0], e.d);
      const int64_t y = clamp((at[1] + i / MW % MH) * s.stride[1], e.h);
      const int64_t x = clamp((at[2] + i % MW) * s.stride[2], e.w);
      const Stored* from = static_cast<const Stored*>(s.in) + ((z * e.h + y) * e.w + x) * kLanes;
      for (int64_t b = 0; b < blocks; ++b)
        copy(rows + i * lda + b * kLanes, from + b * e.voxels() * kLanes);
    }
    gemm(rows, lda, MD * MH * MW, e.c, s.weight, a.conv_extent.c, first_panel, last_panel, to, ldc);
  }

  // extra: the shortcut's share of this block, `ldc` floats per voxel, or null
  static void finish_tile(const hfrt::ConvArgs& a, const float* y, const int64_t* at, int64_t block,
                          const float* extra, int64_t ldc) {
    const hfrt::Extent& o = a.out_extent;
    auto* out = static_cast<Stored*>(a.out);
    const int64_t row = o.w * kLanes, plane = o.h * row, base = block * o.d * plane;
    if (a.epilogue.pool) {
      // The maximum first: bias and the (monotonic) activations come to the same afterwards.
      for (int d = 0; d < MD / 2; ++d)
        for (int h = 0; h < MH / 2; ++h)
          for (int w = 0; w < MW / 2; ++w) {
            const int64_t z = at[0] / 2 + d, yy = at[1] / 2 + h, x = at[2] / 2 + w;
            if (z >= o.d || yy >= o.h || x >= o.w) continue;
            const float* p = y + ((2 * d * MH + 2 * h) * MW + 2 * w) * kLanes;
            V m = load(p);
#pragma GCC unroll 8
            for (int i = 1; i < 8; ++i)
              m = larger_or_nan(
                  m, load(p + (((i >> 2) * MH + ((i >> 1) & 1)) * MW + (i & 1)) * kLanes));
            finish(m, a.epilogue, out, base + z * plane + yy * row + x * kLanes, block);
          }
      return;
    }
    const hfrt::Extent& c = a.conv_extent;
    const int64_t c_row = c.w * kLanes, c_plane = c.h * c_row, c_base = block * c.d * c_plane;
    const int64_t nd = c.d - at[0] < MD ? c.d - at[0] : MD;
    const int64_t nh = c.h - at[1] < MH ? c.h - at[1] : MH;
    const int64_t nw = c.w - at[2] < MW ? c.w - at[2] : MW;
    for (int64_t d = 0; d < nd; ++d)
      for (int64_t h = 0; h < nh; ++h) {
        const int64_t z = at[0] + d, yy = at[1] + h;
        const int64_t offset = c_base + z * c_plane + yy * c_row + at[2] * kLanes;
        const int64_t half = base + z / 2 * plane + yy / 2 * row + at[2] / 2 * kLanes;
        for (int64_t w = 0; w < nw; ++w) {
          const int64_t i = (d * MH + h) * MW + w;
          V v = load(y + i * kLanes);
          if (extra) v = v + load(extra + i * ldc);
          const int64_t here = offset + w * kLanes;
          const bool odd = (z | yy | w) & 1;  // tiles start at even voxels
          finish(v, a.epilogue, out, here,
                 !a.epilogue.sparse ? here
                 : odd              ? -1
                                    : half + w / 2 * kLanes,
                 block);
        }
      }
  }

  // The transformed weights of one input channel for 16 output channels: to [kPoints][16].
  static void weights_of(const float* weight, int64_t cin, int64_t cout, int64_t ci, int64_t co,
                         float* to) {
    V a[27], b[ND * 9], c[ND * NH * 3];
    for (int i = 0; i < 27; ++i) a[i] = weights_at(weight + i * cin * cout, cout, cin, ci, co);
    for (int i = 0; i < 9; ++i) {
      const V g[3] = {a[i], a[9 + i], a[18 + i]};
      V u[ND];
      D::weight(g, u);
      for (int d = 0; d < ND; ++d) b[d * 9 + i] = u[d];
    }
    for (int d = 0; d < ND; ++d)
      for (int i = 0; i < 3; ++i) {
        const V g[3] = {b[d * 9 + i], b[d * 9 + 3 + i], b[d * 9 + 6 + i]};
        V u[NH];
        H::weight(g, u);
        for (int h = 0; h < NH; ++h) c[(d * NH + h) * 3 + i] = u[h];
      }
    for (int i = 0; i < ND * NH; ++i) {
      V u[NW];
      W::weight(c + i * 3, u);
      for (int w = 0; w < NW; ++w) store(to + (i * NW + w) * kLanes, u[w]);
    }
  }

  static void weights(const float* weight, int64_t cin, int64_t cout, float* out, int64_t begin,
                      int64_t end) {
    const int64_t vectors = blocks_of(cout), step = point_floats(vectors, cin);
    const int64_t steps = (cin + kPair<T> - 1) / kPair<T>;
    alignas(64) float made[2][kPoints * kLanes];
    for (int64_t task = begin; task < end; ++task) {
      const int64_t vector = task / steps, k = task % steps;
      for (int i = 0; i < kPair<T>; ++i)
        weights_of(weight, cin, cout, k * kPair<T> + i, vector * kLanes, made[i]);
      const int64_t panel = vector / kVectorsPerPanel * kVectorsPerPanel;
      const int64_t width =
          (vectors - panel < kVectorsPerPanel ? vectors - panel : kVectorsPerPanel) * kLanes;
      float* to = out + panel * steps * kLanes + k * width + (vector - panel) * kLanes;
      for (int i = 0; i < kPoints; ++i)
        store_step<T>(to + i * step, load(made[0] + i * kLanes),
                      load(made[kPair<T> - 1] + i * kLanes));
    }
  }

  // scratch: U, M and two tiles; see `Engine::partition_winograd`.
  static void run(const hfrt::ConvArgs& a, int64_t begin, int64_t end, float* scratch) {
    const hfrt::Extent &e = a.in_extent, &o = a.conv_extent;
    const int64_t tiles_h = (o.h + MH - 1) / MH, tiles_w = (o.w + MW - 1) / MW;
    const int64_t cin_blocks = blocks_of(e.c), cout_blocks = blocks_of(o.c);
    const int64_t panels = (cout_blocks + kVectorsPerPanel - 1) / kVectorsPerPanel;
    const int64_t plane = e.h * e.w * kLanes;
    const Blocked s{e.w * kLanes, plane, a.ring * plane};
    const int64_t lda = cin_blocks * kLanes, step_u = a.rows * lda + kLanes;
    const auto* in = static_cast<const Stored*>(a.in);
    float* local = scratch;
    auto* u = reinterpret_cast<T*>(local + kPoints * kLanes);
    float* m = local + kPoints * kLanes + kPoints * step_u / kPair<T>;
    constexpr int64_t kTile = MD * MH * MW;
    float* extra = a.shortcut.in ? m + kPoints * (a.rows * cout_blocks * kLanes + kLanes) : nullptr;
    auto* extra_rows = reinterpret_cast<Factor*>(extra + kTile * cout_blocks * kLanes);
    auto* cut_rows = reinterpret_cast<Stored*>(local);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / a.splits, split = task % a.splits;
      const int64_t first_panel = panels * split / a.splits;
      const int64_t last_panel = panels * (split + 1) / a.splits;
      const int64_t first_block = first_panel * kVectorsPerPanel;
      const int64_t last_block =
          last_panel * kVectorsPerPanel < cout_blocks ? last_panel * kVectorsPerPanel : cout_blocks;
      const int64_t ldc = (last_block - first_block) * kLanes, step_m = a.rows * ldc + kLanes;
      const int64_t from = a.first + block * a.rows;
      const int64_t left = a.first + a.count - from, rows = left < a.rows ? left : a.rows;
      for (int64_t t = 0; t < rows; ++t) {
        const int64_t index = from + t;
        const int64_t at[3] = {index / (tiles_h * tiles_w) * D::S - a.window.padding[0],
                               index / tiles_w % tiles_h * H::S - a.window.padding[1],
                               index % tiles_w * W::S - a.window.padding[2]};
        const bool cut = a.prologue.scale || at[2] < 0 || at[2] + NW > e.w;
        int64_t offsets[ND * NH];
        locate(a, s, at, offsets);
        for (int64_t cb = 0; cb < cin_blocks; ++cb) {
          const Stored* block_in = in + cb * s.block;
          const Stored* rows_at[ND * NH];
          for (int i = 0; i < ND * NH; ++i) {
            rows_at[i] = offsets[i] == kNoRow ? zeros : block_in + offsets[i];
            if (cut && offsets[i] != kNoRow) {
              copy_row(a, rows_at[i], cb, at[2], cut_rows + i * NW * kLanes);
              rows_at[i] = cut_rows + i * NW * kLanes;
            }
          }
          // So many rows at once: the processor does not foresee the next tile's part of them.
          if (!cut)
            for (int i = 0; i < ND * NH; ++i)
              for (int w = 0; w < W::S; ++w) __builtin_prefetch(rows_at[i] + (NW + w) * kLanes);
          input(rows_at, u + t * lda + cb * kLanes, step_u);
        }
      }
      const int64_t point = point_floats(cout_blocks, e.c);
      for (int i = 0; i < kPoints; ++i)
        gemm(u + i * step_u, lda, rows, e.c, a.weight + i * point, o.c, first_panel, last_panel,
             m + i * step_m, ldc);
      for (int64_t t = 0; t < rows; ++t) {
        const int64_t index = from + t;
        const int64_t at[3] = {index / (tiles_h * tiles_w) * MD, index / tiles_w % tiles_h * MH,
                               index % tiles_w * MW};
        if (extra) shortcut(a, at, first_panel, last_panel, extra_rows, extra, ldc);
        for (int64_t b = first_block; b < last_block; ++b) {
          output(m + t * ldc + (b - first_block) * kLanes, step_m, local);
          finish_tile(a, local, at, b, extra ? extra + (b - first_block) * kLanes : nullptr, ldc);
        }
      }
    }
  }

  // Floats of one point's packed weights.
  static int64_t point_floats(int64_t cout_blocks, int64_t cin) {
    return cout_blocks * kLanes * ((cin + kPair<T> - 1) / kPair<T>);
  }
};

template <typename Call>
HFRT_INLINE void with_tile(const int64_t tile[3], int64_t stride, bool pairs, const Call& call) {
  using F2 = Filter<2>;
  using F4 = Filter<4>;
  using S2 = Filter<2, 2>;
  if (stride == 2)
    return pairs ? call(Winograd<S2, S2, S2, Factor>()) : call(Winograd<S2, S2, S2, float>());
  switch ((tile[0] == 4) * 4 + (tile[1] == 4) * 2 + (tile[2] == 4)) {
    case 0:
      return pairs ? call(Winograd<F2, F2, F2, Factor>()) : call(Winograd<F2, F2, F2, float>());
    case 1: return call(Winograd<F2, F2, F4, float>());
    case 2: return call(Winograd<F2, F4, F2, float>());
    case 3: return call(Winograd<F2, F4, F4, float>());
    case 4: return call(Winograd<F4, F2, F2, float>());
    case 5: return call(Winograd<F4, F2, F4, float>());
    case 6: return call(Winograd<F4, F4, F2, float>());
    default: return call(Winograd<F4, F4, F4, float>());
  }
}

void winograd(const hfrt::ConvArgs& a, int64_t begin, int64_t end, float* scratch) {
  with_tile(a.tile, a.window.stride[0], a.pairs, [&](auto w) { w.run(a, begin, end, scratch); });
}

void winograd_weights(const float* weight, const hfrt::ConvArgs& a, float* out, int64_t begin,
                      int64_t end) {
  with_tile(a.tile, a.window.stride[0], a.pairs,
            [&](auto w) { w.weights(weight, a.in_extent.c, a.conv_extent.c, out, begin, end); });
}

}  // namespace
