// Volumes: pooling, normalisation, operations number by number, and moving numbers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "internal.hpp"

namespace hfrt {

int Engine::pool(int in, const Window& window, bool average, bool count_include_pad, bool ceil) {
  const Extent e = extent(in);
  check(window);
  for (int i = 0; i < 3; ++i)
    if (window.padding[i] * 2 > window.kernel[i]) refuse("pooling pads at most half its kernel");
  const Extent o{e.c, window_size(e.d, window, 0, ceil), window_size(e.h, window, 1, ceil),
                 window_size(e.w, window, 2, ceil)};
  const int out = add(o, stored(in));
  step(average ? StepKind::average_pool : StepKind::max_pool, {in}, {out}, [=] {
    const PoolArgs a{at(in), e, at(out), o, window, average, count_include_pad};
    parallel(blocks_of(o.c) * o.d * o.h, 4,
             [&](int64_t b, int64_t n, int) { kernels(in).pool(a, b, n); });
  });
  return out;
}

int Engine::adaptive_pool(int in, const int64_t size[3], bool average) {
  const Extent e = extent(in);
  const int64_t from[3] = {e.d, e.h, e.w};
  Window w;
  for (int i = 0; i < 3; ++i) {
    if (size[i] < 1 || from[i] % size[i])
      refuse("adaptive pooling of " + text(e) + " to sizes that do not divide it");
    w.kernel[i] = w.stride[i] = from[i] / size[i];
  }
  return pool(in, w, average, true, false);
}

int Engine::global_pool(int in, const int64_t stride[3], bool average) {
  const Extent e = extent(in);
  const int64_t size[3] = {e.d, e.h, e.w};
  int64_t count = 1;
  for (int i = 0; i < 3; ++i) {
    if (stride[i] < 1) refuse("a stride must be 1 or more");
    count *= ceil_div(size[i], stride[i]);
  }
  const std::vector<int64_t> steps(stride, stride + 3);
  const auto part = [=](double x) { return static_cast<float>(x / static_cast<double>(count)); };
  const auto whole = [](double x) { return static_cast<float>(x); };
  if (average) return over_voxels(in, steps, Sum::sum, StepKind::global_average, part);
  return over_voxels(in, steps, Sum::maximum, StepKind::global_maximum, whole);
}

int Engine::global_norm(int in) {
  const auto root = [](double x) { return static_cast<float>(std::sqrt(x)); };
  return over_voxels(in, {1, 1, 1}, Sum::squares, StepKind::global_norm, root);
}

// A number for each channel, of sums or maxima over the voxels.
int Engine::over_voxels(int in, const std::vector<int64_t>& stride, Sum sum, StepKind kind,
                        const std::function<float(double)>& last) {
  const Extent e = extent(in);
  const int64_t planes = ceil_div(e.d, stride[0]), blocks = blocks_of(e.c);
  const int out = add({e.c, 1, 1, 1}, false);
  float* parts = reserve(product({blocks, planes, kBlock}));
  step(kind, {in}, {out}, [=] {
    parallel(blocks * planes, 1, [&](int64_t b, int64_t n, int) {
      kernels(in).reduce(at(in), e, stride.data(), parts, sum, b, n);
    });
    float* y = at(out);
    for (int64_t i = 0; i < filled(e.c); ++i) {
      const float* from = parts + i / kBlock * planes * kBlock + i % kBlock;
      double found = from[0];
      for (int64_t p = 1; p < planes; ++p) {
        const double x = from[p * kBlock];
        if (sum == Sum::maximum)
          found = x > found || x != x ? x : found;
        else
          found += x;
      }
      y[i] = i < e.c ? last(found) : 0.0f;
    }
  });
  return out;
}

// The grain of operations number by number: a task moves about 64 KB.
constexpr int64_t kVectors = 1024;

// Runs of `kRun` voxels of each channel of a plain volume.
static int64_t runs_of(const Extent& e) { return e.c * ceil_div(e.voxels(), kRun); }

void Engine::map_channels(int out, const AffineArgs& a) {
  const Extent& e = extent(out);
  if (value(out).planar)
    parallel(runs_of(e), 1, [&](int64_t b, int64_t n, int) { kernels_.affine_plain(a, b, n); });
  else
    parallel(e.numbers() / kBlock, kVectors,
             [&](int64_t b, int64_t n, int) { kernels(out).affine(a, b, n); });
}

int Engine::affine(int in, Array scale, Array shift, const ActivationSpec& spec) {
  const Extent e = extent(in);
  const float* s = scale.data ? keep(scale, filled(e.c), "the scale", e.c) : nullptr;
  const float* t = scale.data ? keep(shift, filled(e.c), "the shift", e.c) : nullptr;
  const Activation act = keep(spec, e.c);
  const int out = add(e, stored(in));
  step(StepKind::affine, {in}, {out},
       [=] { map_channels(out, {at(in), at(out), e.c, e.voxels(), nullptr, s, t, act}); });
  steps_.back().plain = true;
  return out;
}

// How `e` is spread over `whole`; refuses what cannot be.
static Spread spread_over(const Extent& e, const Extent& whole, bool* fits) {
  if (same(e, whole)) return Spread::none;
  const bool channels = e.c == whole.c, voxels = same_voxels(e, whole);
  *fits = *fits && (channels || e.c == 1) && (voxels || e.voxels() == 1);
  if (e.c == 1 && e.voxels() == 1) return Spread::everywhere;
  return e.voxels() == 1 && channels ? Spread::channels : Spread::voxels;
}

int Engine::binary(int a, int b, Pair pair, const ActivationSpec& spec) {
  const Extent e = extent(a), f = extent(b);
  const Extent o{std::max(e.c, f.c), std::max(e.d, f.d), std::max(e.h, f.h), std::max(e.w, f.w)};
  bool fits = true;
  const Spread first = spread_over(e, o, &fits), second = spread_over(f, o, &fits);
  if (!fits) refuse("an operation of " + text(e) + " and " + text(f));
  const Activation act = keep(spec, o.c);
  const bool volume = o.voxels() > 1 ? true : stored(a) || stored(b);
  const auto like = [&](int i, Spread spread) {
    return as(i, volume && (spread == Spread::none || spread == Spread::voxels));
  };
  a = like(a, first), b = like(b, second);
  const int out = add(o, volume);
  static const StepKind kinds[] = {StepKind::add,    StepKind::subtract, StepKind::multiply,
                                   StepKind::divide, StepKind::maximum,  StepKind::minimum};
  step(kinds[static_cast<int>(pair)], {a, b}, {out}, [=] {
    const PairArgs args{pair, {at(a), first}, {at(b), second}, at(out), o.c, o.voxels(), act};
    if (value(out).planar)
      parallel(runs_of(o), 1,
               [&](int64_t begin, int64_t end, int) { kernels_.binary_plain(args, begin, end); });
    else
      parallel(o.numbers() / kBlock, kVectors,
               [&](int64_t begin, int64_t end, int) { kernels(out).binary(args, begin, end); });
  });
  steps_.back().plain = true;
  return out;
}

// --- normalisation -----------------------------------------------------------------------------

// From the moments of runs to mean and gain of every channel, in double; see `moments`.
// `plain`: the runs are [C][count][2], otherwise [blocks][count][2][16].
static void finish_moments(const float* runs, bool plain, int64_t channels, int64_t voxels,
                           int64_t groups, const float* scale, double eps, float* means,
                           float* gain) {
  const int64_t count = ceil_div(voxels, kRun), each = channels / groups;
  const auto length = [&](int64_t r) {
    return static_cast<double>(std::min(kRun, voxels - r * kRun));
  };
  const double total = static_cast<double>(voxels) * static_cast<double>(each);
  for (int64_t g = 0; g < groups; ++g) {
    const auto over_group = [&](const auto& f) {
      double sum = 0;
      for (int64_t c = g * each; c < (g + 1) * each; ++c)
        for (int64_t r = 0; r < count; ++r) {
          const float* run = plain ? runs + (c * count + r) * 2
                                   : runs + ((c / kBlock * count + r) * 2) * kBlock + c % kBlock;
          sum += f(run[0], run[plain ? 1 : kBlock], length(r));
        }
      return sum;
    };
    const double mean = over_group([](double m, double, double n) { return m * n; }) / total;
    const double squares = over_group([mean](double m, double deviations, double n) {
      return deviations + n * (m - mean) * (m - mean);
    });
    const double part = 1 / std::sqrt(squares / total + eps);
    for (int64_t c = g * each; c < (g + 1) * each; ++c) {
      means[c] = static_cast<float>(mean);
      gain[c] = static_cast<float>(scale[c] * part);
    }
  }
}

int Engine::group_norm(int in, int64_t groups, Array scale, Array shift, float eps,
                       const ActivationSpec& spec) {
  const Extent e = extent(in);
  if (groups < 1 || e.c % groups) refuse(std::to_string(groups) + " groups of " + text(e));
  const float* s = keep(scale, filled(e.c), "the scale", e.c);
  const float* t = keep(shift, filled(e.c), "the shift", e.c);
  const Activation act = keep(spec, e.c);
  const int64_t tasks = blocks_of(e.c) * ceil_div(e.voxels(), kRun);
  float* runs = reserve(product({tasks, 2, kBlock}));
  float* gain = reserve(filled(e.c));
  float* mean = reserve(filled(e.c));
  const int out = add(e, stored(in));
  step(StepKind::group_norm, {in}, {out}, [=] {
    const bool plain = value(in).planar;
    if (plain)
      parallel(runs_of(e), 1, [&](int64_t b, int64_t n, int) {
        kernels_.moments_plain(at(in), e.voxels(), runs, b, n);
      });
    else
      parallel(tasks, 1, [&](int64_t b, int64_t n, int) {
        kernels(in).moments(at(in), e.voxels(), runs, b, n);
      });
    finish_moments(runs, plain, e.c, e.voxels(), groups, s, static_cast<double>(eps), mean, gain);
    map_channels(out, {at(in), at(out), e.c, e.voxels(), mean, gain, t, act});
  });
  steps_.back().plain = true;
  return out;
}

int Engine::along_channels(int in, Along kind, int64_t channels, StepKind name, const float* scale,
                           const float* shift, float eps) {
  const Extent e = extent(in);
  const int out = add({channels, e.d, e.h, e.w}, stored(in));
  scratch(product({filled(e.c) + kBlock, kBlock}));
  step(name, {in}, {out}, [=] {
    const bool plain = value(out).planar;
    const ChannelArgs a{kind, at(in), e, at(out), channels, scale, shift, eps, plain};
    parallel(ceil_div(e.voxels(), kBlock), 16, [&](int64_t b, int64_t n, int t) {
      kernels(in).along_channels(a, b, n, scratch_of(t));
    });
  });
  return out;
}

int Engine::channel_norm(int in, Array scale, Array shift, float eps) {
  const int64_t c = extent(in).c;
  const float* s = keep(scale, filled(c), "the scale", c);
  const float* t = keep(shift, filled(c), "the shift", c);
  return along_channels(in, Along::norm, c, StepKind::channel_norm, s, t, eps);
}

int Engine::softmax(int in, bool log) {
  const Along kind = log ? Along::log_softmax : Along::softmax;
  return along_channels(in, kind, extent(in).c, StepKind::softmax, nullptr, nullptr, 0);
}

int Engine::reduce(int in, const std::string& kind) {
  static const std::pair<const char*, Along> kinds[] = {
      {"mean", Along::mean}, {"sum", Along::sum}, {"maximum", Along::maximum}, {"l2", Along::l2}};
  for (const auto& [name, along] : kinds)
    if (kind == name) return along_channels(in, along, 1, StepKind::reduce, nullptr, nullptr, 0);
  refuse("reduce by " + kind);
}

// --- other voxels ------------------------------------------------------------------------------

static Extent remapped(const Extent& e, const std::vector<int64_t> tables[3]) {
  return {e.c, static_cast<int64_t>(tables[0].size()), static_cast<int64_t>(tables[1].size()),
          static_cast<int64_t>(tables[2].size())};
}

static void check_tables(const Extent& e, const std::vector<int64_t> tables[3], int64_t least) {
  const int64_t size[3] = {e.d, e.h, e.w};
  for (int i = 0; i < 3; ++i)
    for (int64_t index : tables[i])
      if (index < least || index >= size[i])
        refuse("voxel " + std::to_string(index) + " of an axis of " + std::to_string(size[i]));
}

int Engine::remap(int in, const std::vector<int64_t> from[3], float fill) {
  const Extent e = extent(in), o = remapped(e, from);
  check_tables(e, from, -1);
  const int out = add(o, stored(in));
  const std::vector<int64_t> ds = from[0], hs = from[1], ws = from[2];
  // What does not come from the input: of a value's last block, lanes without a channel are 0.
  float* blank = reserve(kBlock);
  float* last = reserve(kBlock);
  for (int64_t i = 0; i < kBlock; ++i) {
    put(reinterpret_cast<char*>(blank), i, bytes(in), fill);
    const bool there = (blocks_of(e.c) - 1) * kBlock + i < e.c;
    put(reinterpret_cast<char*>(last), i, bytes(in), there ? fill : 0.0f);
  }
  const int64_t voxel = kBlock * bytes(in);
  step(StepKind::remap, {in}, {out}, [=] {
    parallel(blocks_of(e.c) * o.d * o.h, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / (o.d * o.h);
        const int64_t d = ds[static_cast<size_t>(task / o.h % o.d)];
        const int64_t h = hs[static_cast<size_t>(task % o.h)];
        const float* none = b + 1 == blocks_of(e.c) ? last : blank;
        char* to = memory(out) + task * o.w * voxel;
        const char* row = memory(in) + ((b * e.d + d) * e.h + h) * e.w * voxel;
        for (int64_t w = 0; w < o.w;) {
          const int64_t first = d < 0 || h < 0 ? -1 : ws[static_cast<size_t>(w)];
          int64_t n = 1;
          if (first < 0) {
            copy_bytes(to + w * voxel, reinterpret_cast<const char*>(none), voxel);
          } else {
            while (w + n < o.w && ws[static_cast<size_t>(w + n)] == first + n) ++n;
            copy_bytes(to + w * voxel, row + first * voxel, n * voxel);
          }
          w += n;
        }
      }
    });
  });
  return out;
}

