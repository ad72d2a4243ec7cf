// Vectors: the head of a network, and ensembles.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "internal.hpp"

namespace hfrt {

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
      exact_.affine({at(out), at(out), n, 1, nullptr, nullptr, nullptr, act}, 0, blocks_of(n));
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

}  // namespace hfrt
