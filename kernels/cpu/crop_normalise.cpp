#include "crop_normalise.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace hfrt {
namespace {

// One coordinate of one output voxel: two neighbours (offsets in elements) and the second's weight.
struct Tap {
  int64_t low, high;
  float weight;
  bool inside;
};

constexpr double kSnap = 1e-4;  // voxels: files keep the affine as float32

Tap make_tap(double c, int64_t n, int64_t stride) {
  if (!(c >= -0.5 && c <= static_cast<double>(n) - 0.5)) return {0, 0, 0.0f, false};
  c = std::min(std::max(c, 0.0), static_cast<double>(n - 1));
  // A grid point is one, whatever the rounding of the matrix says: a neighbour of weight 1e-6 would
  // make background that touches the brain differ from 0.
  if (std::abs(c - std::round(c)) < kSnap) c = std::round(c);
  const int64_t low = static_cast<int64_t>(c);
  const int64_t high = std::min(low + 1, n - 1);
  return {low * stride, high * stride, static_cast<float>(c - static_cast<double>(low)), true};
}

template <class T>
struct Sampler {
  const T* voxels;
  double slope, inter;

  float at(int64_t offset) const {
    return static_cast<float>(slope * static_cast<double>(voxels[offset]) + inter);
  }
  static float mix(float a, float b, float w) { return w == 0.0f ? a : a + w * (b - a); }

  // A neighbour of weight 0 is not read: it may be NaN, and a whole-voxel crop costs one load.
  float along(int64_t base, const Tap& z) const {
    return z.weight == 0.0f ? at(base + z.low) : mix(at(base + z.low), at(base + z.high), z.weight);
  }
  float plane(int64_t base, const Tap& y, const Tap& z) const {
    const float a = along(base + y.low, z);
    return y.weight == 0.0f ? a : mix(a, along(base + y.high, z), y.weight);
  }
  float sample(const Tap& x, const Tap& y, const Tap& z) const {
    if (!(x.inside && y.inside && z.inside)) return 0.0f;
    const float a = plane(x.low, y, z);
    return x.weight == 0.0f ? a : mix(a, plane(x.high, y, z), x.weight);
  }
};

// Which volume axis each output axis moves along, when it is exactly one; else separable is false.
struct Axes {
  bool separable = true;
  int input[3] = {-1, -1, -1};
};

Axes find_axes(const double m[12]) {
  Axes axes;
  bool used[3] = {false, false, false};
  for (int o = 0; o < 3; ++o) {
    for (int i = 0; i < 3; ++i) {
      if (m[4 * i + o] == 0.0) continue;
      if (axes.input[o] >= 0 || used[i]) axes.separable = false;
      axes.input[o] = i;
      used[i] = true;
    }
    if (axes.input[o] < 0) axes.separable = false;
  }
  return axes;
}

template <class T>
int64_t sample_box(const Volume& v, const double m[12], const int64_t n[3], float* out) {
  const Sampler<T> sampler{static_cast<const T*>(v.voxels), v.slope, v.inter};
  const Axes axes = find_axes(m);
  int64_t inside = 0;
  if (axes.separable) {
    std::vector<Tap> taps[3];
    for (int o = 0; o < 3; ++o) {
      const int a = axes.input[o];
      for (int64_t i = 0; i < n[o]; ++i)
        taps[o].push_back(make_tap(m[4 * a + o] * static_cast<double>(i) + m[4 * a + 3], v.shape[a],
                                   v.strides[a]));
    }
    // Mixing runs along the volume's axes in a fixed order, whatever the orientation in the file.
    for (int64_t i = 0; i < n[0]; ++i)
      for (int64_t j = 0; j < n[1]; ++j)
        for (int64_t k = 0; k < n[2]; ++k) {
          const Tap &x = taps[0][i], &y = taps[1][j], &z = taps[2][k];
          inside += x.inside && y.inside && z.inside;
          *out++ = sampler.sample(x, y, z);
        }
    return inside;
  }
  for (int64_t i = 0; i < n[0]; ++i)
    for (int64_t j = 0; j < n[1]; ++j)
      for (int64_t k = 0; k < n[2]; ++k) {
        Tap t[3];
        for (int a = 0; a < 3; ++a)
          t[a] =
              make_tap(m[4 * a] * static_cast<double>(i) + m[4 * a + 1] * static_cast<double>(j) +
                           m[4 * a + 2] * static_cast<double>(k) + m[4 * a + 3],
                       v.shape[a], v.strides[a]);
        inside += t[0].inside && t[1].inside && t[2].inside;
        *out++ = sampler.sample(t[0], t[1], t[2]);
      }
  return inside;
}

int64_t sample_box(const Volume& v, const double m[12], const int64_t n[3], float* out) {
  switch (v.dtype) {
    case DType::u8: return sample_box<uint8_t>(v, m, n, out);
    case DType::i8: return sample_box<int8_t>(v, m, n, out);
    case DType::u16: return sample_box<uint16_t>(v, m, n, out);
    case DType::i16: return sample_box<int16_t>(v, m, n, out);
    case DType::u32: return sample_box<uint32_t>(v, m, n, out);
    case DType::i32: return sample_box<int32_t>(v, m, n, out);
    case DType::u64: return sample_box<uint64_t>(v, m, n, out);
    case DType::i64: return sample_box<int64_t>(v, m, n, out);
    case DType::f32: return sample_box<float>(v, m, n, out);
    case DType::f64: return sample_box<double>(v, m, n, out);
  }
  return 0;
}

}  // namespace

CropStatistics crop_normalise(const Volume& volume, const double matrix[12],
                              const int64_t out_shape[3], float* out) {
  CropStatistics s;
  s.inside = sample_box(volume, matrix, out_shape, out);
  float* const end = out + out_shape[0] * out_shape[1] * out_shape[2];
  double sum = 0;
  for (const float* p = out; p != end; ++p) {
    s.nonfinite += !std::isfinite(*p);
    s.nonzero += *p != 0.0f;
    sum += *p;
  }
  if (s.nonfinite || !s.nonzero) return s;
  s.mean = sum / static_cast<double>(s.nonzero);
  double squares = 0;
  for (const float* p = out; p != end; ++p)
    if (*p != 0.0f) squares += (*p - s.mean) * (*p - s.mean);
  s.deviation = std::sqrt(squares / static_cast<double>(s.nonzero));
  if (s.deviation == 0.0) return s;
  const double scale = 1.0 / s.deviation;
  for (float* p = out; p != end; ++p)
    if (*p != 0.0f) *p = static_cast<float>((*p - s.mean) * scale);
  return s;
}

}  // namespace hfrt