int Engine::blend(int in, const std::vector<int64_t> low[3], const std::vector<int64_t> high[3],
                  const std::vector<float> part[3]) {
  const Extent e = extent(in), o = remapped(e, low);
  check_tables(e, low, 0);
  check_tables(e, high, 0);
  for (int i = 0; i < 3; ++i)
    if (high[i].size() != low[i].size() || part[i].size() != low[i].size())
      refuse("a resized axis needs as many neighbours and parts as voxels");
  struct Tables {
    std::vector<int64_t> low[3], high[3];
    std::vector<float> part[3];
  };
  const auto tables = std::make_shared<Tables>();
  for (int i = 0; i < 3; ++i)
    tables->low[i] = low[i], tables->high[i] = high[i], tables->part[i] = part[i];
  const int out = add(o, stored(in));
  scratch(product({e.w, kBlock}));
  step(StepKind::blend, {in}, {out}, [=] {
    BlendArgs a{at(in), e, at(out), o, {}, {}, {}};
    for (int i = 0; i < 3; ++i)
      a.low[i] = tables->low[i].data(), a.high[i] = tables->high[i].data(),
      a.part[i] = tables->part[i].data();
    const bool plain = value(out).planar;
    const auto kernel = plain ? kernels_.blend_plain : kernels(in).blend;
    parallel((plain ? e.c : blocks_of(e.c)) * o.d * o.h, 4,
             [&](int64_t b, int64_t n, int t) { kernel(a, b, n, scratch_of(t)); });
  });
  steps_.back().plain = true;
  return out;
}

