#include "registration.hpp"

#include <algorithm>
#include <cmath>

namespace hfrt {

namespace {

constexpr float kFloor = 0.02f;      // of the local mean: what is flatter has no structure
constexpr float kEmpty = 1e-4f;      // of the whole mean: a window as flat as this says nothing
constexpr double kRobust = 2.5;      // standard deviations at which a residual loses its weight
constexpr double kToSigma = 1.4826;  // from the median of absolute values

std::vector<float> gaussian(double sigma, double truncate) {
  const int reach = static_cast<int>(truncate * sigma + 0.5);
  if (reach <= 0) return {1.0f};
  std::vector<double> taps(2 * reach + 1);
  double sum = 0;
  for (int i = -reach; i <= reach; ++i) {
    taps[i + reach] = std::exp(-0.5 * i * i / (sigma * sigma));
    sum += taps[i + reach];
  }
  std::vector<float> out(taps.size());
  for (size_t i = 0; i < taps.size(); ++i) out[i] = static_cast<float>(taps[i] / sum);
  return out;
}

// out[o, i, :] = sum over taps of in[o, i + tap, :], rows of `inner` numbers.
void filter_outer(const float* in, float* out, int64_t outer, int64_t n, int64_t inner,
                  const std::vector<float>& taps) {
  const int64_t reach = static_cast<int64_t>(taps.size()) / 2;
  for (int64_t o = 0; o < outer; ++o) {
    for (int64_t i = 0; i < n; ++i) {
      float* to = out + (o * n + i) * inner;
      std::fill(to, to + inner, 0.0f);
      const int64_t first = std::max<int64_t>(0, i - reach);
      const int64_t last = std::min<int64_t>(n - 1, i + reach);
      for (int64_t j = first; j <= last; ++j) {
        const float tap = taps[j - i + reach];
        const float* from = in + (o * n + j) * inner;
        for (int64_t k = 0; k < inner; ++k) to[k] += tap * from[k];
      }
    }
  }
}

// Along the last axis, whose rows lie one after the other.
void filter_inner(const float* in, float* out, int64_t rows, int64_t n,
                  const std::vector<float>& taps) {
  const int64_t reach = static_cast<int64_t>(taps.size()) / 2;
  std::vector<float> padded(n + 2 * reach, 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy(in + r * n, in + (r + 1) * n, padded.begin() + reach);
    float* to = out + r * n;
    std::fill(to, to + n, 0.0f);
    for (size_t t = 0; t < taps.size(); ++t) {
      const float tap = taps[t];
      const float* from = padded.data() + t;
      for (int64_t k = 0; k < n; ++k) to[k] += tap * from[k];
    }
  }
}

void filter(const float* in, const Shape3& shape, const std::array<std::vector<float>, 3>& taps,
            float* out, float* scratch) {
  const auto [x, y, z] = shape;
  filter_outer(in, out, 1, x, y * z, taps[0]);
  filter_outer(out, scratch, x, y, z, taps[1]);
  filter_inner(scratch, out, x * y, z, taps[2]);
}

bool inside(const double p[3], const Shape3& shape) {
  for (int a = 0; a < 3; ++a)
    if (!(p[a] > -0.5 && p[a] < static_cast<double>(shape[a]) - 0.5)) return false;
  return true;
}

// Trilinear; beyond the border the nearest voxel.
float linear(const FloatVolume& v, double x, double y, double z) {
  const double at[3] = {x, y, z};
  int64_t low[3], high[3];
  float part[3];
  for (int a = 0; a < 3; ++a) {
    const double c = std::clamp(at[a], 0.0, static_cast<double>(v.shape[a] - 1));
    low[a] = static_cast<int64_t>(c);
    high[a] = std::min(low[a] + 1, v.shape[a] - 1);
    part[a] = static_cast<float>(c - static_cast<double>(low[a]));
  }
  const int64_t sy = v.shape[2], sx = v.shape[1] * sy;
  const float* p = v.voxels;
  const auto row = [&](int64_t i, int64_t j) {
    const float* r = p + i * sx + j * sy;
    return r[low[2]] + part[2] * (r[high[2]] - r[low[2]]);
  };
  const float a = row(low[0], low[1]), b = row(low[0], high[1]);
  const float c = row(high[0], low[1]), d = row(high[0], high[1]);
  const float near = a + part[1] * (b - a), far = c + part[1] * (d - c);
  return near + part[0] * (far - near);
}

}  // namespace

void block_means(const FloatVolume& in, const Shape3& step, float* out) {
  const auto [x, y, z] = in.shape;
  Shape3 n;
  for (int a = 0; a < 3; ++a) n[a] = (in.shape[a] + step[a] - 1) / step[a];
  const double count = static_cast<double>(step[0] * step[1] * step[2]);
  std::vector<float> along(n[2]);
  std::vector<double> sums(n[2]);
  for (int64_t i = 0; i < n[0]; ++i)
    for (int64_t j = 0; j < n[1]; ++j) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (int64_t a = i * step[0]; a < std::min(x, (i + 1) * step[0]); ++a)
        for (int64_t b = j * step[1]; b < std::min(y, (j + 1) * step[1]); ++b) {
          const float* row = in.voxels + (a * y + b) * z;
          for (int64_t k = 0; k < n[2]; ++k) {
            float sum = 0;
            const int64_t last = std::min(z, (k + 1) * step[2]);
            for (int64_t c = k * step[2]; c < last; ++c) sum += row[c];
            sums[k] += sum;
          }
        }
      float* to = out + (i * n[1] + j) * n[2];
      for (int64_t k = 0; k < n[2]; ++k) to[k] = static_cast<float>(sums[k] / count);
    }
}

