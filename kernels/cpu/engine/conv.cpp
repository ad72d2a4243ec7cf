// Building a convolution: the choice of a kernel, its weights, its tasks.
#include <algorithm>

#include "internal.hpp"

namespace hfrt {

// What comes out, [C][D][H][W]: of the convolution, and of the step with its pooling.
static Extent conv_extent(const ConvSpec& spec, const Extent& in) {
  check(spec.window);
  if (spec.out_channels < 1) refuse("a convolution needs an output channel");
  const Window& k = spec.window;
  const int64_t size[3] = {in.d, in.h, in.w};
  int64_t out[3];
  for (int i = 0; i < 3; ++i) {
    if (!spec.transposed) {
      out[i] = window_size(size[i], k, i);
      continue;
    }
    if (spec.extra[i] < 0 || spec.extra[i] >= std::max(k.stride[i], k.dilation[i]))
      refuse("a transposed convolution's extra voxels are fewer than its stride or dilation");
    out[i] = (size[i] - 1) * k.stride[i] - 2 * k.padding[i] + k.dilation[i] * (k.kernel[i] - 1) +
             spec.extra[i] + 1;
    if (out[i] < 1) refuse("a transposed convolution of " + text(in) + " without a voxel");
  }
  return {spec.out_channels, out[0], out[1], out[2]};
}

static Extent out_extent(const ConvSpec& spec, const Extent& conv) {
  Extent out = conv;
  if (spec.pool) {
    out.d /= 2, out.h /= 2, out.w /= 2;
    if (out.d < 1 || out.h < 1 || out.w < 1) refuse("2x2x2 pooling of " + text(conv));
    if (spec.residual >= 0 || (spec.act.kind != Act::none && spec.act.kind != Act::relu))
      refuse("pooling in a convolution goes with relu, and without a residual");
  }
  if (spec.sparse) {
    if (spec.pool || !spec.tile[0])
      refuse("only a Winograd convolution without pooling keeps every second voxel");
    out = {conv.c, (conv.d + 1) / 2, (conv.h + 1) / 2, (conv.w + 1) / 2};
  }
  return out;
}

int Engine::conv(const ConvSpec& spec) {
  auto c = std::make_shared<Conv>();
  ConvArgs& a = c->args;
  a.window = spec.window;
  a.in_extent = extent(spec.in);
  a.conv_extent = conv_extent(spec, a.in_extent);
  a.out_extent = out_extent(spec, a.conv_extent);
  const auto converted = [&](int i, bool stored) { return i < 0 ? -1 : as(i, stored); };
  c->in = as(spec.in, true);
  c->shortcut = converted(spec.shortcut, true);
  c->residual = converted(spec.residual, true);
  c->condition = converted(spec.condition, false);
  c->out = add(a.out_extent, true);
  if (spec.second) c->second = add(spec.sparse ? a.conv_extent : a.out_extent, true);
  if (spec.residual >= 0 && !same(extent(spec.residual), a.conv_extent))
    refuse("the residual " + text(extent(spec.residual)) + " does not fit " + text(a.conv_extent));

  if (spec.transposed) return transposed(spec, c);
  if (spec.groups != 1 && !spec.depthwise) return grouped(spec, c);
  choose_kernel(*c, spec);
  keep_maps(*c, spec);
  keep_weights(*c, spec);
  keep_shortcut(*c, spec);
  keep_narrow(*c, spec);
  keep_planar(*c, spec);
  partition(*c);

  std::vector<int> reads{c->in}, writes{c->out};
  for (int i : {c->residual, c->condition, c->shortcut})
    if (i >= 0) reads.push_back(i);
  if (c->second >= 0) writes.push_back(c->second);
  step(c->kind, reads, writes, [this, c] { run_conv(*c); });
  steps_.back().conv = c;
  return c->out;
}

// --- the kernel --------------------------------------------------------------------------------

int64_t winograd_points(const ConvSpec& spec) {
  if (!spec.tile[0] && !spec.tile[1] && !spec.tile[2]) return 0;
  const Window& k = spec.window;
  int64_t points = 1;
  for (int i = 0; i < 3; ++i) {
    const bool fits = k.stride[i] == 1 ? spec.tile[i] == 2 || spec.tile[i] == 4
                                       : k.stride[i] == 2 && spec.tile[i] == 2;
    if (!fits || k.stride[i] != k.stride[0] || k.kernel[i] != 3 || k.dilation[i] != 1 ||
        spec.depthwise)
      refuse(
          "Winograd tiles are 2 or 4, for 3x3x3 kernels with dilation 1 and stride 1, "
          "or 2 with stride 2");
    points *= k.stride[i] == 2 ? 5 : spec.tile[i] + 2;
  }
  if (spec.pairs && spec.tile[0] * spec.tile[1] * spec.tile[2] != 8)
    refuse("only 2x2x2 tiles take pairs of bfloat16");
  return points;
}

// How a dense convolution is done that is neither filtered nor planar.
StepKind Engine::gathered(const ConvSpec& spec) const {
  const Window& k = spec.window;
  bool single = kernels_.pointwise && spec.prologue_scale.data == nullptr;
  for (int i = 0; i < 3; ++i)
    single = single && k.kernel[i] == 1 && k.stride[i] == 1 && !k.padding[i] && !k.more[i];
  return single ? StepKind::pointwise : StepKind::gather;
}

void Engine::choose_kernel(Conv& c, const ConvSpec& spec) const {
  ConvArgs& a = c.args;
  const int64_t cin = a.in_extent.c, cout = a.conv_extent.c, stride = a.window.stride[2];
  c.points = winograd_points(spec);
  if (c.points) {
    std::copy(spec.tile, spec.tile + 3, a.tile);
    a.pairs = spec.pairs;
  }
  const bool strides = stride == 1 || (stride == 2 && cout >= kBlock && !spec.pool);
  const bool planar = cin < kBlock && has(inputs_, c.in) && spec.condition < 0 &&
                      spec.prologue_scale.data == nullptr && strides;
  c.kind = spec.depthwise ? StepKind::depthwise
           : c.points     ? StepKind::winograd
           : planar       ? StepKind::planar
                          : gathered(spec);
  if (spec.pool && c.kind != StepKind::winograd && c.kind != StepKind::planar)
    refuse("only a Winograd or a planar convolution pools its result");
  if (spec.depthwise && (cin != cout || spec.condition >= 0))
    refuse("a depthwise convolution keeps the number of channels and is not generated");
}

// The epilogue but for its bias, and the prologue.
void Engine::keep_maps(Conv& c, const ConvSpec& spec) {
  ConvArgs& a = c.args;
  const int64_t cin = a.in_extent.c, cout = a.conv_extent.c;
  a.epilogue.act = keep(spec.act, cout);
  a.epilogue.pool = spec.pool;
  a.epilogue.sparse = spec.sparse;
  if (spec.second) {
    a.epilogue.second_scale = keep(spec.second_scale, filled(cout), "the second scale", cout);
    a.epilogue.second_shift = keep(spec.second_shift, filled(cout), "the second shift", cout);
    a.epilogue.second_act = keep(spec.second_act, cout);
  }
  if (spec.prologue_scale.data != nullptr) {
    a.prologue.scale = keep(spec.prologue_scale, filled(cin), "the prologue's scale", cin);
    a.prologue.shift = keep(spec.prologue_shift, filled(cin), "the prologue's shift", cin);
    a.prologue.act = keep(spec.prologue_act, cin);
    if (c.kind == StepKind::depthwise) refuse("a depthwise convolution takes no prologue");
  }
}

// --- the weights -------------------------------------------------------------------------------

int64_t Engine::pair_of(const Conv& c) const {
  return c.points && !c.args.pairs ? 1 : kernels_.pair;
}

void Engine::keep_weights(Conv& c, const ConvSpec& spec) {
  ConvArgs& a = c.args;
  const int64_t taps = taps_of(a.window), cin = a.in_extent.c, cout = a.conv_extent.c;
  const int64_t lanes = filled(cout), pair = pair_of(c);
  if (spec.condition >= 0) {
    keep_generator(c, spec);
  } else {
    checked(spec.weight, product({taps, spec.depthwise ? 1 : cin, cout}), "a convolution's weight");
    a.epilogue.bias = keep(spec.bias, lanes, "a convolution's bias", cout);
  }
  const bool gathers = c.kind == StepKind::gather || c.kind == StepKind::pointwise;
  if (c.kind == StepKind::winograd || gathers) {
    // One more: a phase of a transposed convolution may have no tap.
    c.packed = reserve(1 + (c.points ? product({c.points, ceil_div(cin, pair), lanes})
                                     : product({ceil_div(taps * cin, pair), lanes})));
    a.weight = c.packed;
    if (spec.condition < 0) pack_weights(c, spec.weight.data);
    return;
  }
  // [tap][C filled up], or [block][tap, input channel][16]
  const bool depthwise = c.kind == StepKind::depthwise;
  const int64_t rows = depthwise ? taps : product({taps, cin});
  float* to = reserve(product({rows, lanes}));
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t i = 0; i < cout; ++i)
      to[depthwise ? t * lanes + i : (i / kBlock * rows + t) * kBlock + i % kBlock] =
          spec.weight.data[t * cout + i];
  a.weight = to;
}