// --- channels, shapes --------------------------------------------------------------------------

// `count` channels of a volume, from `from_channel` on, become those from `to_channel` of another.
static void copy_channels(const char* from, int64_t from_channel, char* to, int64_t to_channel,
                          int64_t count, int64_t voxels, int64_t bytes) {
  const auto place = [&](int64_t c) { return (c / kBlock * voxels * kBlock + c % kBlock) * bytes; };
  if (voxels == 1)
    return copy_bytes(to + place(to_channel), from + place(from_channel), count * bytes);
  for (int64_t j = 0; j < count; ++j) {
    const char* a = from + place(from_channel + j);
    char* b = to + place(to_channel + j);
    for (int64_t v = 0; v < voxels; ++v)
      copy_bytes(b + v * kBlock * bytes, a + v * kBlock * bytes, bytes);
  }
}

int Engine::concat(const std::vector<int>& values) {
  if (values.empty()) refuse("nothing to concatenate");
  Extent o = extent(values[0]);
  std::vector<int> in;
  for (int value : values) in.push_back(as(value, stored(values[0])));
  o.c = 0;
  for (int i : in) {
    const Extent& e = extent(i);
    if (e.d != o.d || e.h != o.h || e.w != o.w)
      refuse("concatenate " + text(extent(in[0])) + " and " + text(e));
    o.c += e.c;
  }
  const int out = add(o, stored(in[0]));
  step(StepKind::concat, in, {out}, [=] {
    const int64_t voxels = o.voxels(), width = bytes(out);
    int64_t c = 0;
    for (int i : in) {
      const int64_t n = extent(i).c;
      if (c % kBlock == 0) {
        char* to = memory(out) + c * voxels * width;
        if (to != memory(i))
          std::memmove(to, memory(i), static_cast<size_t>(filled(n) * voxels * width));
      } else {
        copy_channels(memory(i), 0, memory(out), c, n, voxels, width);
      }
      c += n;
    }
  });
  return out;
}