void smooth(const FloatVolume& in, const double sigma[3], double truncate, float* out) {
  std::vector<float> scratch(size_of(in.shape));
  filter(in.voxels, in.shape,
         {gaussian(sigma[0], truncate), gaussian(sigma[1], truncate), gaussian(sigma[2], truncate)},
         out, scratch.data());
}

void sample_linear(const FloatVolume& in, const double m[12], bool nearest, const uint8_t* mask,
                   const Shape3& out_shape, float* out) {
  int64_t at = 0;
  for (int64_t i = 0; i < out_shape[0]; ++i)
    for (int64_t j = 0; j < out_shape[1]; ++j)
      for (int64_t k = 0; k < out_shape[2]; ++k, ++at) {
        out[at] = 0;
        if (mask && !mask[at]) continue;
        double p[3];
        for (int a = 0; a < 3; ++a)
          p[a] = m[4 * a] * static_cast<double>(i) + m[4 * a + 1] * static_cast<double>(j) +
                 m[4 * a + 2] * static_cast<double>(k) + m[4 * a + 3];
        if (nearest || inside(p, in.shape)) out[at] = linear(in, p[0], p[1], p[2]);
      }
}

namespace {

// Coefficients of the cubic B-spline along rows of `inner` numbers, n of them: in place.
void prefilter(float* c, int64_t n, int64_t inner, std::vector<float>& first) {
  if (n == 1) return;
  const float pole = static_cast<float>(std::sqrt(3.0) - 2.0);
  const auto row = [&](int64_t i) { return c + i * inner; };
  first.assign(inner, 0.0f);
  // The sum over the mirrored signal, to single precision.
  const int64_t period = 2 * n - 2;
  float power = 1;
  for (int64_t i = 0; i < 16; ++i) {
    const int64_t j = i % period;
    const float* from = row(j < n ? j : period - j);
    for (int64_t k = 0; k < inner; ++k) first[k] += power * from[k];
    power *= pole;
  }
  const float gain = (1 - pole) * (1 - 1 / pole);
  std::copy(first.begin(), first.end(), row(0));
  for (int64_t i = 1; i < n; ++i) {
    float* now = row(i);
    const float* before = row(i - 1);
    for (int64_t k = 0; k < inner; ++k) now[k] += pole * before[k];
  }
  float* last = row(n - 1);
  const float* before = row(n - 2);
  const float end = pole / (pole * pole - 1);
  for (int64_t k = 0; k < inner; ++k) last[k] = end * (last[k] + pole * before[k]);
  for (int64_t i = n - 2; i >= 0; --i) {
    float* now = row(i);
    const float* after = row(i + 1);
    for (int64_t k = 0; k < inner; ++k) now[k] = pole * (after[k] - now[k]);
  }
  for (int64_t k = 0; k < n * inner; ++k) c[k] *= gain;
}

void prefilter_all(std::vector<float>& c, const Shape3& s) {
  std::vector<float> first;
  prefilter(c.data(), s[0], s[1] * s[2], first);
  for (int64_t i = 0; i < s[0]; ++i) prefilter(c.data() + i * s[1] * s[2], s[1], s[2], first);
  // Along the last axis through a transposed block, so that the rows are filtered side by side.
  constexpr int64_t kBlock = 16;
  std::vector<float> block(kBlock * s[2]);
  const int64_t rows = s[0] * s[1];
  for (int64_t r = 0; r < rows; r += kBlock) {
    const int64_t count = std::min(kBlock, rows - r);
    for (int64_t b = 0; b < count; ++b)
      for (int64_t k = 0; k < s[2]; ++k) block[k * count + b] = c[(r + b) * s[2] + k];
    prefilter(block.data(), s[2], count, first);
    for (int64_t b = 0; b < count; ++b)
      for (int64_t k = 0; k < s[2]; ++k) c[(r + b) * s[2] + k] = block[k * count + b];
  }
}

void cubic_weights(float t, float w[4]) {
  const float u = 1 - t;
  w[0] = u * u * u / 6;
  w[1] = (4 - 3 * t * t * (2 - t)) / 6;
  w[2] = (4 - 3 * u * u * (2 - u)) / 6;
  w[3] = t * t * t / 6;
}

int64_t mirrored(int64_t i, int64_t n) {
  if (n == 1) return 0;
  const int64_t period = 2 * n - 2;
  i = ((i % period) + period) % period;
  return i < n ? i : period - i;
}

}  // namespace

