// Crop a box out of a volume, resample it trilinearly, and z-score it over its non-zero voxels.
#pragma once

#include <cstdint>

namespace hfrt {

enum class DType { u8, i8, u16, i16, u32, i32, u64, i64, f32, f64 };

struct Volume {
  const void* voxels;  // first voxel; any layout that strides describe
  DType dtype;
  int64_t shape[3];
  int64_t strides[3];   // in elements, may be negative
  double slope, inter;  // value = slope * voxel + inter
};

struct CropStatistics {
  int64_t inside = 0;              // output voxels whose centre lies in the volume
  int64_t nonfinite = 0;           // output voxels that are NaN or infinite
  int64_t nonzero = 0;             // output voxels over which mean and deviation were taken
  double mean = 0, deviation = 0;  // population standard deviation
};

// matrix: 3 x 4, row-major, from an output index (i, j, k, 1) to a voxel coordinate of the volume.
// out: float [shape[0], shape[1], shape[2]], C order, every element is written.
//
// A coordinate c is in the volume when -0.5 <= c <= n - 0.5 on every axis, and is then clamped to
// [0, n - 1], and taken as whole within 1e-4 of it; other output voxels are 0. Zero stays zero;
// other values become (v - mean) / deviation.
// Where anything is not finite, or the deviation is 0, the values are left as sampled.
// Max error: 4 float ulp of the largest sampled value over the deviation. One thread.
CropStatistics crop_normalise(const Volume& volume, const double matrix[12],
                              const int64_t out_shape[3], float* out);

}  // namespace hfrt