int Engine::slice(int in, int64_t start, int64_t stop) {
  const Extent e = extent(in);
  if (start < 0 || stop > e.c || start >= stop)
    refuse("channels " + std::to_string(start) + " to " + std::to_string(stop) + " of " + text(e));
  const int out = add({stop - start, e.d, e.h, e.w}, stored(in));
  step(StepKind::slice, {in}, {out}, [=] {
    const int64_t voxels = e.voxels(), width = bytes(in);
    if (start % kBlock == 0)
      copy_bytes(memory(out), memory(in) + start * voxels * width,
                 filled(stop - start) * voxels * width);
    else
      copy_channels(memory(in), start, memory(out), 0, stop - start, voxels, width);
  });
  return out;
}

// [C][D][H][W] -> a vector in this order
int Engine::flatten(int in) {
  const Extent e = extent(in);
  const int out = add({e.c * e.voxels(), 1, 1, 1}, false);
  step(StepKind::flatten, {in}, {out}, [=] {
    const int64_t voxels = e.voxels();
    parallel(blocks_of(e.c) * ceil_div(voxels, kBlock), 64, [&](int64_t b, int64_t n, int) {
      kernels(in).unblock(at(in), at(out), e.c, voxels, b, n);
    });
  });
  return out;
}

// A vector -> [C][D][H][W] in this order
int Engine::unflatten(int in, int64_t c, int64_t d, int64_t h, int64_t w) {
  in = as(in, false);
  const Extent e = extent(in), o{c, d, h, w};
  if (e.voxels() != 1 || product({c, d, h, w}) != e.c) refuse(text(e) + " as " + text(o));
  const int out = add(o, true);
  step(StepKind::unflatten, {in}, {out}, [=] {
    const int64_t voxels = o.voxels();
    parallel(blocks_of(o.c) * ceil_div(voxels, kBlock), 64, [&](int64_t b, int64_t n, int) {
      kernels(out).block(at(in), at(out), o.c, voxels, b, n);
    });
  });
  return out;
}

