// Convolutions: the choice of a kernel, its weights, its tasks.
#include <algorithm>
#include <cstring>

#include "internal.hpp"

namespace hfrt {

int Engine::conv(const ConvSpec& spec) {
  const Extent e = extent(spec.in);
  check(spec.window);
  const int64_t cout = spec.out_channels;
  if (cout < 1) refuse("a convolution needs an output channel");
  Extent conv{cout, window_size(e.d, spec.window, 0), window_size(e.h, spec.window, 1),
              window_size(e.w, spec.window, 2)};
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
    out = {cout, (conv.d + 1) / 2, (conv.h + 1) / 2, (conv.w + 1) / 2};
  }
  auto c = std::make_shared<Conv>();
  const auto converted = [&](int value, bool stored) { return value < 0 ? -1 : as(value, stored); };
  c->in = as(spec.in, true);
  c->shortcut = converted(spec.shortcut, true);
  c->residual = converted(spec.residual, true);
  c->condition = converted(spec.condition, false);
  ConvArgs& a = c->args;
  a.in_extent = e, a.conv_extent = conv, a.out_extent = out, a.window = spec.window;
  c->out = add(out, true);
  if (spec.second) c->second = add(spec.sparse ? conv : out, true);
  if (spec.residual >= 0 && !same(extent(spec.residual), conv))
    refuse("the residual " + text(extent(spec.residual)) + " does not fit " + text(conv));
  build_conv(c, spec);

  std::vector<int> reads{c->in}, writes{c->out};
  for (int value : {c->residual, c->condition, c->shortcut})
    if (value >= 0) reads.push_back(value);
  if (c->second >= 0) writes.push_back(c->second);
  static const char* kinds[] = {"winograd", "gather", "one-channel", "depthwise"};
  step(kinds[static_cast<int>(c->kind)], reads, writes, [this, c] { run_conv(*c); });
  steps_.back().conv = c;
  return c->out;
}

