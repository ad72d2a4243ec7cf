#include "support.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace hfrt {
namespace {

constexpr int64_t kFacePoints = 32,
                  kInnerPoints = 32;  // at most so many indices of an axis are looked at
constexpr double kWindow = 1.0 / 128, kLeastShare = 0.35;
constexpr double kPart = 0.1, kNoise = 4.0, kMostNoise = 0.25, kOneSided = 0.1;

// Every k-th index, counted from the middle: the same voxels from either end.
std::vector<int64_t> spread_over(int64_t n, int64_t points) {
  const int64_t step = (n + points - 1) / points;
  std::vector<int64_t> found;
  for (int64_t i = 0; i < n; ++i)
    if (std::abs(2 * i - (n - 1)) / 2 % step == 0) found.push_back(i);
  return found;
}

// Returns how many were NaN or infinite; those are not taken.
template <class T>
size_t take(const Volume& v, const T* voxels, const std::vector<int64_t> (&index)[3],
            std::vector<double>& into) {
  size_t others = 0;
  for (int64_t i : index[0])
    for (int64_t j : index[1])
      for (int64_t k : index[2]) {
        const double value =
            static_cast<double>(voxels[i * v.strides[0] + j * v.strides[1] + k * v.strides[2]]);
        if (std::isfinite(value))
          into.push_back(value);
        else
          ++others;
      }
  return others;
}

// Sorted. A border that is mostly NaN counts as 0: programs that mask a scan write either.
template <class T>
std::vector<double> border_values(const Volume& v, const T* voxels) {
  std::vector<double> found;
  size_t others = 0;
  for (int a = 0; a < 3; ++a) {
    std::vector<int64_t> index[3];
    for (int b = 0; b < 3; ++b) index[b] = spread_over(v.shape[b], kFacePoints);
    index[a] = {0, v.shape[a] - 1};
    others += take(v, voxels, index, found);
  }
  if (others > found.size()) return {0.0};
  std::sort(found.begin(), found.end());
  return found;
}

template <class T>
std::vector<double> inner_values(const Volume& v, const T* voxels) {
  std::vector<int64_t> index[3];
  for (int a = 0; a < 3; ++a) index[a] = spread_over(v.shape[a], kInnerPoints);
  std::vector<double> found;
  take(v, voxels, index, found);
  return found;
}

// The value below which a part of them lies; 0 of nothing. Changes their order.
double quantile(std::vector<double>& values, double part) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[at];
}

struct Mode {
  double value = 0, deviation = 0, share = 0;
};

// The centre of the fullest window of `width`, and of nine such windows around it the spread, and
// their share of all values.
Mode mode_of(const std::vector<double>& sorted, double width) {
  Mode found;
  size_t low = 0, best_low = 0, best = 0;
  for (size_t high = 0; high < sorted.size(); ++high) {
    while (sorted[high] - sorted[low] > width) ++low;
    if (high + 1 - low > best) {
      best = high + 1 - low;
      best_low = low;
    }
  }
  if (!best) return found;
  found.value = sorted[best_low + best / 2];
  // One value that most of the window has is the background itself.
  size_t run = 0, longest = 0;
  for (size_t i = best_low; i < best_low + best; ++i) {
    run = i > best_low && sorted[i] == sorted[i - 1] ? run + 1 : 1;
    if (run > longest) {
      longest = run;
      if (2 * run > best) found.value = sorted[i];
    }
  }
  std::vector<double> away;
  for (double x : sorted)
    if (std::abs(x - found.value) <= 4.5 * width) away.push_back(std::abs(x - found.value));
  found.share = static_cast<double>(away.size()) / static_cast<double>(sorted.size());
  found.deviation = 1.4826 * quantile(away, 0.5);
  return found;
}

// Where the background lies; false if the border has no such value.
template <class T>
bool measure(const Volume& v, const T* voxels, Support& s) {
  const std::vector<double> border = border_values(v, voxels);
  std::vector<double> inner = inner_values(v, voxels);
  if (border.empty() || inner.empty()) return false;
  const double range = quantile(inner, 0.999) - quantile(inner, 0.001);
  const Mode mode = mode_of(border, kWindow * range);
  if (mode.share < kLeastShare) return false;
  s.background = mode.value;

  double above = 0, below = 0;
  for (double& x : inner) {
    x -= s.background;
    if (std::abs(x) > kWindow * range) (x > 0 ? above : below) += std::abs(x);
  }
  s.side = below <= kOneSided * above ? 1 : above <= kOneSided * below ? -1 : 0;
  for (double& x : inner) x = s.side ? s.side * x : std::abs(x);
  const double large = kPart * quantile(inner, 0.999);
  inner.erase(std::remove_if(inner.begin(), inner.end(), [&](double x) { return x <= large; }),
              inner.end());
  s.level = quantile(inner, 0.5);
  const double noise = kNoise * mode.deviation;
  if (s.side)
    s.threshold = std::max(kPart * s.level, std::min(noise, kMostNoise * s.level));
  else
    s.threshold = std::max(noise, std::is_integral_v<T> ? 0.5 : range / (1 << 16));
  return s.level > 0;
}

