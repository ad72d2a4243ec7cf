#include "crop_normalise.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace hfrt {
namespace {

// One coordinate of one output voxel: two neighbours and the second's weight.
struct Tap {
  int64_t low, high;        // their indices
  int64_t low_at, high_at;  // and where they are, in elements
  int64_t bit;              // of the first
  float weight;
  bool inside;
};

constexpr std::array<int, 3> kInOrder = {0, 1, 2};
constexpr double kSnap = 1e-4;  // voxels: files keep the affine as float32

Tap make_tap(double c, int64_t n, int64_t stride, int64_t bits) {
  if (!(c >= -0.5 && c <= static_cast<double>(n) - 0.5)) return {0, 0, 0, 0, 0, 0.0f, false};
  c = std::min(std::max(c, 0.0), static_cast<double>(n - 1));
  // A grid point is one, whatever the rounding of the matrix says: a neighbour of weight 1e-6 would
  // make background that touches the brain differ from 0.
  if (std::abs(c - std::round(c)) < kSnap) c = std::round(c);
  const int64_t low = static_cast<int64_t>(c), high = std::min(low + 1, n - 1);
  const float weight = static_cast<float>(c - static_cast<double>(low));
  return {low, high, low * stride, high * stride, low * bits, weight, true};
}

// A voxel of the outermost layer with two thirds of its brightest neighbour's brightness, or more,
// is all brain.
constexpr float kWhole = 1.5f;

// The same from either end.
inline float mix(float a, float b, float w) { return w == 0.0f ? a : (1.0f - w) * a + w * b; }

// A sampled value and its part of support.
struct Sample {
  float value, part;
};
inline Sample mix(const Sample& a, const Sample& b, float w) {
  return w == 0.0f ? a : Sample{mix(a.value, b.value, w), mix(a.part, b.part, w)};
}

// Trilinear, of get(tap x is high, tap y is high, tap z is high). A neighbour of weight 0 is not
// read: it may be NaN, and a whole-voxel crop costs one load.
template <class Get>
auto trilinear(const Tap& x, const Tap& y, const Tap& z, Get get) {
  const auto along = [&](bool i, bool j) {
    const auto a = get(i, j, false);
    return z.weight == 0.0f ? a : mix(a, get(i, j, true), z.weight);
  };
  const auto plane = [&](bool i) {
    const auto a = along(i, false);
    return y.weight == 0.0f ? a : mix(a, along(i, true), y.weight);
  };
  const auto a = plane(false);
  return x.weight == 0.0f ? a : mix(a, plane(true), x.weight);
}

// Voxels of one type, and what of them is support (none: everything, and `base` is 0).
template <class T>
struct Sampler {
  const T* voxels;
  int64_t shape[3], strides[3], bits[3];
  double slope, base;  // value = slope * voxel + base
  const Support* s;

  Sampler(const Volume& v, const T* data, const Support* support, const std::array<int, 3>& axis)
      : voxels(data),
        slope(v.slope),
        base(v.inter),
        s(support && support->found ? support : nullptr) {
    if (s) base = -v.slope * s->background;
    for (int a = 0; a < 3; ++a) {
      shape[a] = v.shape[axis[a]];
      strides[a] = v.strides[axis[a]];
      bits[a] = s ? s->outside.strides[axis[a]] : 0;
    }
  }
  Tap tap(double c, int a) const { return make_tap(c, shape[a], strides[a], bits[a]); }