void Engine::build_conv(const std::shared_ptr<Conv>& c, const ConvSpec& spec) {
  ConvArgs& a = c->args;
  const Extent &e = a.in_extent, &o = a.conv_extent;
  const Window& k = a.window;
  const int64_t taps = product({k.kernel[0], k.kernel[1], k.kernel[2]});
  const int64_t cin = e.c, cout = o.c, vectors = blocks_of(cout);
  const int64_t per = kernels_.vectors_per_panel, panels = (vectors + per - 1) / per;
  const bool is_input = std::find(inputs_.begin(), inputs_.end(), c->in) != inputs_.end();

  int64_t points = 0;
  if (spec.tile[0] || spec.tile[1] || spec.tile[2]) {
    points = 1;
    for (int i = 0; i < 3; ++i) {
      const bool fits = k.stride[i] == 1 ? spec.tile[i] == 2 || spec.tile[i] == 4
                                         : k.stride[i] == 2 && spec.tile[i] == 2;
      if (!fits || k.stride[i] != k.stride[0] || k.kernel[i] != 3 || k.dilation[i] != 1 ||
          spec.depthwise)
        refuse(
            "Winograd tiles are 2 or 4, for 3x3x3 kernels with dilation 1 and stride 1, "
            "or 2 with stride 2");
      points *= k.stride[i] == 2 ? 5 : spec.tile[i] + 2;
      a.tile[i] = spec.tile[i];
    }
    if (spec.pairs && spec.tile[0] * spec.tile[1] * spec.tile[2] != 8)
      refuse("only 2x2x2 tiles take pairs of bfloat16");
    a.pairs = spec.pairs;
  }
  c->kind = spec.depthwise ? Conv::Kind::depthwise
            : points       ? Conv::Kind::winograd
            : cin == 1 && is_input && spec.condition < 0 && spec.prologue_scale.data == nullptr &&
                    (k.stride[2] == 1 || (k.stride[2] == 2 && cout >= kBlock && !spec.pool))
                ? Conv::Kind::one_channel
                : Conv::Kind::gather;
  if (spec.pool && c->kind != Conv::Kind::winograd && c->kind != Conv::Kind::one_channel)
    refuse("only a Winograd or a one-channel convolution pools its result");
  if (spec.depthwise && (cin != cout || spec.condition >= 0))
    refuse("a depthwise convolution keeps the number of channels and is not generated");

  // epilogue and prologue
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
    if (c->kind == Conv::Kind::depthwise) refuse("a depthwise convolution takes no prologue");
  }

  // weights
  const int64_t raw = product({taps, spec.depthwise ? 1 : cin, cout});
  const int64_t lanes = filled(cout);
  if (spec.condition >= 0) {
    const Extent& ce = extent(spec.condition);
    if (ce.voxels() != 1) refuse("a condition is a vector, not " + text(ce));
    c->conditions = ce.c;
    c->generator = {keep(spec.weight, product({ce.c, raw}), "a generated convolution's weight",
                         product({ce.c, raw})),
                    ce.c * raw};
    c->bias_generator = {
        keep(spec.bias, ce.c * cout, "a generated convolution's bias", ce.c * cout), ce.c * cout};
    c->raw = reserve(raw);
    c->bias = reserve(lanes);
    a.epilogue.bias = c->bias;
  } else {
    checked(spec.weight, raw, "a convolution's weight");
    a.epilogue.bias = keep(spec.bias, lanes, "a convolution's bias", cout);
  }
  // 32-bit units of the packed weights for `n` inputs, and of a row of `n` factors
  const int64_t pair = points && !a.pairs ? 1 : kernels_.pair;
  const auto steps_of = [pair](int64_t n) { return (n + pair - 1) / pair; };
  if (c->kind == Conv::Kind::winograd || c->kind == Conv::Kind::gather) {
    c->packed = reserve(points ? product({points, steps_of(cin), lanes})
                               : product({steps_of(taps * cin), lanes}));
    if (spec.condition < 0) pack_weights(*c, spec.weight.data);
    a.weight = c->packed;
  } else if (c->kind == Conv::Kind::depthwise) {
    float* to = reserve(taps * lanes);
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t i = 0; i < cout; ++i) to[t * lanes + i] = spec.weight.data[t * cout + i];
    a.weight = to;
  } else {
    float* to = reserve(taps * lanes);
    for (int64_t t = 0; t < taps; ++t)
      for (int64_t i = 0; i < cout; ++i)
        to[(i / kBlock * taps + t) * kBlock + i % kBlock] = spec.weight.data[t * cout + i];
    a.weight = to;
  }

  int64_t shortcut_floats = 0;
  if (spec.shortcut >= 0) {
    if (c->kind != Conv::Kind::winograd || spec.residual >= 0 || spec.pool || spec.condition >= 0)
      refuse("a shortcut goes with a Winograd convolution that has no residual and no pooling");
    const Extent se = extent(spec.shortcut);
    const int64_t size[3] = {se.d, se.h, se.w}, wanted[3] = {o.d, o.h, o.w};
    for (int i = 0; i < 3; ++i) {
      a.shortcut.stride[i] = spec.shortcut_stride[i];
      if (spec.shortcut_stride[i] < 1 || (size[i] - 1) / spec.shortcut_stride[i] + 1 != wanted[i])
        refuse("the shortcut from " + text(se) + " does not fit " + text(o));
    }
    checked(spec.shortcut_weight, product({se.c, cout}), "the shortcut's weight");
    a.shortcut.in_extent = se;
    float* packed = reserve(product({se.c, lanes}));
    kernels_.pack(spec.shortcut_weight.data, cout, se.c, packed, 0, panels);
    a.shortcut.weight = packed;
    shortcut_floats =
        a.tile[0] * a.tile[1] * a.tile[2] * (filled(se.c) / kernels_.pair + lanes) + kBlock;
  }

  if (points == 216) prepare_narrow(*c, spec);

  // Partition and scratch. Blocks are small enough for the second-level cache, and there are a
  // few tasks for each thread; what is left over is split along the output channels.
  const int64_t threads = pool_.threads();
  a.ring = e.d;
  if (c->kind == Conv::Kind::winograd) {
    int64_t tiles = 1;
    const int64_t size[3] = {o.d, o.h, o.w};
    for (int i = 0; i < 3; ++i) tiles *= (size[i] + a.tile[i] - 1) / a.tile[i];
    const int64_t row = filled(cin) / pair + lanes;
    // (U and M) in about 800 KB
    const int64_t fit = 200'000 / (points * row);
    const int64_t unit = kernels_.rows_two;
    a.rows = std::max<int64_t>(fit / unit * unit, unit);
    a.rows = std::min(a.rows, std::max<int64_t>((tiles + threads - 1) / threads, 1));
    a.count = tiles;
    scratch(points * kBlock + points * (a.rows * filled(cin) + kBlock) / pair +
            points * (a.rows * lanes + kBlock) + shortcut_floats);
  } else if (c->kind == Conv::Kind::gather) {
    const int64_t depth = taps * cin, lda = filled(depth) + kBlock;
    const int64_t unit = vectors == 1 ? kernels_.rows_one : kernels_.rows_two;
    const int64_t fit = 100'000 / steps_of(lda);
    a.rows = std::max<int64_t>(fit / unit * unit, unit);
    a.count = o.voxels();
    a.rows = std::min(a.rows, std::max<int64_t>((a.count + threads - 1) / threads, 1));
    scratch(a.rows * steps_of(lda) + a.rows * (lanes + per * kBlock));
  } else if (c->kind == Conv::Kind::one_channel) {
    scratch(3 * kBlock * kBlock);
    // The borders of the padded input stay zero from here on.
    a.in_extent = {1, e.d + 2 * k.padding[0], e.h + 2 * k.padding[1], e.w + 2 * k.padding[2]};
    c->padded = reserve(product({a.in_extent.d, a.in_extent.h, a.in_extent.w}) + kSpare);
    a.in = c->padded;
    for (int64_t t = 0; t < taps; ++t)
      c->shift.push_back((t / (k.kernel[1] * k.kernel[2]) * k.dilation[0] * a.in_extent.h +
                          t / k.kernel[2] % k.kernel[1] * k.dilation[1]) *
                             a.in_extent.w +
                         t % k.kernel[2] * k.dilation[2]);
    a.shift = c->shift.data();
  }
  if (c->kind == Conv::Kind::winograd || c->kind == Conv::Kind::gather) {
    const int64_t blocks = (a.count + a.rows - 1) / a.rows;
    a.splits = std::clamp<int64_t>((2 * threads + blocks - 1) / blocks, 1, panels);
    if (blocks >= threads && blocks % threads == 0) a.splits = 1;
    c->tasks = blocks * a.splits;
  } else if (c->kind == Conv::Kind::one_channel) {
    a.ring = a.out_extent.d;
    c->tasks = a.out_extent.d * a.out_extent.h;
  } else {
    c->tasks = vectors * o.d * o.h;
  }
}

