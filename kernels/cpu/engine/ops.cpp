// Everything but convolutions.
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
  int64_t count = 1;
  const int64_t size[3] = {e.d, e.h, e.w};
  std::vector<int64_t> steps(stride, stride + 3);
  for (int i = 0; i < 3; ++i) {
    if (stride[i] < 1) refuse("a stride must be 1 or more");
    count *= (size[i] + stride[i] - 1) / stride[i];
  }
  const int out = add({e.c, 1, 1, 1}, false);
  step(average ? StepKind::global_average : StepKind::global_maximum, {in}, {out}, [=] {
    parallel(blocks_of(e.c), 1, [&](int64_t b, int64_t n, int) {
      kernels(in).reduce(at(in), e, steps.data(), at(out), !average, b, n);
    });
    if (average) {
      float* y = at(out);
      for (int64_t i = 0; i < filled(e.c); ++i) y[i] /= static_cast<float>(count);
    }
  });
  return out;
}

int Engine::affine(int in, Array scale, Array shift, const ActivationSpec& spec) {
  const Extent e = extent(in);
  const float* s = scale.data ? keep(scale, filled(e.c), "the scale", e.c) : nullptr;
  const float* t = scale.data ? keep(shift, filled(e.c), "the shift", e.c) : nullptr;
  const Activation act = keep(spec, e.c);
  const int out = add(e, stored(in));
  step(StepKind::affine, {in}, {out}, [=] {
    parallel(blocks_of(e.c), 1, [&](int64_t b, int64_t n, int) {
      kernels(in).affine(at(in), at(out), e.voxels(), s, t, act, b, n);
    });
  });
  return out;
}

int Engine::binary(int a, int b, bool multiply, const ActivationSpec& spec) {
  if (extent(a).voxels() < extent(b).voxels()) std::swap(a, b);
  const Extent e = extent(a), f = extent(b);
  const bool per_channel = f.voxels() == 1 && e.voxels() > 1;
  if (e.c != f.c || (!per_channel && !same(e, f)))
    refuse(std::string(multiply ? "multiply " : "add ") + text(e) + " and " + text(f));
  const Activation act = keep(spec, e.c);
  b = as(b, per_channel ? false : stored(a));
  const int out = add(e, stored(a));
  step(multiply ? StepKind::multiply : StepKind::add, {a, b}, {out}, [=] {
    parallel(blocks_of(e.c), 1, [&](int64_t begin, int64_t end, int) {
      kernels(a).binary(at(a), at(b), at(out), e.voxels(), per_channel, multiply, act, begin, end);
    });
  });
  return out;
}

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
    const int64_t voxels = e.voxels(), width = bytes(in);
    const char* from = memory(in);
    float* to = at(out);
    parallel(blocks_of(e.c), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t b = begin; b < end; ++b)
        for (int64_t j = 0; j < kBlock && b * kBlock + j < e.c; ++j)
          for (int64_t v = 0; v < voxels; ++v)
            to[(b * kBlock + j) * voxels + v] = get(from, (b * voxels + v) * kBlock + j, width);
    });
  });
  return out;
}

int Engine::pad(int in, const int64_t before[3], const int64_t after[3]) {
  const Extent e = extent(in);
  for (int i = 0; i < 3; ++i)
    if (before[i] < 0 || after[i] < 0 || before[i] > 4096 || after[i] > 4096)
      refuse("padding must be 0 to 4096");
  const Extent o{e.c, e.d + before[0] + after[0], e.h + before[1] + after[1],
                 e.w + before[2] + after[2]};
  const int out = add(o, stored(in));
  const int64_t d0 = before[0], h0 = before[1], w0 = before[2], voxel = kBlock * bytes(in);
  step(StepKind::pad, {in}, {out}, [=] {
    parallel(blocks_of(e.c) * o.d, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i / o.d, d = i % o.d - d0;
        char* plane = memory(out) + i * o.h * o.w * voxel;
        std::memset(plane, 0, static_cast<size_t>(o.h * o.w * voxel));
        if (d < 0 || d >= e.d) continue;
        for (int64_t h = 0; h < e.h; ++h)
          copy_bytes(plane + ((h + h0) * o.w + w0) * voxel,
                     memory(in) + ((block * e.d + d) * e.h + h) * e.w * voxel, e.w * voxel);
      }
    });
  });
  return out;
}