// What `generate` makes the weights and the bias of each sample from, and room for these.
void Engine::keep_generator(Conv& c, const ConvSpec& spec) {
  const ConvArgs& a = c.args;
  const Extent& e = extent(spec.condition);
  const int64_t k = e.c, cout = a.conv_extent.c;
  const int64_t raw = product({taps_of(a.window), a.in_extent.c, cout});
  if (e.voxels() != 1) refuse("a condition is a vector, not " + text(e));
  const auto kept = [&](const Array& array, int64_t size, const char* what) {
    return Array{keep(array, size, what, size), size};
  };
  c.conditions = k;
  c.generator = kept(spec.weight, product({k, raw}), "a generated convolution's weight");
  c.bias_generator = kept(spec.bias, k * cout, "a generated convolution's bias");
  c.raw = reserve(raw);
  c.bias = reserve(filled(cout));
  c.args.epilogue.bias = c.bias;
}

// Weights [taps][Cin][Cout] as the convolution's kernel reads them.
void Engine::pack_weights(const Conv& c, const float* weight) {
  const ConvArgs& a = c.args;
  const int64_t cin = a.in_extent.c, cout = a.conv_extent.c, vectors = blocks_of(cout);
  if (c.kind == StepKind::winograd) {
    parallel(vectors * ceil_div(cin, pair_of(c)), 32, [&](int64_t begin, int64_t end, int) {
      kernels_.winograd_weights(weight, a, c.packed, begin, end);
    });
    return;
  }
  const int64_t depth = taps_of(a.window) * cin;
  parallel(ceil_div(vectors, kernels_.vectors_per_panel), 1, [&](int64_t begin, int64_t end, int) {
    kernels_.pack(weight, cout, depth, c.packed, begin, end);
  });
}

