// The kernels' arguments, and the table of one instruction set's kernels. Plain data and function
// pointers only: nothing here is compiled differently per set.
//
// Both sides need it. It stands with the kernels, whose interface it is: `engine/` includes this
// header of `isa/` and no other, and `isa/` nothing of `engine/`.
//
// A volume is [Cb][D][H][W][16], float32 or bfloat16 (`Kernels::stored`): channels in blocks of 16,
// the last block filled up. A vector is [C] float32. Arithmetic is in float32, but for the products
// of bfloat16 pairs. Every kernel does a range of independent tasks, so that the caller may spread
// them over threads; a task computes the same numbers whatever the range that it is part of.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hfrt {

constexpr int kBlock = 16;
// Floats that the planar kernel may read after the end of its input.
constexpr int kSpare = 128;

// Inlined everywhere: no definition that was compiled for one set can be linked for another.
__attribute__((always_inline)) inline int64_t blocks_of(int64_t channels) {
  return (channels + kBlock - 1) / kBlock;
}

enum class Act : int32_t {
  none,
  relu,
  relu6,
  leaky_relu,
  prelu,
  elu,
  silu,
  gelu,
  gelu_tanh,
  sigmoid,
  tanh,
  hardswish,
  hardsigmoid,
  softplus,
  mish,
  clip,
  exp,
  log,
  sqrt,
  abs,
  erf,
  power,
};

struct Activation {
  Act kind = Act::none;
  float alpha = 0, beta = 0;     // leaky_relu, elu, clip, power
  const float* slope = nullptr;  // prelu: [C], filled up to whole blocks
};

struct Extent {
  int64_t c = 0, d = 1, h = 1, w = 1;
  __attribute__((always_inline)) int64_t voxels() const { return d * h * w; }
  __attribute__((always_inline)) int64_t numbers() const {
    return blocks_of(c) * voxels() * kBlock;
  }
};

// Before a convolution reads x: activation(x * scale + shift); zero padding comes after it.
struct Prologue {
  const float* scale = nullptr;  // [C], filled up; null: no prologue
  const float* shift = nullptr;
  Activation act;
};

// y = activation(conv + bias + residual), then max over 2x2x2 if `pool`; if `second`, also
// second = second_act(y * second_scale + second_shift).
struct Epilogue {
  const float* bias = nullptr;     // [Cout], filled up
  const void* residual = nullptr;  // the output's layout, or null
  Activation act;
  bool pool = false;
  void* second = nullptr;
  const float* second_scale = nullptr;
  const float* second_shift = nullptr;
  Activation second_act;
  // Whether an activation has a number per channel.
  __attribute__((always_inline)) bool slopes() const { return act.slope || second_act.slope; }
  // Winograd only: y is kept at every second voxel along each axis, in an output of half the size.
  bool sparse = false;
};

// `padding` in front of an axis, and so much more (or, below 0, less) behind it.
struct Window {
  int64_t kernel[3] = {1, 1, 1}, stride[3] = {1, 1, 1}, padding[3] = {0, 0, 0},
          dilation[3] = {1, 1, 1}, more[3] = {0, 0, 0};
};

// A 1x1x1 convolution whose result is added before the activation (a residual block's shortcut).
// Its bias is part of the epilogue's.
struct Shortcut {
  const void* in = nullptr;  // null: none
  Extent in_extent;
  int64_t stride[3] = {1, 1, 1};
  const float* weight = nullptr;  // packed
};

// The layout of a volume of few channels whose readers are all `narrow`: [C][D][4][4][plane]. The
// voxel (y, x) stands in the plane of its phases (y % 4, x % 4) at y / 4 * row + x / 4: the same
// voxel of neighbouring 4x4 tiles side by side. What a 3x3 window reads over the border is zero:
// a number behind each row, a row and more behind each plane, `guard` numbers before the volume.
struct Phases {
  int64_t rows = 0, row = 0, plane = 0;
  __attribute__((always_inline)) static Phases of(const Extent& e) {
    const int64_t rows = (e.h + 3) / 4, row = (e.w + 3) / 4 + 1;
    return {rows, row, (rows * row + row + 1 + 15) / 16 * 16};
  }
  // From a tile's first voxel to (y, x) in -4..7 from there.
  __attribute__((always_inline)) int64_t at(int64_t y, int64_t x) const {
    const int64_t h = y + 4, w = x + 4;
    return (h % 4 * 4 + w % 4) * plane + (h / 4 - 1) * row + w / 4 - 1;
  }
  __attribute__((always_inline)) int64_t plane_of(int64_t c, int64_t z, int64_t depth) const {
    return (c * depth + z) * 16 * plane;
  }
  // Of 16 tiles, in a plane.
  __attribute__((always_inline)) int64_t vectors() const { return (rows * row + 15) / 16; }
  __attribute__((always_inline)) int64_t guard() const { return (row + 1 + 15) / 16 * 16; }
};