int Engine::linear(int in, int64_t outputs, Array weight, Array bias, const ActivationSpec& spec) {
  in = as(in, false);
  const Extent e = extent(in);
  if (e.voxels() != 1) refuse("linear needs a vector, not " + text(e));
  const int64_t n = product({e.c, outputs}), ld = filled(outputs);
  checked(weight, n, "a linear layer's weight");
  float* w = reserve(product({e.c, ld}));
  for (int64_t i = 0; i < e.c; ++i) copy_floats(w + i * ld, weight.data + i * outputs, outputs);
  const float* b = keep(bias, ld, "a linear layer's bias", outputs);
  const Activation act = keep(spec, outputs);
  const int out = add({outputs, 1, 1, 1}, false);
  step(StepKind::linear, {in}, {out}, [=] {
    parallel(ld / kBlock, n > 100'000 ? 1 : ld, [&](int64_t begin, int64_t end, int) {
      exact_.linear(at(in), e.c, w, ld, b, act, at(out), begin, end);
    });
  });
  return out;
}

int Engine::hyper_linear(int in, int condition, int64_t outputs, Array weight, Array bias,
                         const ActivationSpec& spec) {
  in = as(in, false), condition = as(condition, false);
  const Extent e = extent(in), ce = extent(condition);
  if (e.voxels() != 1 || ce.voxels() != 1) refuse("hyper_linear needs vectors");
  const int64_t k = ce.c, n = product({e.c, outputs}), ld = filled(outputs);
  checked(weight, product({k, n}), "a generated linear layer's weight");
  checked(bias, product({k, outputs}), "a generated linear layer's bias");
  float* w = reserve(product({k, e.c, ld}));
  for (int64_t i = 0; i < k * e.c; ++i) copy_floats(w + i * ld, weight.data + i * outputs, outputs);
  float* b = reserve(k * ld);
  for (int64_t i = 0; i < k; ++i) copy_floats(b + i * ld, bias.data + i * outputs, outputs);
  float* made = reserve(e.c * ld);
  float* made_bias = reserve(ld);
  const Activation act = keep(spec, outputs);
  const int out = add({outputs, 1, 1, 1}, false);
  step(StepKind::hyper_linear, {in, condition}, {out}, [=] {
    const float* c = at(condition);
    exact_.mix(w, c, k, e.c * ld, made, 0, e.c * ld);
    exact_.mix(b, c, k, ld, made_bias, 0, ld);
    exact_.linear(at(in), e.c, made, ld, made_bias, act, at(out), 0, ld / kBlock);
  });
  return out;
}

int Engine::one_and(int in) {
  in = as(in, false);
  const Extent e = extent(in);
  if (e.voxels() != 1) refuse("one_and needs a vector, not " + text(e));
  const int out = add({e.c + 1, 1, 1, 1}, false);
  step(StepKind::one_and, {in}, {out}, [=] {
    float* y = at(out);
    std::memmove(y + 1, at(in), static_cast<size_t>(e.c) * sizeof(float));
    y[0] = 1;
  });
  return out;
}

int Engine::combine(int in, int condition, const ActivationSpec& spec) {
  in = as(in, false), condition = as(condition, false);
  const Extent e = extent(in), ce = extent(condition);
  if (e.voxels() != 1 || ce.voxels() != 1 || e.c % ce.c)
    refuse("combine " + text(e) + " with a condition " + text(ce));
  const int64_t k = ce.c, n = e.c / k;
  const Activation act = keep(spec, n);
  const int out = add({n, 1, 1, 1}, false);
  step(StepKind::combine, {in, condition}, {out}, [=] {
    exact_.mix(at(in), at(condition), k, n, at(out), 0, n);
    if (act.kind != Act::none)
      exact_.affine(at(out), at(out), 1, nullptr, nullptr, act, 0, blocks_of(n));
  });
  return out;
}

int Engine::softmax(int in) {
  in = as(in, false);
  const Extent e = extent(in);
  if (e.voxels() != 1) refuse("softmax needs a vector, not " + text(e));
  const int out = add(e, false);
  step(StepKind::softmax, {in}, {out}, [=] {
    const float* x = at(in);
    float* y = at(out);
    float most = x[0], sum = 0;
    for (int64_t i = 1; i < e.c; ++i) most = std::max(most, x[i]);
    for (int64_t i = 0; i < e.c; ++i) sum += y[i] = std::exp(x[i] - most);
    for (int64_t i = 0; i < e.c; ++i) y[i] /= sum;
  });
  return out;
}