// What the narrow kernel would need, where it could do the convolution; see choose_narrow.
void Engine::prepare_narrow(Conv& c, const ConvSpec& spec) {
  ConvArgs& a = c.args;
  const int64_t cin = a.in_extent.c, cout = a.conv_extent.c, groups = narrow_groups(cout);
  const int64_t* padding = a.window.padding;
  if (cin > kNarrowIn || cout > kNarrowOut || spec.condition >= 0 || spec.pool ||
      spec.residual >= 0 || a.prologue.scale || a.epilogue.slopes() || padding[0] != 1 ||
      padding[1] != 1 || padding[2] != 1 ||
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

// Weights [taps][Cin][Cout] as the convolution's kernel reads them.
void Engine::pack_weights(const Conv& c, const float* weight) {
  const ConvArgs& a = c.args;
  const int64_t cin = a.in_extent.c, cout = a.conv_extent.c, vectors = blocks_of(cout);
  if (c.kind == Conv::Kind::winograd) {
    const int64_t pair = a.pairs ? kernels_.pair : 1;
    parallel(vectors * ((cin + pair - 1) / pair), 32, [&](int64_t begin, int64_t end, int) {
      kernels_.winograd_weights(weight, a, c.packed, begin, end);
    });
    return;
  }
  const int64_t* k = a.window.kernel;
  const int64_t per = kernels_.vectors_per_panel, depth = k[0] * k[1] * k[2] * cin;
  parallel((vectors + per - 1) / per, 1, [&](int64_t begin, int64_t end, int) {
    kernels_.pack(weight, cout, depth, c.packed, begin, end);
  });
}

void Engine::generate(Conv& c) {
  const float* e = at(c.condition);
  const ConvArgs& a = c.args;
  const int64_t cout = a.conv_extent.c, n = c.generator.size / c.conditions;
  parallel((n + 1023) / 1024, 1, [&](int64_t begin, int64_t end, int) {
    kernels_.mix(c.generator.data, e, c.conditions, n, c.raw, begin * 1024,
                 std::min(end * 1024, n));
  });
  kernels_.mix(c.bias_generator.data, e, c.conditions, cout, c.bias, 0, cout);
  pack_weights(c, c.raw);
}

void Engine::run_conv(Conv& c) {
  ConvArgs& a = c.args;
  if (c.condition >= 0) generate(c);
  a.out = at(c.out);
  a.epilogue.residual = c.residual >= 0 ? at(c.residual) : nullptr;
  a.epilogue.second = c.second >= 0 ? at(c.second) : nullptr;
  if (c.kind == Conv::Kind::one_channel) {
    pad_input(c);
    parallel(c.tasks, 1,
             [&](int64_t b, int64_t n, int t) { kernels_.one_channel(a, b, n, scratch_of(t)); });
    return;
  }
  a.in = at(c.in);
  a.shortcut.in = c.shortcut >= 0 ? at(c.shortcut) : nullptr;
  if (c.producer) {
    run_ring(c);
    return;
  }
  if (c.kind == Conv::Kind::depthwise) {
    parallel(c.tasks, 4, [&](int64_t b, int64_t n, int) { kernels_.depthwise(a, b, n); });
    return;
  }
  const auto kernel = c.narrow                         ? kernels_.narrow
                      : c.kind == Conv::Kind::winograd ? kernels_.winograd
                                                       : kernels_.gather;
  parallel(c.tasks, 1, [&](int64_t b, int64_t n, int t) { kernel(a, b, n, scratch_of(t)); });
}

void Engine::pad_input(const Conv& c) {
  const auto which = std::find(inputs_.begin(), inputs_.end(), c.in) - inputs_.begin();
  const float* from = input_data_[static_cast<size_t>(which)];
  const Extent &e = extent(c.in), &o = c.args.in_extent;
  const int64_t* p = c.args.window.padding;
  parallel(e.d, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin * e.h; row < end * e.h; ++row)
      std::memcpy(c.padded + ((row / e.h + p[0]) * o.h + row % e.h + p[1]) * o.w + p[2],
                  from + row * e.w, static_cast<size_t>(e.w) * sizeof(float));
  });
}