void sample_cubic(const FloatVolume& in, const double m[12], const uint8_t* mask,
                  const Shape3& out_shape, float* out) {
  const auto point = [&](int64_t i, int64_t j, int64_t k, double p[3]) {
    for (int a = 0; a < 3; ++a)
      p[a] = m[4 * a] * static_cast<double>(i) + m[4 * a + 1] * static_cast<double>(j) +
             m[4 * a + 2] * static_cast<double>(k) + m[4 * a + 3];
  };
  // The part of the output that is asked for, and from it the part of the scan.
  Shape3 low = out_shape, high{-1, -1, -1};
  int64_t at = 0;
  for (int64_t i = 0; i < out_shape[0]; ++i)
    for (int64_t j = 0; j < out_shape[1]; ++j)
      for (int64_t k = 0; k < out_shape[2]; ++k, ++at)
        if (!mask || mask[at]) {
          const int64_t here[3] = {i, j, k};
          for (int a = 0; a < 3; ++a) {
            low[a] = std::min(low[a], here[a]);
            high[a] = std::max(high[a], here[a]);
          }
        }
  std::fill(out, out + size_of(out_shape), 0.0f);
  if (high[0] < 0) return;
  Shape3 begin, size;
  double least[3] = {1e300, 1e300, 1e300}, most[3] = {-1e300, -1e300, -1e300};
  for (int corner = 0; corner < 8; ++corner) {
    double p[3];
    point(corner & 1 ? high[0] : low[0], corner & 2 ? high[1] : low[1],
          corner & 4 ? high[2] : low[2], p);
    for (int a = 0; a < 3; ++a) {
      least[a] = std::min(least[a], p[a]);
      most[a] = std::max(most[a], p[a]);
    }
  }
  // Twelve voxels more: what lies farther changes a coefficient by less than a part in 10^6.
  constexpr double kMargin = 14;
  for (int a = 0; a < 3; ++a) {
    const double n = static_cast<double>(in.shape[a]);
    begin[a] = static_cast<int64_t>(std::clamp(std::floor(least[a]) - kMargin, 0.0, n - 1));
    size[a] =
        static_cast<int64_t>(std::clamp(std::ceil(most[a]) + kMargin, 0.0, n - 1)) - begin[a] + 1;
  }
  std::vector<float> c(size_of(size));
  for (int64_t i = 0; i < size[0]; ++i)
    for (int64_t j = 0; j < size[1]; ++j) {
      const float* from =
          in.voxels + ((begin[0] + i) * in.shape[1] + begin[1] + j) * in.shape[2] + begin[2];
      std::copy(from, from + size[2], c.data() + (i * size[1] + j) * size[2]);
    }
  prefilter_all(c, size);
  for (int64_t i = low[0]; i <= high[0]; ++i)
    for (int64_t j = low[1]; j <= high[1]; ++j)
      for (int64_t k = low[2]; k <= high[2]; ++k) {
        const int64_t to = (i * out_shape[1] + j) * out_shape[2] + k;
        if (mask && !mask[to]) continue;
        double p[3];
        point(i, j, k, p);
        if (!inside(p, in.shape)) continue;
        int64_t first[3];
        float w[3][4];
        bool whole = true;
        for (int a = 0; a < 3; ++a) {
          const double q = p[a] - static_cast<double>(begin[a]);
          const double f = std::floor(q);
          first[a] = static_cast<int64_t>(f) - 1;
          cubic_weights(static_cast<float>(q - f), w[a]);
          whole &= first[a] >= 0 && first[a] + 3 < size[a];
        }
        float sum[4] = {0, 0, 0, 0};
        for (int a = 0; a < 4; ++a)
          for (int b = 0; b < 4; ++b) {
            const float both = w[0][a] * w[1][b];
            if (whole) {
              const float* r =
                  c.data() + ((first[0] + a) * size[1] + first[1] + b) * size[2] + first[2];
              for (int d = 0; d < 4; ++d) sum[d] += both * r[d];
            } else {
              const float* r = c.data() + (mirrored(first[0] + a, size[0]) * size[1] +
                                           mirrored(first[1] + b, size[1])) *
                                              size[2];
              for (int d = 0; d < 4; ++d) sum[d] += both * r[mirrored(first[2] + d, size[2])];
            }
          }
        out[to] = (sum[0] * w[2][0] + sum[1] * w[2][1]) + (sum[2] * w[2][2] + sum[3] * w[2][3]);
      }
}