// --- ensembles: a few dozen numbers, so that double costs nothing ------------------------------

static void to_probabilities(std::vector<double>& logits) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double norm = 0;
  for (double& v : logits) norm += v = std::exp(v - top);
  for (double& v : logits) v /= norm;
}

// How sure a member is: 1 / the entropy of its probabilities.
static double confidence(const std::vector<double>& probabilities) {
  double entropy = 0;
  for (double v : probabilities) {
    const double p = std::min(std::max(v, 1e-12), 1.0);
    entropy -= p * std::log(p);
  }
  return 1 / std::max(entropy, 1e-6);
}

// One at the largest number, zero elsewhere.
static void vote(std::vector<double>& probabilities) {
  const auto top = std::max_element(probabilities.begin(), probabilities.end());
  std::fill(probabilities.begin(), probabilities.end(), 0.0);
  *top = 1;
}

int Engine::ensemble(int in, int64_t members, int64_t boxes, bool classes,
                     const std::string& rule) {
  in = as(in, false);
  const Extent e = extent(in);
  if (e.voxels() != 1 || members < 1 || boxes < 1 || e.c % members || e.c / members % boxes)
    refuse("an ensemble of " + std::to_string(members) + " members on " + std::to_string(boxes) +
           " boxes from " + text(e));
  const bool votes = rule == "weighted_voting", best = rule == "most_confident";
  const bool plain = rule == "mean";
  if (!plain && !votes && !best && rule != "confidence_weighted")
    refuse("an ensemble's rule " + rule);
  if (!plain && !classes) refuse("an ensemble's rule " + rule + " without classes");
  const int64_t n = e.c / members / boxes;
  const int out = add({n, 1, 1, 1}, false);
  step(StepKind::ensemble, {in}, {out}, [=] {
    std::vector<double> each(static_cast<size_t>(n)), box(each), sum(each);
    double total = best ? 1 : 0, most = 0;
    for (int64_t m = 0; m < members; ++m) {
      std::fill(each.begin(), each.end(), 0.0);
      for (int64_t b = 0; b < boxes; ++b) {
        const float* x = at(in) + (m * boxes + b) * n;
        std::copy(x, x + n, box.begin());
        if (classes) to_probabilities(box);
        for (size_t i = 0; i < box.size(); ++i) each[i] += box[i] / static_cast<double>(boxes);
      }
      const double weight = plain ? 1 : confidence(each);
      if (votes) vote(each);
      if (best) {
        total += 0 * weight;  // NaN stays NaN
        if (m == 0 || weight > most) most = weight, sum = each;
        continue;
      }
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += weight * each[i];
      total += weight;
    }
    for (size_t i = 0; i < sum.size(); ++i) at(out)[i] = static_cast<float>(sum[i] / total);
  });
  return out;
}

int Engine::instance_norm(int in, Array scale, Array shift, float eps, const ActivationSpec& spec) {
  const Extent e = extent(in);
  const float* s = keep(scale, filled(e.c), "the scale", e.c);
  const float* t = keep(shift, filled(e.c), "the shift", e.c);
  const Activation act = keep(spec, e.c);
  float* mean = reserve(filled(e.c));
  float* gain = reserve(filled(e.c));
  float* offset = reserve(filled(e.c));
  const int out = add(e, stored(in));
  step(StepKind::instance_norm, {in}, {out}, [=] {
    static const int64_t every[3] = {1, 1, 1};
    const float count = static_cast<float>(e.voxels());
    parallel(blocks_of(e.c), 1, [&](int64_t begin, int64_t end, int) {
      kernels(in).reduce(at(in), e, every, mean, false, begin, end);
      for (int64_t i = begin * kBlock; i < end * kBlock; ++i) mean[i] /= count;
      kernels(in).deviation(at(in), e.voxels(), mean, gain, begin, end);
      for (int64_t i = begin * kBlock; i < end * kBlock; ++i) {
        gain[i] = s[i] / std::sqrt(gain[i] / count + eps);
        offset[i] = t[i] - mean[i] * gain[i];
      }
      kernels(in).affine(at(in), at(out), e.voxels(), gain, offset, act, begin, end);
    });
  });
  return out;
}

}  // namespace hfrt
