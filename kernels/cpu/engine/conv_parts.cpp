// Convolutions that are made of smaller ones: of groups of channels, and of the phases of a
// transposed convolution.
//
// Groups. A part holds as many groups as fill whole blocks of channels, and its weights are dense:
// 4 channels a group, four groups. Its input and output are blocks of the whole volumes.
//
// Phases. Output voxel s q + r along an axis, r < s, reads the taps k for which s divides
// r + padding - k · dilation, at the input's voxels q + (r + padding - k · dilation) / s: with q,
// that is a convolution of stride 1, whose result stands at every s-th voxel. Phases that read the
// same voxels (all, where kernel = stride) are one convolution of more output channels. Of few
// channels so are others, with taps of zeros: they fill vectors that would be half empty.
#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <tuple>

#include "internal.hpp"

namespace hfrt {

namespace {

// What of a kernel one phase reads along an axis: taps from, from - step, ... and the geometry. The
// kernel has `own` taps, behind `zeros` that it has not.
struct Phase {
  int64_t start = 0, first_tap = 0, tap_step = 1, taps = 0, zeros = 0, own = 0;
  int64_t padding = 0, dilation = 1, count = 0;
  auto geometry() const { return std::make_tuple(taps, padding, dilation, count); }
  // The kernel's tap at the i-th of `taps`, -1: none.
  int64_t tap(int64_t i) const {
    return i < zeros || i >= zeros + own ? -1 : first_tap - (i - zeros) * tap_step;
  }
};

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }

std::vector<Phase> phases_of(const Window& k, int axis, int64_t out) {
  std::vector<Phase> found;
  const int64_t s = k.stride[axis], d = k.dilation[axis];
  for (int64_t r = 0; r < s && r < out; ++r) {
    Phase p;
    p.start = r;
    p.count = (out - r - 1) / s + 1;
    // Of taps in rising order the voxels that they read fall: the last one comes first.
    int64_t before = -1;
    for (int64_t tap = 0; tap < k.kernel[axis]; ++tap) {
      const int64_t at = r + k.padding[axis] - tap * d;
      if (floor_div(at, s) * s != at) continue;
      const int64_t voxel = floor_div(at, s);
      if (p.taps++ == 0) p.dilation = 1, p.tap_step = 1;
      if (p.taps == 2) p.tap_step = tap - before, p.dilation = p.tap_step * d / s;
      p.first_tap = before = tap;
      p.padding = -voxel;
    }
    p.own = p.taps;
    found.push_back(p);
  }
  return found;
}

// The phases of an axis with one geometry: of all voxels that any of them reads. As they are where
// they make other numbers of voxels, or read voxels apart.
std::vector<Phase> alike(std::vector<Phase> phases) {
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (const Phase& p : phases) {
    if (p.count != phases[0].count || p.dilation != 1) return phases;
    if (p.taps == 0) continue;
    low = std::min(low, -p.padding), high = std::max(high, -p.padding + p.taps - 1);
  }
  if (low > high) return phases;
  for (Phase& p : phases) {
    p.zeros = p.taps ? -p.padding - low : 0;
    p.taps = high - low + 1, p.padding = -low;
  }
  return phases;
}

using Axes = std::array<std::vector<Phase>, 3>;
using Key = std::array<std::tuple<int64_t, int64_t, int64_t, int64_t>, 3>;
using Sets = std::map<std::pair<Key, int64_t>, std::vector<std::array<Phase, 3>>>;

// Phases with one geometry together; `apart`: each alone.
Sets sets_of(const Axes& along, bool apart) {
  Sets sets;
  int64_t number = 0;
  for (const Phase& d : along[0])
    for (const Phase& h : along[1])
      for (const Phase& w : along[2]) {
        const Key key{d.geometry(), h.geometry(), w.geometry()};
        sets[{key, apart ? ++number : 0}].push_back({d, h, w});
      }
  return sets;
}

// Vectors of 16 products for each input channel and voxel.
int64_t products_of(const Sets& sets, int64_t outputs) {
  int64_t sum = 0;
  for (const auto& entry : sets) {
    const auto& p = entry.second[0];
    const auto count = static_cast<int64_t>(entry.second.size());
    sum += p[0].taps * p[1].taps * p[2].taps * ceil_div(count * outputs, kBlock);
  }
  return sum;
}

// The cheapest of: no axis alike, W, H and W, all.
Sets cheapest(Axes along, int64_t outputs) {
  Sets best = sets_of(along, false);
  for (size_t axis = 3; axis-- > 0;) {
    along[axis] = alike(along[axis]);
    Sets found = sets_of(along, false);
    if (products_of(found, outputs) < products_of(best, outputs)) best = std::move(found);
  }
  return best;
}

Array part_of(const Array& array, int64_t from, int64_t count) {
  return array.data ? Array{array.data + from, count} : array;
}

ActivationSpec part_of(const ActivationSpec& act, int64_t from, int64_t count) {
  ActivationSpec part = act;
  part.slope = part_of(act.slope, from, count);
  return part;
}

}  // namespace