// ---- local correlation

struct LocalCorrelation::Local {
  std::vector<float> value, mean, deviation;  // on the grid
};

LocalCorrelation::LocalCorrelation(const float* image, const uint8_t* compared, const Shape3& shape,
                                   double sigma)
    : shape_(shape), image_(size_of(shape), 0.0f), taps_(gaussian(sigma, 2.5)) {
  double low[3] = {1e9, 1e9, 1e9}, high[3] = {-1e9, -1e9, -1e9};
  int64_t at = 0;
  for (int64_t i = 0; i < shape[0]; ++i)
    for (int64_t j = 0; j < shape[1]; ++j)
      for (int64_t k = 0; k < shape[2]; ++k, ++at) {
        if (!compared[at]) continue;
        image_[at] = image[at];
        compared_.push_back(at);
        const double here[3] = {double(i), double(j), double(k)};
        index_.push_back({float(i), float(j), float(k)});
        for (int a = 0; a < 3; ++a) {
          low[a] = std::min(low[a], here[a]);
          high[a] = std::max(high[a], here[a]);
        }
      }
  for (int a = 0; a < 3; ++a) {
    centre[a] = 0.5 * (low[a] + high[a]);
    radius = std::max(radius, std::max(1.0, 0.5 * (high[a] - low[a])));
  }
}

void LocalCorrelation::window(const std::vector<float>& in, std::vector<float>& out,
                              std::vector<float>& scratch) const {
  filter(in.data(), shape_, {taps_, taps_, taps_}, out.data(), scratch.data());
}

LocalCorrelation::Local LocalCorrelation::local(const std::vector<float>& values,
                                                const std::vector<float>& inside,
                                                const std::vector<float>& weight,
                                                std::vector<float>& scratch) const {
  const size_t n = values.size();
  std::vector<float> product(n), square(n);
  Local found{std::vector<float>(n, 0.0f), std::vector<float>(n), std::vector<float>(n, 1.0f)};
  double sum = 0, count = 0;
  for (size_t v = 0; v < n; ++v) {
    product[v] = values[v] * inside[v];
    sum += std::abs(product[v]);
    count += inside[v];
  }
  const float empty = kEmpty * static_cast<float>(sum / count);
  window(product, found.mean, scratch);
  for (size_t v = 0; v < n; ++v) product[v] *= values[v];
  window(product, square, scratch);
  for (const int64_t v : compared_) {
    if (inside[v] == 0) continue;
    const float mu = found.mean[v] /= weight[v];
    const float variance = std::max(0.0f, square[v] / weight[v] - mu * mu);
    const float least = kFloor * mu;
    const float deviation = std::sqrt(variance + least * least);
    // Where there is nothing, slopes from beyond the window would be divided by nothing.
    found.deviation[v] = deviation > empty ? deviation : 1e20f;
    found.value[v] = (values[v] - mu) / found.deviation[v];
  }
  return found;
}

