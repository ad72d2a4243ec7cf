// The kernels that only training uses: contiguous float32 volumes [B][C][D][H][W]. A plane is what
// one channel of one sample holds. A kernel does numbered tasks, and gives the same bits whatever
// thread or range a task is part of.
#pragma once

#include <cstdint>

namespace hfrt {

// y = factor * pool(act(scale * (x - mean) + bias)), all per channel but `factor`, per plane.
struct Norm {
  const float* x;
  int64_t batch, channels, d, h, w;
  const float *mean, *scale, *bias;  // [C]
  const float* factor;               // [B][C], or nullptr: 1
  bool relu;
  bool pool;  // the maximum of 2x2x2 voxels; an odd voxel at the end is left out
};

// What a task covers: of a plane kNormRun voxels or, with `pool`, two slices along D.
constexpr int64_t kNormRun = 16384;
inline int64_t norm_parts(int64_t d, int64_t h, int64_t w, bool pool) {
  return pool ? (d + 1) / 2 : (d * h * w + kNormRun - 1) / kNormRun;
}

struct TrainingKernels {
  // Sums of x and of its squares: out [task][2], tasks as without `pool`. Relative error of the
  // variance that follows below 2e-5 (mean by mean within 4096 numbers).
  void (*norm_sums)(const float* x, int64_t voxels, double* out, int64_t begin, int64_t end);
  void (*norm)(const Norm& norm, float* y, int64_t begin, int64_t end);
  // With g the gradient of scale * (x - mean) + bias: sums of g and of g * (x - mean), out [task][2].
  void (*norm_gradient_sums)(const Norm& norm, const float* dy, double* out, int64_t begin,
                             int64_t end);
  // dx = scale * g - first - second * (x - mean); first, second [C].
  void (*norm_gradient)(const Norm& norm, const float* dy, const float* first, const float* second,
                        float* dx, int64_t begin, int64_t end);
};

const TrainingKernels& training_avx2();
const TrainingKernels& training_avx512();
const TrainingKernels& training_neon();

}  // namespace hfrt
