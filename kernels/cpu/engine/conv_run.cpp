// Running a convolution, alone or as one of a fused pair.
#include <algorithm>

#include "internal.hpp"

namespace hfrt {

void Engine::generate(Conv& c) {
  const float* e = at(c.condition);
  const int64_t cout = c.args.conv_extent.c, n = c.generator.size / c.conditions;
  parallel(ceil_div(n, 1024), 1, [&](int64_t begin, int64_t end, int) {
    kernels_.mix(c.generator.data, e, c.conditions, n, c.raw, begin * 1024,
                 std::min(end * 1024, n));
  });
  kernels_.mix(c.bias_generator.data, e, c.conditions, cout, c.bias, 0, cout);
  pack_weights(c, c.raw);
}

void Engine::run_conv(Conv& c) {
  if (c.planar) return run_conv(*c.planar);
  ConvArgs& a = c.args;
  if (c.condition >= 0) generate(c);
  a.out = at(c.out);
  a.epilogue.residual = c.residual >= 0 ? at(c.residual) : nullptr;
  a.epilogue.second = c.second >= 0 ? at(c.second) : nullptr;
  if (c.kind == StepKind::planar) {
    pad_input(c);
    parallel(c.tasks, 1,
             [&](int64_t b, int64_t n, int t) { kernels_.planar(a, b, n, scratch_of(t)); });
    return;
  }
  point(c);
  if (c.producer) {
    run_ring(c);
    return;
  }
  parallel(c.tasks, c.kind == StepKind::depthwise ? 4 : 1,
           [&](int64_t b, int64_t n, int t) { run_tasks(c, b, n, t); });
}

// Where a convolution's volumes stand.
void Engine::point(Conv& c) {
  ConvArgs& a = c.args;
  const auto place = [&](int i, int64_t offset) -> char* {
    return i < 0 ? nullptr : memory(i) + offset * bytes(i);
  };
  a.in = place(c.in, c.in_offset);
  a.out = place(c.out, c.out_offset);
  a.epilogue.residual = place(c.residual, c.out_offset);
  a.epilogue.second = place(c.second, c.out_offset);
  a.shortcut.in = place(c.shortcut, 0);
}

void Engine::run_tasks(const Conv& c, int64_t begin, int64_t end, int thread) {
  if (c.kind == StepKind::depthwise) {
    kernels_.depthwise(c.args, begin, end);
    return;
  }
  const auto kernel = c.kind == StepKind::narrow_winograd ? kernels_.narrow
                      : c.kind == StepKind::winograd      ? kernels_.winograd
                      : c.kind == StepKind::pointwise     ? kernels_.pointwise
                                                          : kernels_.gather;
  kernel(c.args, begin, end, scratch_of(thread));
}

void Engine::pad_input(const Conv& c) {
  const float* from = value(c.in).planar ? at(c.in) : value(c.in).given;
  const Extent &e = extent(c.in), &o = c.args.in_extent;
  const int64_t* p = c.args.window.padding;
  // A task is a plane of one channel.
  parallel(e.c * e.d, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin * e.h; row < end * e.h; ++row) {
      const int64_t channel = row / e.h / e.d, z = row / e.h % e.d, y = row % e.h;
      copy_floats(c.padded + ((channel * o.d + z + p[0]) * o.h + y + p[1]) * o.w + p[2],
                  from + row * e.w, e.w);
    }
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
  const int64_t layer = ceil_div(o.h, a.tile[1]) * ceil_div(o.w, a.tile[2]);
  const int64_t layers = ceil_div(o.d, a.tile[0]);
  const int64_t step = (a.ring - 2) / a.tile[0];
  int64_t made = 0;
  for (int64_t z = 0; z < layers; z += step) {
    const int64_t next = std::min(z + step, layers);
    const int64_t need = std::clamp<int64_t>(next * a.tile[0] + 2 - a.window.padding[0], made, e.d);
    parallel((need - made) * e.h, 4, [&](int64_t b, int64_t n, int t) {
      kernels_.planar(p.args, made * e.h + b, made * e.h + n, scratch_of(t));
    });
    made = need;
    a.first = z * layer;
    a.count = (next - z) * layer;
    parallel(ceil_div(a.count, a.rows), 1,
             [&](int64_t b, int64_t n, int t) { kernels_.winograd(a, b, n, scratch_of(t)); });
  }
}

}  // namespace hfrt
