// What is decided once all the steps are known: layouts and fused pairs. Before memory is planned.
#include <algorithm>

#include "internal.hpp"

namespace hfrt {

// Volumes of few channels between a one-channel convolution and Winograd convolutions, or between
// two of these, are kept as `Phases` where all that read them can: lanes are then tiles. Otherwise
// most of the 16 lanes of a channel block would be empty.
void Engine::choose_narrow() {
  const size_t n = values_.size();
  std::vector<bool> phased(n, false), capable(steps_.size(), false);
  const auto is = [&](int value) { return value >= 0 && phased[static_cast<size_t>(value)]; };
  for (size_t s = 0; s < steps_.size(); ++s) {
    const Conv* c = steps_[s].conv.get();
    if (!c) continue;
    const Epilogue& e = c->args.epilogue;
    const bool first = c->kind == Conv::Kind::one_channel && c->residual < 0 && !e.slopes() &&
                       c->args.conv_extent.c <= kNarrowIn;
    capable[s] = c->args.narrow_weight != nullptr;
    if ((first || capable[s]) && !e.sparse)
      for (int value : steps_[s].writes) phased[static_cast<size_t>(value)] = true;
  }
  for (int value : outputs_) phased[static_cast<size_t>(value)] = false;
  for (bool changed = true; changed;) {
    changed = false;
    const auto refuse_phases = [&](int value) {
      changed = changed || phased[static_cast<size_t>(value)];
      phased[static_cast<size_t>(value)] = false;
    };
    for (size_t s = 0; s < steps_.size(); ++s) {
      const Conv* c = steps_[s].conv.get();
      if (capable[s] && (!is(c->in) || (c->shortcut >= 0 && !is(c->shortcut)))) {
        capable[s] = false;
        changed = true;
      }
      for (int value : steps_[s].reads)
        if (!capable[s]) refuse_phases(value);
      const bool all = std::all_of(steps_[s].writes.begin(), steps_[s].writes.end(), is);
      const bool makes = c && (capable[s] || c->kind == Conv::Kind::one_channel);
      for (int value : steps_[s].writes)
        if (!all || !makes) refuse_phases(value);
    }
  }
  for (size_t i = 0; i < n; ++i) {
    if (!phased[i]) continue;
    // Zeros stay where no voxel is.
    Value& v = values_[i];
    const Phases g = Phases::of(v.extent);
    const int64_t numbers = g.plane_of(v.extent.c, 0, v.extent.d) + 4 * g.guard() + 2 * kBlock;
    const int64_t per = 4 / bytes(static_cast<int>(i));
    v.own = reserve(numbers / per) + g.guard();
    v.floats = 0;
  }
  for (size_t s = 0; s < steps_.size(); ++s) {
    if (!steps_[s].conv) continue;
    Conv& c = *steps_[s].conv;
    ConvArgs& a = c.args;
    a.phased = is(c.out);
    const Phases& g = a.phases = Phases::of(capable[s] ? a.conv_extent : a.out_extent);
    if (!capable[s]) continue;
    c.narrow = true;
    names_[s] = "narrow winograd";
    c.tasks = (a.conv_extent.d + 3) / 4 * g.vectors();
    float* valid = reserve(16 * g.plane);
    for (int64_t y = 0; y < a.conv_extent.h; ++y)
      for (int64_t x = 0; x < a.conv_extent.w; ++x)
        valid[(y % 4 * 4 + x % 4) * g.plane + y / 4 * g.row + x / 4] = 1.0f;
    a.valid = valid;
  }
}

// A one-channel convolution whose large result only the next Winograd convolution reads.
void Engine::fuse_rings() {
  constexpr int64_t kLarge = int64_t{1} << 22;  // floats: more than the cache holds
  constexpr int64_t kRing = int64_t{1} << 22;   // floats: they stay in the shared cache
  for (size_t i = 0; i + 1 < steps_.size(); ++i) {
    const auto first = steps_[i].conv, second = steps_[i + 1].conv;
    if (!first || !second || first->kind != Conv::Kind::one_channel || first->args.epilogue.pool ||
        first->second >= 0 || first->residual >= 0 || second->kind != Conv::Kind::winograd ||
        second->in != first->out || second->args.window.stride[0] != 1 || second->narrow ||
        second->condition >= 0 || second->residual == first->out ||
        second->shortcut == first->out || values_[static_cast<size_t>(first->out)].floats < kLarge)
      continue;
    const int value = first->out;
    bool elsewhere = std::count(outputs_.begin(), outputs_.end(), value) > 0;
    for (size_t j = 0; j < steps_.size(); ++j)
      if (j != i + 1)
        elsewhere = elsewhere || std::count(steps_[j].reads.begin(), steps_[j].reads.end(), value);
    Value& v = values_[static_cast<size_t>(value)];
    if (elsewhere || v.root != value) continue;
    ConvArgs& a = second->args;
    const int64_t plane = v.floats / v.extent.d;
    const int64_t layers = std::max<int64_t>((kRing / plane - 2) / a.tile[0], 1);
    const int64_t planes = layers * a.tile[0] + 2;
    if (planes >= v.extent.d) continue;
    v.floats = plane * planes;
    first->args.ring = a.ring = planes;
    a.splits = 1;
    second->producer = first;
    steps_[i].work = nullptr;
    steps_[i].writes.clear();
    steps_[i + 1].reads.push_back(first->in);
    steps_[i + 1].writes.push_back(value);
    names_[i] += " (in the next step)";
  }
}

}  // namespace hfrt
