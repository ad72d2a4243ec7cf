// What is decided once all the steps are known: layouts, fused pairs, and where values stand.
#include <algorithm>
#include <climits>

#include "arena.hpp"
#include "internal.hpp"

namespace hfrt {

// --- phases ------------------------------------------------------------------------------------

// What may still be narrow: the values that would lie as `Phases`, and which of the steps would run
// the narrow kernel.
struct Engine::Narrow {
  std::set<int> phased;
  std::vector<bool> steps;
};

// Volumes of few channels between a planar convolution and Winograd convolutions, or between
// two of these, are kept as `Phases` where all that read them can: lanes are then tiles. Otherwise
// most of the 16 lanes of a channel block would be empty.
void Engine::choose_narrow() {
  Narrow narrow = narrow_candidates();
  while (drop_candidates(narrow)) {
  }
  for (int i : narrow.phased) {
    // Zeros stay where no voxel is.
    Value& v = value(i);
    const Phases g = Phases::of(v.extent);
    const int64_t numbers = g.plane_of(v.extent.c, 0, v.extent.d) + 4 * g.guard() + 2 * kBlock;
    v.own = reserve(numbers * bytes(i) / 4) + g.guard();
    v.floats = 0;
  }
  for (size_t s = 0; s < steps_.size(); ++s)
    if (steps_[s].conv) use_phases(steps_[s], narrow.phased, narrow.steps[s]);
}

Engine::Narrow Engine::narrow_candidates() const {
  Narrow narrow{{}, std::vector<bool>(steps_.size(), false)};
  for (size_t s = 0; s < steps_.size(); ++s) {
    const Conv* c = steps_[s].conv.get();
    if (!c) continue;
    const Epilogue& e = c->args.epilogue;
    const bool first = c->kind == StepKind::planar && c->residual < 0 && !e.slopes() &&
                       c->args.conv_extent.c <= kNarrowIn;
    narrow.steps[s] = c->args.narrow_weight != nullptr;
    if ((first || narrow.steps[s]) && !e.sparse)
      narrow.phased.insert(steps_[s].writes.begin(), steps_[s].writes.end());
  }
  for (int i : outputs_) narrow.phased.erase(i);
  return narrow;
}

// One walk over the steps: drops what a neighbour rules out. False when nothing was dropped.
bool Engine::drop_candidates(Narrow& narrow) const {
  bool changed = false;
  const auto phased = [&](int i) { return narrow.phased.count(i) > 0; };
  const auto drop = [&](const std::vector<int>& values) {
    for (int i : values) changed = narrow.phased.erase(i) > 0 || changed;
  };
  for (size_t s = 0; s < steps_.size(); ++s) {
    const Step& step = steps_[s];
    const Conv* c = step.conv.get();
    if (narrow.steps[s] && (!phased(c->in) || (c->shortcut >= 0 && !phased(c->shortcut)))) {
      narrow.steps[s] = false;
      changed = true;
    }
    if (!narrow.steps[s]) drop(step.reads);
    const bool makes = c && (narrow.steps[s] || c->kind == StepKind::planar);
    if (!makes || !std::all_of(step.writes.begin(), step.writes.end(), phased)) drop(step.writes);
  }
  return changed;
}

void Engine::use_phases(Step& step, const std::set<int>& phased, bool narrow) {
  Conv& c = *step.conv;
  ConvArgs& a = c.args;
  const Extent& o = a.conv_extent;
  a.phased = phased.count(c.out) > 0;
  const Phases& g = a.phases = Phases::of(narrow ? o : a.out_extent);
  if (!narrow) return;
  step.kind = c.kind = StepKind::narrow_winograd;
  c.tasks = ceil_div(o.d, 4) * g.vectors();
  float* valid = reserve(16 * g.plane);
  for (int64_t y = 0; y < o.h; ++y)
    for (int64_t x = 0; x < o.w; ++x)
      valid[(y % 4 * 4 + x % 4) * g.plane + y / 4 * g.row + x / 4] = 1.0f;
  a.valid = valid;
}

// --- rings -------------------------------------------------------------------------------------

// A planar convolution whose large result only the next Winograd convolution reads: planes of
// the result stand in a ring.
void Engine::fuse_rings() {
  constexpr int64_t kRing = int64_t{1} << 22;  // floats: they stay in the shared cache
  for (size_t i = 0; i + 1 < steps_.size(); ++i) {
    if (!can_share_ring(i)) continue;
    Step &first = steps_[i], &second = steps_[i + 1];
    ConvArgs& a = second.conv->args;
    Value& v = value(first.conv->out);
    const int64_t plane = v.floats / v.extent.d;
    const int64_t layers = std::max<int64_t>((kRing / plane - 2) / a.tile[0], 1);
    const int64_t planes = layers * a.tile[0] + 2;
    if (planes >= v.extent.d) continue;
    v.floats = plane * planes;
    first.conv->args.ring = a.ring = planes;
    a.splits = 1;
    second.conv->producer = first.conv;
    first.kind = StepKind::planar_ring;
    first.work = nullptr;
    first.writes.clear();
    second.reads.push_back(first.conv->in);
    second.writes.push_back(first.conv->out);
  }
}

// Whether the step at `i` and the next one are such a pair.
bool Engine::can_share_ring(size_t i) const {
  constexpr int64_t kLarge = int64_t{1} << 22;  // floats: more than the cache holds
  const Conv *first = steps_[i].conv.get(), *second = steps_[i + 1].conv.get();
  if (!first || !second || first->kind != StepKind::planar || first->args.epilogue.pool ||
      first->second >= 0 || first->residual >= 0)
    return false;
  const int made = first->out;
  if (second->kind != StepKind::winograd || second->in != made || second->residual == made ||
      second->shortcut == made || second->condition >= 0 || second->args.window.stride[0] != 1 ||
      value(made).floats < kLarge || has(outputs_, made))
    return false;
  for (size_t j = 0; j < steps_.size(); ++j)
    if (j != i + 1 && has(steps_[j].reads, made)) return false;
  return true;
}

// --- memory ------------------------------------------------------------------------------------

// An input that only planar convolutions read is used where the caller has it.
void Engine::find_plain_inputs() {
  const auto reads_plain = [](const Conv& c, int input) {
    const bool here = c.kind == StepKind::planar && c.in == input;
    const bool before = c.producer && c.producer->in == input && c.in != input;
    return (here || before) && c.residual != input && c.condition != input && c.shortcut != input;
  };
  for (int i : inputs_) {
    Value& v = value(i);
    v.plain = !has(outputs_, i);
    for (const Step& s : steps_)
      if (has(s.reads, i)) v.plain = v.plain && s.conv && reads_plain(*s.conv, i);
    if (v.plain) v.floats = 0;
  }
}

// --- plain volumes -----------------------------------------------------------------------------

// Volumes of few channels lie as the caller's do, [C][D][H][W] float32, where all the steps that
// make and read them can: in blocks most of their lanes would be empty. An output is then written
// where the caller wants it.
void Engine::choose_plain() {
  std::set<int> plain = plain_candidates();
  for (size_t before = 0; before != plain.size();) {
    before = plain.size();
    for (const Step& s : steps_) keep_plain(s, plain);
  }
  for (Step& s : steps_) make_plain(s, plain);
  for (int i : plain) {
    Value& v = value(i);
    v.planar = true;
    v.floats = has(outputs_, i) ? 0 : ceil_div(plain_floats(i), kBlock) * kBlock;
  }
}

std::set<int> Engine::plain_candidates() const {
  std::set<int> found;
  for (size_t i = 0; i < values_.size(); ++i) {
    const Value& v = values_[i];
    const int number = static_cast<int>(i);
    const auto outputs = std::count(outputs_.begin(), outputs_.end(), number);
    const int64_t most = outputs ? kBlock - 1 : kPlainChannels;
    if (v.stored && !v.own && v.extent.voxels() > 1 && v.extent.c <= most && outputs < 2 &&
        !has(inputs_, number))
      found.insert(number);
  }
  return found;
}

// Takes out of `plain` what a step cannot read or make so.
void Engine::keep_plain(const Step& s, std::set<int>& plain) const {
  const auto is = [&](int i) { return i >= 0 && plain.count(i) > 0; };
  const auto volume = [&](int i) { return stored(i) && extent(i).voxels() > 1; };
  const auto drop = [&](const std::vector<int>& values) {
    for (int i : values) plain.erase(i);
  };
  if (s.plain || s.kind == StepKind::softmax) {
    bool all = true;
    for (const auto& values : {s.reads, s.writes})
      for (int i : values) all = all && (!volume(i) || is(i));
    if (!all) drop(s.reads), drop(s.writes);
    return;
  }
  const Conv* c = s.conv ? s.conv.get() : s.parts.get();
  if (!c || !s.work || c->producer || c->second >= 0) return drop(s.reads), drop(s.writes);
  const auto gathers = [](const Conv& one) {
    return (one.kind == StepKind::gather || one.kind == StepKind::pointwise) && one.residual < 0 &&
           one.out_offset == 0;
  };
  bool makes = false, beside = false;
  if (s.parts) {
    makes = std::all_of(c->parts.begin(), c->parts.end(),
                        [&](const auto& part) { return gathers(*part); });
    plain.erase(c->in);
  } else if (c->planar && is(c->in)) {
    makes = beside = true;
  } else {
    const bool first = c->kind == StepKind::planar && !c->args.epilogue.pool && !c->args.phased;
    makes = first || gathers(*c);
    beside = first;
    plain.erase(c->in);
  }
  plain.erase(c->shortcut);
  const bool other = c->residual >= 0 && (!beside || is(c->residual) != is(c->out));
  if (!makes || other) drop({c->out, c->residual});
}

void Engine::make_plain(Step& s, const std::set<int>& plain) {
  if (s.parts && plain.count(s.parts->out)) {
    for (const auto& part : s.parts->parts) {
      ConvArgs& a = part->args;
      a.plain = true;
      // Pairs of neighbours along W, in whole vectors.
      const bool channels = !a.epilogue.act.slope && kBlock % (2 * a.out_extent.c) == 0;
      a.paired = a.sets > 1 && a.sets % 2 == 0 && a.place[2] == 2 && channels &&
                 2 * a.conv_extent.w == a.out_extent.w;
      if (a.paired) a.splits = 1, part->tasks = ceil_div(a.count, a.rows);
    }
  }
  if (!s.conv) return;
  Conv& c = *s.conv;
  const bool out = plain.count(c.out) > 0;
  if (c.planar && plain.count(c.in)) {
    c.planar->args.plain = out;
    c.kind = s.kind = StepKind::planar;
  } else {
    c.planar = nullptr;
    c.args.plain = out;
  }
}

// Concatenated values are written where they will stand, if a block of channels starts there.
void Engine::place_in_concats() {
  std::set<int> fixed(inputs_.begin(), inputs_.end());
  for (auto s = steps_.rbegin(); s != steps_.rend(); ++s) {
    if (s->kind != StepKind::concat) continue;
    const int out = s->writes[0];
    const Value& o = value(out);
    int64_t c = 0;
    for (int in : s->reads) {
      Value& v = value(in);
      const bool once = std::count(s->reads.begin(), s->reads.end(), in) == 1;
      const bool whole = v.extent.c % kBlock == 0 || c + v.extent.c == o.extent.c;
      if (c % kBlock == 0 && whole && once && fixed.insert(in).second) {
        v.root = o.root;
        v.offset = o.offset + c * v.extent.voxels() * bytes(out) / 4;
      }
      c += v.extent.c;
    }
  }
  // A value that was placed inside another one before that one was placed itself.
  for (Value& v : values_)
    while (value(v.root).root != v.root) {
      v.offset += value(v.root).offset;
      v.root = value(v.root).root;
    }
}

void Engine::place_values() {
  place_in_concats();
  // Steps are numbered from 0; the inputs are there before, the outputs are read after the last.
  std::vector<Lifetime> lives(values_.size(), {0, INT_MAX, INT_MIN});
  const auto use = [&](int i, int when) {
    Lifetime& life = lives[static_cast<size_t>(value(i).root)];
    life.first = std::min(life.first, when);
    life.last = std::max(life.last, when);
  };
  int now = 0;
  for (int i : inputs_) use(i, -1);
  for (const Step& s : steps_) {
    for (int i : s.reads) use(i, now);
    for (int i : s.writes) use(i, now);
    ++now;
  }
  for (int i : outputs_) use(i, now);

  std::vector<Value*> roots;
  std::vector<Lifetime> of_roots;
  for (size_t i = 0; i < values_.size(); ++i) {
    if (values_[i].root != static_cast<int>(i)) continue;
    roots.push_back(&values_[i]);
    of_roots.push_back(lives[i]);
    of_roots.back().floats = values_[i].floats;
  }
  const ArenaPlan plan = plan_arena(of_roots);
  for (size_t i = 0; i < roots.size(); ++i) roots[i]->place = plan.offsets[i];
  arena_floats_ = plan.floats;
}

}  // namespace hfrt
