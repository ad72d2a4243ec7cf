// The kernels that only training uses, on float32 volumes [B][D][H][W][C]. A kernel does numbered
// tasks, and gives the same bits whatever thread or range a task is part of.
#pragma once

#include <cstdint>

namespace hfrt {

// y = factor * pool(act(scale * (x - mean) + bias)), all per channel but `factor`, per sample too.
struct Norm {
  const float* x;
  int64_t batch, d, h, w, channels;
  const float *mean, *scale, *bias;  // [C]
  const float* factor;               // [B][C], or nullptr: 1
  bool relu;
  bool pool;  // the maximum of 2x2x2 voxels; an odd voxel at the end is left out
};

// Channels repeat after `norm_period` vectors of 16, which hold whole voxels; kNormPeriod at most.
constexpr int64_t kNormPeriod = 32;
inline int64_t norm_period(int64_t channels) {
  int64_t common = 16;
  while (channels % common) common /= 2;
  return channels / common;
}

// What a task covers of a sample: about 16384 numbers or, with `pool`, two slices along D.
inline int64_t norm_run(int64_t channels) {
  const int64_t period = 16 * norm_period(channels);
  return (16384 > period ? 16384 / period : 1) * period;
}
inline int64_t norm_parts(const Norm& n) {
  if (n.pool) return (n.d + 1) / 2;
  const int64_t run = norm_run(n.channels);
  return (n.d * n.h * n.w * n.channels + run - 1) / run;
}

// The weights of a 3x3x3 convolution with a border of one voxel, and its bias: gradients, of
// x [B][D][H][W][cin] and dy [B][OD][OH][OW][cout].
struct FilterGradient {
  const float *x, *dy;
  int64_t batch, d, h, w, cin, od, oh, ow, cout, stride;

  int64_t padded() const { return (cout + 15) / 16 * 16; }
  // Of a task, which is a slab of a sample: at most 2048 voxels of dy, or one slice.
  int64_t slab() const { return oh * ow < 2048 ? 2048 / (oh * ow) : 1; }
  int64_t slabs() const { return (od + slab() - 1) / slab(); }
  // What a task finds: [3][3][3][cin][padded], and the bias.
  int64_t numbers() const { return (27 * cin + 1) * padded(); }
  // Its scratch: a row of x with its border, the rows of x below some of dy, both of some rows.
  int64_t line() const { return ((ow - 1) * stride + 3) * cin; }
  int64_t lines(int64_t rows) const { return (rows - 1) * stride + 3; }
  int64_t rows() const {
    const int64_t some = 16384 / (3 * stride * line() + ow * padded());
    return some < 1 ? 1 : some < oh ? some : oh;
  }
  int64_t scratch() const { return 3 * lines(rows()) * line() + rows() * ow * padded(); }
};

// New voxels (d, h, w) of images [B][C][D][H][W] are read at matrix * (voxel - centre) + centre +
// shift + elastic, in voxels; beyond the border it is repeated. What is not 0 is brain.
struct Warp {
  const float* images;
  int64_t batch, channels, d, h, w;
  const float *matrix, *shift;  // [B][3][3], [B][3]
  const float* elastic;         // [B][3][D][H][W], or nullptr: 0
};

struct TrainingKernels {
  // Per channel, sums of x and of its squares: out [task][2][C], tasks as without `pool`. Of `norm`
  // it reads x and sizes. Differences to the mean of 4096 numbers are squared: the variance that
  // follows loses nothing to a large mean.
  void (*norm_sums)(const Norm& norm, double* out, int64_t begin, int64_t end);
  void (*norm)(const Norm& norm, float* y, int64_t begin, int64_t end);
  // With g the gradient of scale * (x - mean) + bias: per channel, sums of g and of
  // g * (x - mean), out [task][2][C].
  void (*norm_gradient_sums)(const Norm& norm, const float* dy, double* out, int64_t begin,
                             int64_t end);
  // dx = scale * g - first - second * (x - mean); first, second [C].
  void (*norm_gradient)(const Norm& norm, const float* dy, const float* first, const float* second,
                        float* dx, int64_t begin, int64_t end);
  // Sums in float32: out [task][numbers]. Error of each: the task's voxels times half an ulp of the
  // products' magnitudes, at most.
  void (*filter_gradient)(const FilterGradient& a, float* scratch, float* out, int64_t begin,
                          int64_t end);
  // The mean of the brain's voxels around each point, and 1 where they weigh more than half; else 0
  // and 0. Tasks are slices along D: B * D.
  void (*warp)(const Warp& a, float* values, float* inside, int64_t begin, int64_t end);
};

const TrainingKernels& training_avx2();
const TrainingKernels& training_avx512();
const TrainingKernels& training_neon();

}  // namespace hfrt