// How many groups make whole blocks of channels on both sides.
int64_t groups_together(int64_t inputs, int64_t outputs) {
  const auto needed = [](int64_t n) { return kBlock / std::gcd<int64_t>(kBlock, n); };
  return std::lcm(needed(inputs), needed(outputs));
}

// --- groups ------------------------------------------------------------------------------------

// [lead][taps][inputs][all outputs] (transposed: [all inputs][outputs]), of which groups first to
// first + n, as [lead][taps][n inputs][n outputs] with zeros between groups.
static std::vector<float> dense_weights(const ConvSpec& spec, int64_t lead, int64_t inputs,
                                        int64_t outputs, int64_t first, int64_t n) {
  const int64_t cin = inputs * n, cout = outputs * n, groups = spec.groups;
  std::vector<float> dense(static_cast<size_t>(product({lead, cin, cout})), 0.0f);
  for (int64_t t = 0; t < lead; ++t)
    for (int64_t g = 0; g < n; ++g)
      for (int64_t i = 0; i < inputs; ++i) {
        const int64_t row = spec.transposed ? ((t * groups + first + g) * inputs + i) * outputs
                                            : ((t * inputs + i) * groups + first + g) * outputs;
        copy_floats(dense.data() + (t * cin + g * inputs + i) * cout + g * outputs,
                    spec.weight.data + row, outputs);
      }
  return dense;
}

// `build` gets the specification of each part, without groups, and its channels.
void Engine::each_group(const ConvSpec& spec,
                        const std::function<void(const ConvSpec&, const Channels&)>& build) {
  const int64_t groups = spec.groups, cin = extent(spec.in).c, cout = spec.out_channels;
  if (groups < 1 || cout < 1 || cin % groups || cout % groups)
    refuse(std::to_string(cin) + " and " + std::to_string(cout) + " channels in " +
           std::to_string(groups) + " groups");
  const int64_t inputs = cin / groups, outputs = cout / groups;
  const int64_t k = spec.condition < 0 ? 1 : extent(spec.condition).c;
  const int64_t lead = product({k, taps_of(spec.window)});
  checked(spec.weight, product({lead, groups, inputs, outputs}), "a convolution's weight");
  checked(spec.bias, product({k, cout}), "a convolution's bias");
  const int64_t together = std::min(groups_together(inputs, outputs), groups);
  for (int64_t first = 0; first < groups; first += together) {
    const int64_t n = std::min(together, groups - first);
    const Channels at{first * inputs, n * inputs, first * outputs, n * outputs};
    ConvSpec part = spec;
    part.groups = 1;
    part.out_channels = static_cast<int>(at.outputs);
    const std::vector<float> weight = dense_weights(spec, lead, inputs, outputs, first, n);
    part.weight = {weight.data(), static_cast<int64_t>(weight.size())};
    std::vector<float> bias(static_cast<size_t>(k * at.outputs));
    for (int64_t i = 0; i < k; ++i)
      copy_floats(bias.data() + i * at.outputs, spec.bias.data + i * cout + at.out, at.outputs);
    part.bias = {bias.data(), static_cast<int64_t>(bias.size())};
    part.prologue_scale = part_of(spec.prologue_scale, at.in, at.inputs);
    part.prologue_shift = part_of(spec.prologue_shift, at.in, at.inputs);
    part.prologue_act = part_of(spec.prologue_act, at.in, at.inputs);
    part.act = part_of(spec.act, at.out, at.outputs);
    part.second_scale = part_of(spec.second_scale, at.out, at.outputs);
    part.second_shift = part_of(spec.second_shift, at.out, at.outputs);
    part.second_act = part_of(spec.second_act, at.out, at.outputs);
    build(part, at);
  }
}

