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

// The step that makes `i`, which no other writes and nothing but one step or the caller reads.
Engine::Step* Engine::only_maker(int i) {
  Step* maker = nullptr;
  int64_t uses = std::count(outputs_.begin(), outputs_.end(), i);
  for (Step& s : steps_) {
    uses += std::count(s.reads.begin(), s.reads.end(), i);
    if (has(s.writes, i)) maker = s.writes.size() == 1 ? &s : nullptr;
  }
  return uses == 1 ? maker : nullptr;
}

// Whether a step can make its value as [C][D][H][W]; then it will.
bool Engine::makes_plain(Step& step) {
  if (step.kind == StepKind::softmax) {
    const int in = step.reads[0];
    Step* before = stored(in) && !has(inputs_, in) ? only_maker(in) : nullptr;
    if (!before || before->kind == StepKind::softmax || !makes_plain(*before)) return false;
    Value& v = value(in);
    v.planar = true;
    v.floats = ceil_div(plain_floats(in), kBlock) * kBlock;
    return true;
  }
  std::vector<Conv*> parts;
  if (step.conv) parts.push_back(step.conv.get());
  if (step.parts)
    for (const auto& part : step.parts->parts) parts.push_back(part.get());
  const auto can = [](const Conv* c) {
    const bool gathers = c->kind == StepKind::gather || c->kind == StepKind::pointwise;
    return gathers && c->residual < 0 && c->second < 0 && c->out_offset == 0;
  };
  if (parts.empty() || !std::all_of(parts.begin(), parts.end(), can)) return false;
  for (Conv* c : parts) {
    ConvArgs& a = c->args;
    a.plain = true;
    const int64_t pair = 2 * a.out_extent.c;
    const bool channels = a.epilogue.act.slope == nullptr && kBlock % pair == 0;
    a.paired = a.sets > 1 && a.sets % 2 == 0 && a.place[2] == 2 && channels &&
               2 * a.conv_extent.w == a.out_extent.w;
    if (a.paired) a.splits = 1, c->tasks = ceil_div(a.count, a.rows);
  }
  return true;
}

// An output of few channels is written where the caller wants it: in blocks most of its lanes would
// be empty.
void Engine::plain_outputs() {
  for (int i : outputs_) {
    Value& v = value(i);
    if (!v.stored || v.extent.c >= kBlock || v.extent.voxels() == 1) continue;
    Step* maker = only_maker(i);
    if (!maker || !makes_plain(*maker)) continue;
    v.planar = true;
    v.floats = 0;
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