// The grid's axes from the densest to the sparsest, and its rows in words.
struct Rows {
  int axis[3] = {0, 1, 2};
  int64_t n[3], stride[3], words;

  explicit Rows(const Volume& v) {
    std::sort(axis, axis + 3,
              [&](int a, int b) { return std::abs(v.strides[a]) < std::abs(v.strides[b]); });
    for (int a = 0; a < 3; ++a) {
      n[a] = v.shape[axis[a]];
      stride[a] = v.strides[axis[a]];
    }
    words = (n[0] + 63) / 64;
  }
  Bits empty() const {
    Bits bits;
    bits.words.assign(words * n[1] * n[2], 0);
    const int64_t step[3] = {1, 64 * words, 64 * words * n[1]};
    for (int a = 0; a < 3; ++a) bits.strides[axis[a]] = step[a];
    return bits;
  }
};

// Bytes of 0 or 1 to bits.
uint64_t pack(const uint8_t* bytes) {
  uint64_t word = 0;
  for (int b = 0; b < 8; ++b) {
    uint64_t eight;  // little-endian
    std::memcpy(&eight, bytes + 8 * b, 8);
    word |= (eight * 0x0102040810204080ull >> 56) << (8 * b);
  }
  return word;
}

// Between two numbers of the stored type, both included, or NaN. With no such number: none.
template <class T>
struct Between {
  T low, high;

  Between(double from, double to) {
    using Limits = std::numeric_limits<T>;
    if constexpr (std::is_integral_v<T>) {
      from = std::ceil(from);
      to = std::floor(to);
      low = from <= static_cast<double>(Limits::lowest()) ? Limits::lowest()
            : from >= static_cast<double>(Limits::max())  ? Limits::max()
                                                          : static_cast<T>(from);
      high = to >= static_cast<double>(Limits::max())      ? Limits::max()
             : to <= static_cast<double>(Limits::lowest()) ? Limits::lowest()
                                                           : static_cast<T>(to);
    } else {
      low = static_cast<T>(std::max(from, static_cast<double>(Limits::lowest())));
      high = static_cast<T>(std::min(to, static_cast<double>(Limits::max())));
    }
  }
  uint8_t operator()(T v) const { return !((v < low) | (v > high)); }
};

template <class T>
void find_candidates(const Rows& rows, const T* voxels, const Between<T>& like, Bits& bits) {
  uint64_t* word = bits.words.data();
  for (int64_t k = 0; k < rows.n[2]; ++k)
    for (int64_t j = 0; j < rows.n[1]; ++j) {
      const T* row = voxels + j * rows.stride[1] + k * rows.stride[2];
      for (int64_t i = 0; i < rows.n[0]; i += 64) {
        alignas(64) uint8_t found[64] = {};
        const int64_t count = std::min<int64_t>(64, rows.n[0] - i);
        if (rows.stride[0] == 1 && count == 64) {
          for (int b = 0; b < 64; ++b) found[b] = like(row[i + b]);
        } else {
          for (int64_t b = 0; b < count; ++b) found[b] = like(row[(i + b) * rows.stride[0]]);
        }
        *word++ = pack(found);
      }
    }
}

// Spreads `reached` along the ones of a row's `words`, in both directions.
void spread_along(const uint64_t* candidates, uint64_t* reached, int64_t words) {
  uint64_t carry = 0;
  for (int64_t w = 0; w < words; ++w) {
    uint64_t pass = candidates[w];
    reached[w] |= carry & pass;
    if (reached[w] != pass)
      for (int step = 1; step < 64; step *= 2) {
        reached[w] |= pass & (reached[w] << step);
        pass &= pass << step;
      }
    carry = reached[w] >> 63;
  }
  carry = 0;
  for (int64_t w = words - 1; w >= 0; --w) {
    uint64_t pass = candidates[w];
    reached[w] |= (carry << 63) & pass;
    if (reached[w] != pass)
      for (int step = 1; step < 64; step *= 2) {
        reached[w] |= pass & (reached[w] >> step);
        pass &= pass >> step;
      }
    carry = reached[w] & 1;
  }
}

// What of the candidates is connected with the border.
Bits flood(const Rows& rows, const Bits& candidates) {
  Bits found = rows.empty();
  const int64_t words = rows.words, ny = rows.n[1], nz = rows.n[2];
  const int64_t last = rows.n[0] - 1;
  bool changed = true;
  for (bool up = true, first = true; changed; up = !up) {
    changed = false;
    for (int64_t step = 0; step < ny * nz; ++step) {
      const int64_t row = up ? step : ny * nz - 1 - step;
      const int64_t y = row % ny, z = row / ny;
      const uint64_t* c = candidates.words.data() + row * words;
      uint64_t* r = found.words.data() + row * words;
      bool grown = false;
      for (int64_t w = 0; w < words; ++w) {
        uint64_t seed = 0;
        if (y > 0) seed |= r[w - words];
        if (y + 1 < ny) seed |= r[w + words];
        if (z > 0) seed |= r[w - words * ny];
        if (z + 1 < nz) seed |= r[w + words * ny];
        if (first) {
          if (y == 0 || y + 1 == ny || z == 0 || z + 1 == nz) seed = ~uint64_t{0};
          if (w == 0) seed |= 1;
          if (w == words - 1) seed |= uint64_t{1} << (last & 63);
        }
        const uint64_t more = seed & c[w] & ~r[w];
        r[w] |= more;
        grown |= more != 0;
      }
      if (grown) spread_along(c, r, words);
      changed |= grown;
    }
    first = false;
  }
  return found;
}