void Engine::keep_shortcut(Conv& c, const ConvSpec& spec) {
  if (spec.shortcut < 0) return;
  if (c.kind != StepKind::winograd || spec.residual >= 0 || spec.pool || spec.condition >= 0)
    refuse("a shortcut goes with a Winograd convolution that has no residual and no pooling");
  Shortcut& s = c.args.shortcut;
  const Extent &o = c.args.conv_extent, e = extent(spec.shortcut);
  const int64_t size[3] = {e.d, e.h, e.w}, wanted[3] = {o.d, o.h, o.w};
  for (int i = 0; i < 3; ++i) {
    s.stride[i] = spec.shortcut_stride[i];
    if (s.stride[i] < 1 || (size[i] - 1) / s.stride[i] + 1 != wanted[i])
      refuse("the shortcut from " + text(e) + " does not fit " + text(o));
  }
  checked(spec.shortcut_weight, product({e.c, o.c}), "the shortcut's weight");
  s.in_extent = e;
  float* packed = reserve(product({e.c, filled(o.c)}));
  kernels_.pack(spec.shortcut_weight.data, o.c, e.c, packed, 0,
                ceil_div(blocks_of(o.c), kernels_.vectors_per_panel));
  s.weight = packed;
}

// What the narrow kernel would need, where it could do the convolution; see choose_narrow.
void Engine::keep_narrow(Conv& c, const ConvSpec& spec) {
  ConvArgs& a = c.args;
  const int64_t cin = a.in_extent.c, cout = a.conv_extent.c, groups = narrow_groups(cout);
  const int64_t* padding = a.window.padding;
  if (c.points != 216 || cin > kNarrowIn || cout > kNarrowOut || spec.condition >= 0 || spec.pool ||
      spec.residual >= 0 || a.prologue.scale || a.epilogue.slopes() || padding[0] != 1 ||
      padding[1] != 1 || padding[2] != 1 || !same_voxels(a.in_extent, a.conv_extent) ||
      (spec.shortcut >= 0 && !same_voxels(a.shortcut.in_extent, a.in_extent)))
    return;
  float* to = reserve(216 * groups * cin * kNarrowGroup);
  a.narrow_weight = to;
  for (int64_t plane = 0; plane < 36; ++plane)
    for (int64_t first = 0; first < groups * kNarrowGroup; first += kNarrowGroup)
      for (int64_t row = 0; row < 6 * cin; ++row, to += kNarrowGroup) {
        const int64_t point = row / cin * 36 + plane;
        const float* from = c.packed + (point * cin + row % cin) * filled(cout);
        for (int64_t j = 0; j < kNarrowGroup && first + j < cout; ++j) to[j] = from[first + j];
      }
  if (spec.shortcut >= 0) {
    const int64_t size = a.shortcut.in_extent.c * cout;
    a.narrow_shortcut = keep(spec.shortcut_weight, size, "the shortcut's weight", size);
  }
  scratch(narrow_scratch(cin, cout));
}