// The most channels of a narrow convolution, and the output channels that it makes at once.
constexpr int kNarrowIn = 8, kNarrowOut = 16, kNarrowGroup = 8;
__attribute__((always_inline)) inline int64_t narrow_groups(int64_t cout) {
  return (cout + kNarrowGroup - 1) / kNarrowGroup;
}
__attribute__((always_inline)) inline int64_t narrow_scratch(int64_t cin, int64_t cout) {
  const int64_t made = narrow_groups(cout) * kNarrowGroup * 4 * 36;
  return (cin * 6 * 36 + made + 6 * cin + 6 * kNarrowGroup + 2 * 256) * 16;
}

struct ConvArgs {
  const void* in = nullptr;  // planar: [C][D][H][W] float32, padded
  Extent in_extent;
  // The planes that the buffer between a planar convolution (its output) and a Winograd
  // convolution (its input) holds: plane z stands at z % ring.
  int64_t ring = 0;
  void* out = nullptr;
  Extent conv_extent;  // of the convolution, before pooling
  Extent out_extent;   // after pooling
  Window window;
  const float* weight = nullptr;   // as `pack` left it
  const int64_t* shift = nullptr;  // planar: floats from an output's first input to each tap's
  Prologue prologue;
  Epilogue epilogue;
  Shortcut shortcut;  // Winograd only
  // Narrow: weights [36][group][6][Cin][8] (H and W's points, D's), the shortcut's [Cs][Cout], and
  // which numbers of the 16 planes are voxels (1, or 0).
  Phases phases;
  const float *narrow_weight = nullptr, *narrow_shortcut = nullptr, *valid = nullptr;
  bool phased = false;  // narrow or planar: the outputs are `phases`
  // The partition into tasks, `tasks = splits * blocks`.
  int64_t tile[3] = {0, 0, 0};  // Winograd: outputs per tile along each axis
  bool pairs = false;           // Winograd, 2x2x2: the product takes `Kernels::pair` factors
  // Gather and depthwise: output voxel i of `conv_extent` stands at place * i + start in
  // `out_extent`.
  int64_t place[3] = {1, 1, 1}, start[3] = {0, 0, 0};
  // The result is [C][D][H][W] float32; without residual and second output.
  bool plain = false;
  // Gather: so many sets of output channels, one after the other, which stand at starts[3 * set].
  int64_t sets = 1;
  const int64_t* starts = nullptr;
  // They are pairs of neighbours along W, whole vectors hold whole pairs, and the result is plain.
  bool paired = false;
  int64_t rows = 0;              // tiles (Winograd) or voxels (gather) in one block
  int64_t splits = 1;            // of the output channels' panels
  int64_t first = 0, count = 0;  // tiles or voxels to do: a part of the volume
};

struct PoolArgs {
  const void* in;
  Extent in_extent;
  void* out;
  Extent out_extent;
  Window window;
  bool average, count_include_pad;
};

// y = act(first op second). An operand has the result's layout, or is the same over what it is
// spread.
enum class Pair : int32_t { add, sub, mul, div, maximum, minimum };
enum class Spread : int32_t {
  none,
  channels,    // a float32 vector [C]: the same in every voxel
  voxels,      // a volume of one channel: the same in every channel
  everywhere,  // one float32
};
struct Operand {
  const void* at = nullptr;
  Spread spread = Spread::none;
};
struct PairArgs {
  Pair pair;
  Operand first, second;
  void* out;
  int64_t channels, voxels;
  Activation act;
};

// y = act((x - centre) * scale + shift), a number each per channel; null scale: act alone, null
// centre: 0.
struct AffineArgs {
  const void* in;
  void* out;
  int64_t channels, voxels;
  const float *centre, *scale, *shift;
  Activation act;
};

// What is summed over voxels.
enum class Sum : int32_t { sum, maximum, squares };
// Voxels of one partial result of `moments`.
constexpr int64_t kRun = 1024;