// The voxels beside those of `bits`, in the 6 directions.
Bits beside(const Rows& rows, const Bits& bits) {
  Bits found = rows.empty();
  const int64_t words = rows.words, ny = rows.n[1], nz = rows.n[2];
  for (int64_t row = 0; row < ny * nz; ++row) {
    const int64_t y = row % ny, z = row / ny;
    const uint64_t* b = bits.words.data() + row * words;
    for (int64_t w = 0; w < words; ++w) {
      uint64_t next = b[w] << 1 | b[w] >> 1;
      if (w > 0) next |= b[w - 1] >> 63;
      if (w + 1 < words) next |= b[w + 1] << 63;
      if (y > 0) next |= b[w - words];
      if (y + 1 < ny) next |= b[w + words];
      if (z > 0) next |= b[w - words * ny];
      if (z + 1 < nz) next |= b[w + words * ny];
      found.words[row * words + w] = next;
    }
  }
  return found;
}

// Takes what has no neighbour of its kind for background: hot voxels, noise.
void drop_single_voxels(const Rows& rows, Bits& outside) {
  Bits inside = rows.empty();
  const uint64_t end = rows.n[0] % 64 ? (uint64_t{1} << (rows.n[0] % 64)) - 1 : ~uint64_t{0};
  for (size_t w = 0; w < inside.words.size(); ++w)
    inside.words[w] = ~outside.words[w] & ((w + 1) % rows.words ? ~uint64_t{0} : end);
  const Bits near = beside(rows, inside);
  for (size_t w = 0; w < outside.words.size(); ++w)
    outside.words[w] |= inside.words[w] & ~near.words[w];
}

// Whether all 8 voxels from one of index (i, j, k) to (i + 1, j + 1, k + 1) have their bit; indices
// beyond the end count as the last one.
Bits cells(const Rows& rows, Bits bits) {
  const int64_t words = rows.words, ny = rows.n[1], nz = rows.n[2];
  const int64_t last = rows.n[0] - 1;
  for (int64_t row = 0; row < ny * nz; ++row) {
    const int64_t y = row % ny, z = row / ny;
    uint64_t* b = bits.words.data() + row * words;
    for (int64_t w = 0; w < words; ++w) {
      if (y + 1 < ny) b[w] &= b[w + words];
      if (z + 1 < nz) {
        uint64_t next = b[w + words * ny];
        if (y + 1 < ny) next &= b[w + words * ny + words];
        b[w] &= next;
      }
    }
    for (int64_t w = 0; w < words; ++w) {
      uint64_t next = b[w] >> 1;
      if (w + 1 < words) next |= b[w + 1] << 63;
      if (w == last >> 6) next |= uint64_t{1} << (last & 63);
      b[w] &= next;
    }
  }
  return bits;
}

}  // namespace

void Support::write_mask(uint8_t* out) const {
  const int64_t* step = outside.strides;
  for (int64_t i = 0; i < shape[0]; ++i)
    for (int64_t j = 0; j < shape[1]; ++j)
      for (int64_t k = 0; k < shape[2]; ++k)
        *out++ = !(found && outside[i * step[0] + j * step[1] + k * step[2]]);
}

Support find_support(const Volume& volume) {
  return with_type(volume, [&](const auto* voxels) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(voxels)>>;
    Support s;
    std::copy(volume.shape, volume.shape + 3, s.shape);
    s.found = measure(volume, voxels, s);
    if (!s.found) return s;
    const Rows rows(volume);
    constexpr double most = std::numeric_limits<double>::max();
    const Between<T> like(s.side > 0 ? -most : s.background - s.threshold,
                          s.side < 0 ? most : s.background + s.threshold);
    Bits candidates = rows.empty();
    find_candidates(rows, voxels, like, candidates);
    s.outside = flood(rows, candidates);
    drop_single_voxels(rows, s.outside);
    s.rim = beside(rows, s.outside);
    for (size_t w = 0; w < s.rim.words.size(); ++w) s.rim.words[w] &= ~s.outside.words[w];
    s.outer = cells(rows, s.outside);
    Bits inner = s.outside;
    for (size_t w = 0; w < inner.words.size(); ++w)
      inner.words[w] = ~(inner.words[w] | s.rim.words[w]);
    s.inner = cells(rows, std::move(inner));
    return s;
  });
}

}  // namespace hfrt