// The planar kernel for a convolution whose input may turn out plain, where it costs less than
// filtering in blocks; see `few_enough` in tiles.py.
void Engine::keep_planar(Conv& c, const ConvSpec& spec) {
  const ConvArgs& a = c.args;
  const int64_t cin = a.in_extent.c, cout = a.conv_extent.c, stride = a.window.stride[2];
  const bool alone = spec.condition < 0 && spec.shortcut < 0 && !spec.second && !spec.pool &&
                     !spec.sparse && spec.prologue_scale.data == nullptr;
  const bool cheap =
      stride == 1 ? cin * std::min<int64_t>(cout, kBlock) <= kBlock : stride == 2 && cout >= kBlock;
  if (c.kind == StepKind::planar || c.kind == StepKind::depthwise || !alone || !cheap ||
      cin > kPlainChannels)
    return;
  auto p = std::make_shared<Conv>();
  p->args.window = a.window;
  p->args.in_extent = a.in_extent;
  p->args.conv_extent = p->args.out_extent = a.conv_extent;
  p->in = c.in, p->out = c.out, p->residual = c.residual;
  p->kind = StepKind::planar;
  keep_maps(*p, spec);
  keep_weights(*p, spec);
  partition(*p);
  c.planar = p;
}

// --- the tasks ---------------------------------------------------------------------------------

// Tasks and scratch. Blocks are small enough for the second-level cache, and there are a few tasks
// for each thread; what is left over is split along the output channels.
void Engine::partition(Conv& c) {
  ConvArgs& a = c.args;
  a.ring = a.in_extent.d;
  if (c.kind == StepKind::winograd) {
    partition_winograd(c);
  } else if (c.kind == StepKind::gather || c.kind == StepKind::pointwise) {
    partition_gather(c);
  } else if (c.kind == StepKind::planar) {
    partition_planar(c);
  } else {
    c.tasks = blocks_of(a.conv_extent.c) * a.conv_extent.d * a.conv_extent.h;
  }
}