// A vector, seen as an array of `sizes`, with its axes in another order.
int Engine::transpose(int in, const std::vector<int64_t>& sizes,
                      const std::vector<int64_t>& order) {
  in = as(in, false);
  const Extent e = extent(in);
  const size_t axes = sizes.size();
  int64_t total = 1;
  for (int64_t size : sizes) total = product({total, size});
  std::vector<int64_t> seen(axes, 0);
  bool fits = order.size() == axes && total == e.c && e.voxels() == 1;
  for (int64_t axis : order)
    fits = fits && axis >= 0 && axis < static_cast<int64_t>(axes) &&
           seen[static_cast<size_t>(axis)]++ == 0;
  if (!fits) refuse("another order of " + text(e));
  // Steps and sizes of the result's axes, in the vector.
  std::vector<int64_t> steps(axes, 1), lengths(axes);
  for (size_t i = 0; i < axes; ++i) {
    const auto from = static_cast<size_t>(order[i]);
    lengths[i] = sizes[from];
    for (size_t j = from + 1; j < axes; ++j) steps[i] *= sizes[j];
  }
  const int out = add(e, false);
  step(StepKind::transpose, {in}, {out}, [=] {
    parallel(e.c, 1 << 14, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t rest = i, place = 0;
        for (size_t a = axes; a-- > 0;) {
          place += rest % lengths[a] * steps[a];
          rest /= lengths[a];
        }
        at(out)[i] = at(in)[place];
      }
    });
  });
  return out;
}

}  // namespace hfrt