Equations LocalCorrelation::at(const FloatVolume& scan, const double m[12], double least,
                               bool derive) const {
  const size_t n = image_.size();
  Equations found;
  std::vector<float> in(n, 0.0f), value(n, 0.0f), weight(n), scratch(n);
  std::vector<float> slopes[3];
  if (derive)
    for (auto& one : slopes) one.assign(n, 0.0f);
  int64_t count = 0;
  for (size_t c = 0; c < compared_.size(); ++c) {
    const auto& i = index_[c];
    double p[3];
    for (int a = 0; a < 3; ++a)
      p[a] = m[4 * a] * i[0] + m[4 * a + 1] * i[1] + m[4 * a + 2] * i[2] + m[4 * a + 3];
    if (!inside(p, scan.shape)) continue;
    const int64_t v = compared_[c];
    ++count;
    in[v] = 1;
    value[v] = linear(scan, p[0], p[1], p[2]);
    if (!derive) continue;
    slopes[0][v] = 0.5f * (linear(scan, p[0] + 1, p[1], p[2]) - linear(scan, p[0] - 1, p[1], p[2]));
    slopes[1][v] = 0.5f * (linear(scan, p[0], p[1] + 1, p[2]) - linear(scan, p[0], p[1] - 1, p[2]));
    slopes[2][v] = 0.5f * (linear(scan, p[0], p[1], p[2] + 1) - linear(scan, p[0], p[1], p[2] - 1));
  }
  found.inside =
      static_cast<double>(count) / static_cast<double>(std::max<size_t>(1, compared_.size()));
  if (count == 0 || found.inside < least) return found;

  window(in, weight, scratch);
  const Local here = local(value, in, weight, scratch);
  const Local there = local(image_, in, weight, scratch);
  double product = 0;
  std::vector<float> sizes;
  sizes.reserve(count);
  for (const int64_t v : compared_) {
    if (in[v] == 0) continue;
    product += static_cast<double>(here.value[v]) * there.value[v];
    sizes.push_back(std::abs(here.value[v] - there.value[v]));
  }
  found.score = product / static_cast<double>(count);
  std::nth_element(sizes.begin(), sizes.begin() + sizes.size() / 2, sizes.end());
  found.scale = kToSigma * sizes[sizes.size() / 2] + 1e-9;
  if (!derive) return found;

  // A shift changes the local value v by (slope - its mean - v * the deviation's slope) /
  // deviation; that of the deviation is (covariance of value and slope + floor^2 * mean * slope's
  // mean) / it.
  std::vector<float> mean(n), both(n), covariance(n);
  for (auto& slope : slopes) {
    window(slope, mean, scratch);
    for (size_t v = 0; v < n; ++v) both[v] = slope[v] * value[v];
    window(both, covariance, scratch);
    for (const int64_t v : compared_) {
      if (in[v] == 0) continue;
      const float m = mean[v] / weight[v], mu = here.mean[v], s = here.deviation[v];
      const float spread = covariance[v] / weight[v] - mu * m + kFloor * kFloor * mu * m;
      slope[v] = (slope[v] - m - here.value[v] * spread / s) / s;
    }
  }
  double weights = 0, squares = 0;
  double shifts[6][10] = {};  // of pairs of axes, pairs of (1, x, y, z)
  double pull[3][4] = {};
  for (size_t c = 0; c < compared_.size(); ++c) {
    const int64_t v = compared_[c];
    if (in[v] == 0) continue;
    const double r = static_cast<double>(here.value[v]) - there.value[v];
    const double q = r / (kRobust * found.scale);
    const double w = 1 / ((1 + q * q) * (1 + q * q));
    weights += w;
    squares += w * r * r;
    double b[4] = {1, 0, 0, 0};
    for (int a = 0; a < 3; ++a) b[a + 1] = (index_[c][a] - centre[a]) / radius;
    const double j[3] = {slopes[0][v], slopes[1][v], slopes[2][v]};
    double bb[10];
    for (int x = 0, o = 0; x < 4; ++x)
      for (int y = x; y < 4; ++y) bb[o++] = b[x] * b[y];
    for (int x = 0, o = 0; x < 3; ++x)
      for (int y = x; y < 3; ++y, ++o) {
        const double jj = w * j[x] * j[y];
        for (int k = 0; k < 10; ++k) shifts[o][k] += jj * bb[k];
      }
    for (int x = 0; x < 3; ++x)
      for (int k = 0; k < 4; ++k) pull[x][k] += w * r * j[x] * b[k];
  }
  found.cost = squares / weights;
  for (int x = 0, o = 0; x < 3; ++x)
    for (int y = x; y < 3; ++y, ++o)
      for (int k = 0, e = 0; k < 4; ++k)
        for (int l = k; l < 4; ++l, ++e)
          for (const auto& [p, q] : {std::array<int, 2>{k, l}, std::array<int, 2>{l, k}}) {
            found.normal[(4 * x + p) * 12 + 4 * y + q] = shifts[o][e];
            found.normal[(4 * y + q) * 12 + 4 * x + p] = shifts[o][e];
          }
  for (int x = 0; x < 3; ++x)
    for (int k = 0; k < 4; ++k) found.gradient[4 * x + k] = pull[x][k];
  return found;
}

}  // namespace hfrt