// A part of `whole`, with these of its channels; `conv`: the voxels that it computes.
std::shared_ptr<Engine::Conv> Engine::part_of_conv(const Conv& whole, const ConvSpec& spec,
                                                   const Extent& conv, const Channels& at) {
  auto c = std::make_shared<Conv>();
  ConvArgs& a = c->args;
  a.window = spec.window;
  a.in_extent = whole.args.in_extent;
  a.out_extent = whole.args.out_extent;
  a.conv_extent = conv;
  a.in_extent.c = at.inputs;
  a.out_extent.c = a.conv_extent.c = at.outputs;
  c->in = whole.in, c->out = whole.out, c->second = whole.second;
  c->residual = whole.residual, c->condition = whole.condition;
  c->in_offset = at.in * a.in_extent.voxels();
  c->out_offset = at.out * a.out_extent.voxels();
  return c;
}

int Engine::grouped(const ConvSpec& spec, const std::shared_ptr<Conv>& whole) {
  if (spec.pool || spec.shortcut >= 0)
    refuse("a convolution in groups takes no pooling or shortcut");
  each_group(spec, [&](const ConvSpec& given, const Channels& at) {
    const auto c = part_of_conv(*whole, given, whole->args.conv_extent, at);
    c->points = winograd_points(given);
    std::copy(given.tile, given.tile + 3, c->args.tile);
    c->args.pairs = given.pairs && c->points;
    c->kind = c->points ? StepKind::winograd : gathered(given);
    keep_maps(*c, given);
    keep_weights(*c, given);
    partition(*c);
    whole->parts.push_back(c);
  });
  whole->kind = whole->parts[0]->kind;
  return finish_parts(whole);
}

// --- phases ------------------------------------------------------------------------------------

// The taps of a phase, [K][these][Cin][sets][Cout]; `weight` is [K][taps][Cin][Cout]. Depthwise:
// [these][C].
static std::vector<float> phase_weights(const ConvSpec& spec, int64_t k, int64_t cin,
                                        const std::vector<std::array<Phase, 3>>& sets) {
  const int64_t* kernel = spec.window.kernel;
  const int64_t cout = spec.out_channels, taps = taps_of(spec.window);
  const int64_t count = static_cast<int64_t>(sets.size());
  const int64_t row = count * cout;
  const auto& first = sets[0];
  const int64_t these = first[0].taps * first[1].taps * first[2].taps;
  std::vector<float> made(static_cast<size_t>(std::max<int64_t>(k * these * cin * row, 1)), 0.0f);
  for (int64_t i = 0; i < k; ++i)
    for (int64_t s = 0; s < count; ++s)
      for (int64_t t = 0; t < these; ++t) {
        const auto& p = sets[static_cast<size_t>(s)];
        const int64_t at[3] = {t / (p[1].taps * p[2].taps), t / p[2].taps % p[1].taps,
                               t % p[2].taps};
        int64_t tap = 0;
        bool there = true;
        for (size_t a = 0; a < 3; ++a) {
          const int64_t own = p[a].tap(at[a]);
          there = there && own >= 0;
          tap = tap * kernel[a] + own;
        }
        if (!there) continue;
        for (int64_t c = 0; c < cin; ++c)
          copy_floats(made.data() + ((i * these + t) * cin + c) * row + s * cout,
                      spec.weight.data + ((i * taps + tap) * cin + c) * cout, cout);
      }
  return made;
}

