// Crop a box out of a volume, resample it trilinearly, and z-score it over the brain.
#pragma once

#include <cstdint>

#include "support.hpp"
#include "volume.hpp"

namespace hfrt {

struct CropStatistics {
  int64_t inside = 0;     // output voxels whose centre lies in the volume
  int64_t nonfinite = 0;  // output voxels that are NaN or infinite
  double support = 0;     // output voxels over which mean and deviation were taken: the sum of m
  double mean = 0, deviation = 0;  // over the background; population standard deviation
};

// matrix: 3 x 4, row-major, from an output index (i, j, k, 1) to a voxel coordinate of the volume.
// out: float [shape[0], shape[1], shape[2]], C order, every element is written.
//
// A coordinate c is in the volume when -0.5 <= c <= n - 0.5 on every axis, and is then clamped to
// [0, n - 1], and taken as whole within 1e-4 of it; other output voxels are 0.
//
// Each voxel v of the volume has a part m of support: 0 in the background, 1 in the brain, and in
// the outermost layer, where a voxel may hold a little of both, 1.5 times its brightness over that
// of its brightest neighbour (6 neighbours and itself), at most 1; where values lie on both sides
// of the background there is no brightness, and m is 1. u = m ? v - background : 0. Both are
// resampled:
//
//   out = (u - m * mean) / deviation,   mean = sum u / sum m,
//                                       deviation^2 = sum (u - m * mean)^2 / m / sum m
//
// so that half a voxel of brain is half as far from the mean as a whole one, and the background is
// 0. Where anything is not finite, or the deviation is 0, out is u. Max error: 4 float ulp of the
// largest sampled value over the deviation. One thread.
CropStatistics crop_normalise(const Volume& volume, const Support& support, const double matrix[12],
                              const int64_t out_shape[3], float* out);

// The older rule: what is exactly 0 once sampled is background, wherever it is.
CropStatistics crop_normalise_nonzero(const Volume& volume, const double matrix[12],
                                      const int64_t out_shape[3], float* out);

// For images whose values are quantities: out = (v - low) / (high - low), at most 1 and at least 0;
// 0 outside the volume. `support` counts the voxels above 0, of which mean and deviation are taken.
// Where anything is not finite, out is v.
CropStatistics crop_range(const Volume& volume, const double matrix[12], const int64_t out_shape[3],
                          double low, double high, float* out);

// What lies around points: out[p] = the mean over the 8 voxels nearest to the points' corners,
//
//   matrix · point + (±reach, ±reach, ±reach),
//
// of the value over the background; 0 in the background, outside the volume, and for NaN.
// matrix: 3 x 4, row-major, from a point to a voxel coordinate; reach: voxels along each axis.
void sample_means(const Volume& volume, const Support& support, const double matrix[12],
                  const double reach[3], const float* points, int64_t count, float* out);

}  // namespace hfrt
