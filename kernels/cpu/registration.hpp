// Registration of a scan to a template: local correlation and its normal equations, smoothing,
// block means, trilinear and cubic sampling. Float volumes in C order [X, Y, Z]. One thread; the
// same bits on every machine of one kind, as no sum depends on the instruction set.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace hfrt {

using Shape3 = std::array<int64_t, 3>;

inline int64_t size_of(const Shape3& s) { return s[0] * s[1] * s[2]; }

struct FloatVolume {
  const float* voxels = nullptr;
  Shape3 shape{};
};

// out [ceil(X / step) ...] = the mean over each block of `step` voxels; beyond the border lies 0.
void block_means(const FloatVolume& in, const Shape3& step, float* out);

// A Gaussian of standard deviation sigma (voxels, each axis), cut at `truncate` sigma; beyond the
// border lies 0. sigma 0 leaves an axis as it is.
void smooth(const FloatVolume& in, const double sigma[3], double truncate, float* out);

// out[i] = the volume at matrix · index, trilinear. matrix: 3 x 4, row-major. Beyond half a voxel
// outside the volume: 0, or, if `nearest`, the nearest voxel. Where mask (may be null) is 0: 0.
void sample_linear(const FloatVolume& in, const double matrix[12], bool nearest,
                   const uint8_t* mask, const Shape3& out_shape, float* out);

// The same by cubic B-splines that pass through the voxels (mirrored at the border); beyond half a
// voxel outside the volume: 0.
void sample_cubic(const FloatVolume& in, const double matrix[12], const uint8_t* mask,
                  const Shape3& out_shape, float* out);

// What a pose is worth, and how it gets better.
struct Equations {
  double inside = 0;  // the part of the compared voxels that lies in the scan
  double score = 0;   // the mean local correlation over these
  double cost = 0;    // the weighted mean of the squared residuals
  double scale = 0;   // the robust standard deviation of the residuals
  // Of a change D [3, 4] of the matrix, by rows: D · (1, (index - centre) / radius).
  std::array<double, 144> normal{};
  std::array<double, 12> gradient{};
};

// A template's voxels as they stand out of their surroundings.
//
// With a Gaussian window around each compared voxel, mean and standard deviation s of an image a,
// its local value is (a - mean) / sqrt(s^2 + (floor * mean)^2): free of any gain and offset that is
// even over the window; 0 where the window is flat (to 1e-4 of the image's mean). The pose
// minimises the sum of the squared differences between template and scan, with Geman-McClure
// weights of 2.5 robust standard deviations.
class LocalCorrelation {
 public:
  // compared: [X, Y, Z], not 0 where template and scan are compared. sigma: of the window, voxels.
  LocalCorrelation(const float* image, const uint8_t* compared, const Shape3& shape, double sigma);

  // The scan at matrix (3 x 4, from the template's index to the scan's). Where less than `least` of
  // the compared voxels lies inside the scan, only `inside` is set. Without `derive`, normal and
  // gradient are not.
  Equations at(const FloatVolume& scan, const double matrix[12], double least, bool derive) const;

  std::array<double, 3> centre{};  // of the compared voxels, index
  double radius = 0;               // their largest distance from it along an axis

 private:
  struct Local;
  void window(const std::vector<float>& in, std::vector<float>& out,
              std::vector<float>& scratch) const;
  Local local(const std::vector<float>& values, const std::vector<float>& inside,
              const std::vector<float>& weight, std::vector<float>& scratch) const;

  Shape3 shape_;
  std::vector<float> image_;       // 0 where not compared
  std::vector<int64_t> compared_;  // their places
  std::vector<std::array<float, 3>> index_;
  std::vector<float> taps_;
};

}  // namespace hfrt