void Engine::partition_winograd(Conv& c) {
  ConvArgs& a = c.args;
  const Extent& o = a.conv_extent;
  const int64_t cin = filled(a.in_extent.c), lanes = filled(o.c), pair = pair_of(c);
  const int64_t size[3] = {o.d, o.h, o.w};
  int64_t tiles = 1;
  for (int i = 0; i < 3; ++i) tiles *= ceil_div(size[i], a.tile[i]);
  // (U and M) in about 800 KB
  const int64_t fit = 200'000 / (c.points * (cin / pair + lanes)), unit = kernels_.rows_two;
  a.rows = std::max<int64_t>(fit / unit * unit, unit);
  a.rows = std::min(a.rows, std::max<int64_t>(ceil_div(tiles, pool_.threads()), 1));
  a.count = tiles;
  int64_t floats = c.points * kBlock + c.points * (a.rows * cin + kBlock) / pair +
                   c.points * (a.rows * lanes + kBlock);
  if (a.shortcut.weight)
    floats += a.tile[0] * a.tile[1] * a.tile[2] *
                  (filled(a.shortcut.in_extent.c) / kernels_.pair + lanes) +
              kBlock;
  scratch(floats);
  split_blocks(c);
}

void Engine::partition_gather(Conv& c) {
  ConvArgs& a = c.args;
  const int64_t lanes = filled(a.conv_extent.c), per = kernels_.vectors_per_panel;
  const int64_t lda = filled(taps_of(a.window) * a.in_extent.c) + kBlock;
  const int64_t row = ceil_div(lda, pair_of(c));
  const int64_t unit = lanes == kBlock ? kernels_.rows_one : kernels_.rows_two;
  a.rows = std::max<int64_t>(100'000 / row / unit * unit, unit);
  a.count = a.conv_extent.voxels();
  a.rows = std::min(a.rows, std::max<int64_t>(ceil_div(a.count, pool_.threads()), 1));
  scratch(a.rows * row + a.rows * (lanes + per * kBlock));
  split_blocks(c);
}

void Engine::split_blocks(Conv& c) {
  ConvArgs& a = c.args;
  const int64_t threads = pool_.threads(), blocks = ceil_div(a.count, a.rows);
  const int64_t panels = ceil_div(blocks_of(a.conv_extent.c), kernels_.vectors_per_panel);
  a.splits = std::clamp<int64_t>(ceil_div(2 * threads, blocks), 1, panels);
  if (blocks >= threads && blocks % threads == 0) a.splits = 1;
  c.tasks = blocks * a.splits;
}

void Engine::partition_planar(Conv& c) {
  ConvArgs& a = c.args;
  const Window& k = a.window;
  Extent& e = a.in_extent;
  scratch(3 * kBlock * kBlock);
  // The borders of the padded input stay zero from here on.
  const auto around = [&](int axis) { return 2 * k.padding[axis] + k.more[axis]; };
  e = {e.c, e.d + around(0), e.h + around(1), e.w + around(2)};
  c.padded = reserve(product({e.c, e.d, e.h, e.w}) + kSpare);
  a.in = c.padded;
  for (int64_t d = 0; d < k.kernel[0]; ++d)
    for (int64_t h = 0; h < k.kernel[1]; ++h)
      for (int64_t w = 0; w < k.kernel[2]; ++w)
        for (int64_t channel = 0; channel < e.c; ++channel)
          c.shift.push_back(((channel * e.d + d * k.dilation[0]) * e.h + h * k.dilation[1]) * e.w +
                            w * k.dilation[2]);
  a.shift = c.shift.data();
  a.ring = a.out_extent.d;
  c.tasks = a.out_extent.d * a.out_extent.h;
}

}  // namespace hfrt