// A fused pair: some planes of the first convolution, then the tiles of the second that they
// suffice for, and so on. The planes are in a ring, and never leave the shared cache.
void Engine::run_ring(Conv& c) {
  Conv& p = *c.producer;
  ConvArgs& a = c.args;
  pad_input(p);
  p.args.out = at(c.in);
  const Extent &o = a.conv_extent, &e = a.in_extent;
  const int64_t layer = (o.h + a.tile[1] - 1) / a.tile[1] * ((o.w + a.tile[2] - 1) / a.tile[2]);
  const int64_t layers = (o.d + a.tile[0] - 1) / a.tile[0];
  const int64_t step = (a.ring - 2) / a.tile[0];
  int64_t made = 0;
  for (int64_t z = 0; z < layers; z += step) {
    const int64_t next = std::min(z + step, layers);
    const int64_t need = std::clamp<int64_t>(next * a.tile[0] + 2 - a.window.padding[0], made, e.d);
    parallel((need - made) * e.h, 4, [&](int64_t b, int64_t n, int t) {
      kernels_.one_channel(p.args, made * e.h + b, made * e.h + n, scratch_of(t));
    });
    made = need;
    a.first = z * layer;
    a.count = (next - z) * layer;
    parallel((a.count + a.rows - 1) / a.rows, 1,
             [&](int64_t b, int64_t n, int t) { kernels_.winograd(a, b, n, scratch_of(t)); });
  }
}

}  // namespace hfrt