  float value(int64_t at) const {
    return static_cast<float>(slope * static_cast<double>(voxels[at]) + base);
  }
  Sample plain(const Tap& x, const Tap& y, const Tap& z) const {
    return {trilinear(x, y, z,
                      [&](bool i, bool j, bool k) {
                        return value((i ? x.high_at : x.low_at) + (j ? y.high_at : y.low_at) +
                                     (k ? z.high_at : z.low_at));
                      }),
            1.0f};
  }
  Sample sample(const Tap& x, const Tap& y, const Tap& z) const {
    if (!(x.inside && y.inside && z.inside)) return {0.0f, 0.0f};
    if (!s) return plain(x, y, z);
    const int64_t bit = x.bit + y.bit + z.bit;
    if (s->outer[bit]) return {0.0f, 0.0f};
    if (s->inner[bit]) return plain(x, y, z);
    return trilinear(x, y, z, [&](bool i, bool j, bool k) {
      return masked(i ? x.high : x.low, j ? y.high : y.low, k ? z.high : z.low);
    });
  }
  // One voxel: 0 in the background, and in the rim as much support as its brightness says.
  Sample masked(int64_t i, int64_t j, int64_t k) const {
    const int64_t bit = i * bits[0] + j * bits[1] + k * bits[2];
    if (s->outside[bit]) return {0.0f, 0.0f};
    const int64_t at = i * strides[0] + j * strides[1] + k * strides[2];
    const float own = value(at);
    if (s->side == 0 || !s->rim[bit]) return {own, 1.0f};
    float most = std::abs(own);
    const int64_t index[3] = {i, j, k};
    for (int a = 0; a < 3; ++a)
      for (int64_t way = -1; way <= 1; way += 2) {
        const int64_t next = index[a] + way;
        if (next < 0 || next >= shape[a] || s->outside[bit + way * bits[a]]) continue;
        most = std::max(most, std::abs(value(at + way * strides[a])));
      }
    return {own, std::min(1.0f, kWhole * std::abs(own) / most)};
  }
};

// Which volume axis each output axis moves along, when it is exactly one; else separable is false.
struct Axes {
  bool separable = true;
  std::array<int, 3> input = {-1, -1, -1};
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

// put(sample) for every output voxel in C order; returns how many lie in the volume.
template <class T, class Put>
int64_t sample_box(const Volume& v, const T* voxels, const Support* support, const double m[12],
                   const int64_t n[3], Put put) {
  const Axes axes = find_axes(m);
  int64_t inside = 0;
  if (axes.separable) {
    // Mixing runs along the box's axes in a fixed order, whatever the orientation in the file.
    const Sampler<T> s(v, voxels, support, axes.input);
    std::vector<Tap> taps[3];
    for (int o = 0; o < 3; ++o) {
      const double* row = m + 4 * axes.input[o];
      for (int64_t i = 0; i < n[o]; ++i)
        taps[o].push_back(s.tap(row[o] * static_cast<double>(i) + row[3], o));
    }
    for (const Tap& x : taps[0])
      for (const Tap& y : taps[1])
        for (const Tap& z : taps[2]) {
          inside += x.inside && y.inside && z.inside;
          put(s.sample(x, y, z));
        }
    return inside;
  }
  const Sampler<T> s(v, voxels, support, kInOrder);
  for (int64_t i = 0; i < n[0]; ++i)
    for (int64_t j = 0; j < n[1]; ++j)
      for (int64_t k = 0; k < n[2]; ++k) {
        Tap t[3];
        for (int a = 0; a < 3; ++a)
          t[a] = s.tap(m[4 * a] * static_cast<double>(i) + m[4 * a + 1] * static_cast<double>(j) +
                           m[4 * a + 2] * static_cast<double>(k) + m[4 * a + 3],
                       a);
        inside += t[0].inside && t[1].inside && t[2].inside;
        put(s.sample(t[0], t[1], t[2]));
      }
  return inside;
}

// Every output voxel's value and part of support; returns how many lie in the volume.
int64_t sample_values(const Volume& volume, const Support* support, const double m[12],
                      const int64_t n[3], float* value, float* part) {
  return with_type(volume, [&](const auto* voxels) {
    return sample_box(volume, voxels, support, m, n, [&](const Sample& x) {
      *value++ = x.value;
      *part++ = x.part;
    });
  });
}

}  // namespace

CropStatistics crop_normalise(const Volume& volume, const Support& support, const double matrix[12],
                              const int64_t out_shape[3], float* out) {
  CropStatistics s;
  const int64_t count = out_shape[0] * out_shape[1] * out_shape[2];
  std::vector<float> parts(count);
  s.inside = sample_values(volume, &support, matrix, out_shape, out, parts.data());
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    s.nonfinite += !std::isfinite(out[i]);
    s.support += parts[i];
    sum += out[i];
  }
  if (s.nonfinite || s.support == 0) return s;
  s.mean = sum / s.support;
  double squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double over = out[i] - parts[i] * s.mean;
    if (parts[i] > 0) squares += over * over / parts[i];
  }
  s.deviation = std::sqrt(squares / s.support);
  if (s.deviation == 0) return s;
  const double scale = 1.0 / s.deviation;
  for (int64_t i = 0; i < count; ++i)
    out[i] = static_cast<float>((out[i] - parts[i] * s.mean) * scale);
  return s;
}