// What is done along the channels of each voxel; those from `mean` on make one number.
enum class Along : int32_t { softmax, log_softmax, norm, mean, sum, maximum, l2 };
struct ChannelArgs {
  Along kind;
  const void* in;
  Extent in_extent;
  void* out;
  int64_t out_channels;
  const float *scale, *shift;  // norm: [C]
  float eps;
  bool plain;  // both are [C][voxels] float32
};

// For each voxel of the result, along each axis, the two that it lies between and the part of the
// second.
struct BlendArgs {
  const void* in;
  Extent in_extent;
  void* out;
  Extent out_extent;
  const int64_t *low[3], *high[3];
  const float* part[3];
};

struct Kernels {
  const char* name;
  int64_t vectors_per_panel, rows_one, rows_two;
  int64_t stored;  // bytes of a stored number: 4 or 2
  int64_t pair;    // factors in 32 bits of the packed weights: 1, or 2 bfloat16

  // Weights [K][Cout] -> panels [panel][K / pair][vectors * 16] of 32 bits, panels begin..end.
  void (*pack)(const float* weight, int64_t cout, int64_t k, float* out, int64_t begin,
               int64_t end);
  // Weights [27][Cin][Cout] -> [point][panel][Cin][vectors * 16] for a Winograd tile (with `pairs`
  // [Cin / pair]); a task is one (vector of 16 output channels, 1 or `pair` input channels), input
  // channels fastest.
  void (*winograd_weights)(const float* weight, const ConvArgs&, float* out, int64_t begin,
                           int64_t end);
  // y = sum_k e[k] x[k * n + i], i in begin..end
  void (*mix)(const float* x, const float* e, int64_t k, int64_t n, float* y, int64_t begin,
              int64_t end);

  void (*winograd)(const ConvArgs&, int64_t begin, int64_t end, float* scratch);
  void (*narrow)(const ConvArgs&, int64_t begin, int64_t end, float* scratch);
  void (*gather)(const ConvArgs&, int64_t begin, int64_t end, float* scratch);
  // Null where factors are not what is stored.
  void (*pointwise)(const ConvArgs&, int64_t begin, int64_t end, float* scratch);
  void (*planar)(const ConvArgs&, int64_t begin, int64_t end, float* scratch);
  void (*depthwise)(const ConvArgs&, int64_t begin, int64_t end);

  // [C][voxels] float32 to a volume, and back; a task is 16 voxels of one block, voxels fastest.
  void (*block)(const float* plain, void* blocked, int64_t channels, int64_t voxels, int64_t begin,
                int64_t end);
  void (*unblock)(const void* blocked, float* plain, int64_t channels, int64_t voxels,
                  int64_t begin, int64_t end);
  void (*pool)(const PoolArgs&, int64_t begin, int64_t end);
  // The vectors begin..end of all blocks of `voxels` voxels; as in `binary`.
  void (*affine)(const AffineArgs&, int64_t begin, int64_t end);
  void (*binary)(const PairArgs&, int64_t begin, int64_t end);
  void (*reduce)(const void* x, Extent extent, const int64_t stride[3], float* out, Sum kind,
                 int64_t begin, int64_t end);
  void (*moments)(const void* x, int64_t voxels, float* out, int64_t begin, int64_t end);
  void (*along_channels)(const ChannelArgs&, int64_t begin, int64_t end, float* scratch);
  void (*blend)(const BlendArgs&, int64_t begin, int64_t end, float* scratch);
  // The same of plain volumes, [C][voxels] float32; see plain.hpp for the tasks.
  void (*affine_plain)(const AffineArgs&, int64_t begin, int64_t end);
  void (*binary_plain)(const PairArgs&, int64_t begin, int64_t end);
  void (*moments_plain)(const float* x, int64_t voxels, float* out, int64_t begin, int64_t end);
  void (*blend_plain)(const BlendArgs&, int64_t begin, int64_t end, float* scratch);
  // Vectors: y[o] = act(bias[o] + sum_i W[i][o] x[i]) for o-panels of 16, W [I][O filled up].
  void (*linear)(const float* x, int64_t inputs, const float* weight, int64_t ld, const float* bias,
                 const Activation& act, float* y, int64_t begin, int64_t end);
};

// One table per instruction set and stored type, each from its own compilation of kernels_isa.cpp.
const Kernels& kernels_avx2_fp32();
const Kernels& kernels_avx2_bf16();
const Kernels& kernels_avx512_fp32();
const Kernels& kernels_avx512_bf16();
const Kernels& kernels_avx512_bf16_bf16();
const Kernels& kernels_neon_fp32();
const Kernels& kernels_neon_bf16();

}  // namespace hfrt