void Engine::add_phases(const ConvSpec& spec, const std::shared_ptr<Conv>& whole,
                        const Channels& at) {
  const Extent& o = whole->args.out_extent;
  const int64_t size[3] = {o.d, o.h, o.w};
  Axes along;
  for (int i = 0; i < 3; ++i) along[static_cast<size_t>(i)] = phases_of(spec.window, i, size[i]);
  // Depthwise ones each alone: their channels are their inputs.
  const Sets sets = spec.depthwise ? sets_of(along, true) : cheapest(along, at.outputs);
  const int64_t k = spec.condition < 0 ? 1 : extent(spec.condition).c;
  const int64_t cin = spec.depthwise ? 1 : at.inputs, cout = at.outputs;
  for (const auto& entry : sets) {
    const auto& members = entry.second;
    const auto& p = members[0];
    const auto count = static_cast<int64_t>(members.size());
    ConvSpec given = spec;
    for (size_t i = 0; i < 3; ++i) {
      given.window.kernel[i] = p[i].taps;
      given.window.stride[i] = 1;
      given.window.padding[i] = p[i].padding;
      given.window.dilation[i] = p[i].dilation;
    }
    const auto c = part_of_conv(*whole, given, {cout, p[0].count, p[1].count, p[2].count}, at);
    ConvArgs& a = c->args;
    c->kind = spec.depthwise ? StepKind::depthwise : StepKind::gather;
    keep_maps(*c, given);
    const int64_t row = count * cout;
    const std::vector<float> weight = phase_weights(spec, k, cin, members);
    given.weight = {weight.data(), k * taps_of(given.window) * cin * row};
    std::vector<float> bias(static_cast<size_t>(k * row), 0.0f);
    for (int64_t i = 0; i < k; ++i)
      for (int64_t s = 0; s < count; ++s)
        copy_floats(bias.data() + i * row + s * cout, spec.bias.data + i * cout, cout);
    given.bias = {bias.data(), k * row};
    a.conv_extent.c = row;
    a.sets = count;
    for (size_t i = 0; i < 3; ++i) a.place[i] = spec.window.stride[i], a.start[i] = p[i].start;
    for (const auto& member : members)
      for (const Phase& phase : member) c->starts.push_back(phase.start);
    a.starts = c->starts.data();
    keep_weights(*c, given);
    partition(*c);
    whole->parts.push_back(c);
  }
}

int Engine::transposed(const ConvSpec& spec, const std::shared_ptr<Conv>& whole) {
  if (spec.pool || spec.second || spec.sparse || spec.tile[0] || spec.shortcut >= 0)
    refuse("a transposed convolution takes no pooling, second output, tile or shortcut");
  if (spec.depthwise) {
    const int64_t c = extent(spec.in).c;
    if (spec.condition >= 0 || c != spec.out_channels)
      refuse("a depthwise convolution keeps the number of channels and is not generated");
    checked(spec.weight, product({taps_of(spec.window), c}), "a convolution's weight");
    checked(spec.bias, c, "a convolution's bias");
    add_phases(spec, whole, {0, c, 0, c});
  } else {
    each_group(spec,
               [&](const ConvSpec& given, const Channels& at) { add_phases(given, whole, at); });
  }
  whole->kind = StepKind::transposed;
  return finish_parts(whole);
}

// --- both --------------------------------------------------------------------------------------

int Engine::finish_parts(const std::shared_ptr<Conv>& whole) {
  std::vector<int> reads{whole->in}, writes{whole->out};
  for (int i : {whole->residual, whole->condition})
    if (i >= 0) reads.push_back(i);
  if (whole->second >= 0) writes.push_back(whole->second);
  step(whole->kind, reads, writes, [this, whole] { run_parts(*whole); });
  steps_.back().parts = whole;
  return whole->out;
}

void Engine::run_parts(Conv& whole) {
  int64_t tasks = 0;
  for (const auto& c : whole.parts) {
    if (c->condition >= 0) generate(*c);
    point(*c);
    tasks += c->tasks;
  }
  parallel(tasks, 1, [&](int64_t begin, int64_t end, int thread) {
    int64_t first = 0;
    for (const auto& c : whole.parts) {
      const int64_t from = std::max(begin, first), to = std::min(end, first + c->tasks);
      if (from < to) run_tasks(*c, from - first, to - first, thread);
      first += c->tasks;
    }
  });
}

}  // namespace hfrt