CropStatistics crop_normalise_nonzero(const Volume& volume, const double matrix[12],
                                      const int64_t out_shape[3], float* out) {
  CropStatistics s;
  float* put = out;
  s.inside = with_type(volume, [&](const auto* voxels) {
    return sample_box(volume, voxels, nullptr, matrix, out_shape,
                      [&](const Sample& x) { *put++ = x.value; });
  });
  float* const end = out + out_shape[0] * out_shape[1] * out_shape[2];
  double sum = 0;
  int64_t nonzero = 0;
  for (const float* p = out; p != end; ++p) {
    s.nonfinite += !std::isfinite(*p);
    nonzero += *p != 0.0f;
    sum += *p;
  }
  s.support = static_cast<double>(nonzero);
  if (s.nonfinite || !nonzero) return s;
  s.mean = sum / s.support;
  double squares = 0;
  for (const float* p = out; p != end; ++p)
    if (*p != 0.0f) squares += (*p - s.mean) * (*p - s.mean);
  s.deviation = std::sqrt(squares / s.support);
  if (s.deviation == 0.0) return s;
  const double scale = 1.0 / s.deviation;
  for (float* p = out; p != end; ++p)
    if (*p != 0.0f) *p = static_cast<float>((*p - s.mean) * scale);
  return s;
}

CropStatistics crop_range(const Volume& volume, const double matrix[12], const int64_t out_shape[3],
                          double low, double high, float* out) {
  CropStatistics s;
  const int64_t count = out_shape[0] * out_shape[1] * out_shape[2];
  std::vector<float> parts(count);
  s.inside = sample_values(volume, nullptr, matrix, out_shape, out, parts.data());
  for (int64_t i = 0; i < count; ++i) s.nonfinite += !std::isfinite(out[i]);
  if (s.nonfinite) return s;
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double x = parts[i] == 0 ? 0 : (out[i] - low) / (high - low);
    const double cut = std::min(std::max(x, 0.0), 1.0);
    out[i] = static_cast<float>(cut);
    s.support += cut > 0;
    sum += cut;
    squares += cut * cut;
  }
  if (s.support == 0) return s;
  s.mean = sum / s.support;
  s.deviation = std::sqrt(std::max(0.0, squares / s.support - s.mean * s.mean));
  return s;
}

void sample_means(const Volume& volume, const Support& support, const double matrix[12],
                  const double reach[3], const float* points, int64_t count, float* out) {
  with_type(volume, [&](const auto* voxels) {
    const Sampler s(volume, voxels, &support, kInOrder);
    for (int64_t p = 0; p < count; ++p) {
      int64_t near[3][2];
      for (int a = 0; a < 3; ++a) {
        const double* row = matrix + 4 * a;
        const double c = row[0] * points[3 * p] + row[1] * points[3 * p + 1] +
                         row[2] * points[3 * p + 2] + row[3];
        for (int end = 0; end < 2; ++end) {
          const double at = c + (end ? reach[a] : -reach[a]) + 0.5;  // cut to the nearest voxel
          near[a][end] =
              at >= 0 && at < static_cast<double>(volume.shape[a]) ? static_cast<int64_t>(at) : -1;
        }
      }
      double sum = 0;
      for (int corner = 0; corner < 8; ++corner) {
        const int64_t i = near[0][corner >> 2], j = near[1][corner >> 1 & 1],
                      k = near[2][corner & 1];
        if (i < 0 || j < 0 || k < 0) continue;
        if (s.s && s.s->outside[i * s.bits[0] + j * s.bits[1] + k * s.bits[2]]) continue;
        const float value = s.value(i * s.strides[0] + j * s.strides[1] + k * s.strides[2]);
        if (std::isfinite(value)) sum += value;
      }
      out[p] = static_cast<float>(sum / 8);
    }
  });
}

}  // namespace hfrt
