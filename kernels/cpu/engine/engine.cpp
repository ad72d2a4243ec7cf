#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hfrt {
namespace {

// No tensor of a 3D network comes near; beyond it, a hostile file.
constexpr int64_t kMostFloats = int64_t{1} << 33;

[[noreturn]] void refuse(const std::string& why) { throw std::invalid_argument(why); }

std::string text(const Extent& e) {
  return "[" + std::to_string(e.c) + ", " + std::to_string(e.d) + ", " + std::to_string(e.h) +
         ", " + std::to_string(e.w) + "]";
}

int64_t product(std::initializer_list<int64_t> factors) {
  int64_t result = 1;
  for (int64_t f : factors)
    if (f < 0 || __builtin_mul_overflow(result, f, &result) || result > kMostFloats)
      refuse("a tensor of more than 2^33 numbers");
  return result;
}

bool same(const Extent& a, const Extent& b) {
  return a.c == b.c && a.d == b.d && a.h == b.h && a.w == b.w;
}

int64_t filled(int64_t channels) { return blocks_of(channels) * kBlock; }

int64_t window_size(int64_t in, const Window& k, int axis, bool ceil = false) {
  const int64_t reach = k.dilation[axis] * (k.kernel[axis] - 1) + 1;
  const int64_t room = in + 2 * k.padding[axis] - reach;
  if (room < 0)
    refuse("a window of " + std::to_string(reach) + " voxels on an axis of " + std::to_string(in) +
           " with padding " + std::to_string(k.padding[axis]));
  int64_t size = room / k.stride[axis] + 1;
  if (ceil && room % k.stride[axis] != 0 &&
      size * k.stride[axis] < in + k.padding[axis])  // the last window starts inside
    ++size;
  return size;
}

void check(const Window& k) {
  for (int i = 0; i < 3; ++i) {
    const int64_t most = int64_t{1} << 20;
    if (k.kernel[i] < 1 || k.stride[i] < 1 || k.dilation[i] < 1 || k.padding[i] < 0 ||
        k.kernel[i] > most || k.stride[i] > most || k.dilation[i] > most || k.padding[i] > most)
      refuse("kernel, stride and dilation must be 1 or more, padding 0 or more");
  }
}

}  // namespace

void Release::operator()(float* p) const {
#if defined(__linux__)
  if (base != nullptr) {
    munmap(base, bytes);
    return;
  }
#endif
  std::free(p);
}

Floats allocate(int64_t count) {
  if (count < 0 || count > kMostFloats) refuse("a tensor of more than 2^33 numbers");
  const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 64 + 63) / 64 * 64;
#if defined(__linux__)
  // Winograd writes to hundreds of places at once, each on a page of its own: with small pages the
  // address translation bounds it. Fresh pages from the kernel can be huge, the heap's cannot.
  constexpr size_t kHugePage = size_t{1} << 21;
  if (bytes >= kHugePage / 2) {
    const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
    void* base = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base != MAP_FAILED) {
      const auto address = (reinterpret_cast<uintptr_t>(base) + kHugePage - 1) / kHugePage;
      auto* aligned = reinterpret_cast<float*>(address * kHugePage);
      madvise(aligned, whole - kHugePage, MADV_HUGEPAGE);
      return Floats(aligned, Release{base, whole});
    }
    refuse("no memory for " + std::to_string(bytes >> 20) + " MiB");
  }
#endif
  auto* memory = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (memory == nullptr) refuse("no memory for " + std::to_string(bytes >> 20) + " MiB");
  return Floats(memory, Release{});
}

struct Engine::Conv {
  enum class Kind { winograd, gather, one_channel, depthwise } kind = Kind::gather;
  ConvArgs args;
  int in = -1, out = -1, second = -1, residual = -1, condition = -1, shortcut = -1;
  int64_t tasks = 0;
  // generated weights
  Array generator, bias_generator;
  int64_t conditions = 0;
  float *raw = nullptr, *packed = nullptr, *bias = nullptr;
  float* padded = nullptr;  // one-channel: the input with its zeros around
  std::vector<int64_t> shift;
  // Computed inside this step, into a ring of planes; see run_ring.
  std::shared_ptr<Conv> producer;
};

Engine::Engine(const Kernels& kernels, int threads) : kernels_(kernels), pool_(threads) {}

int Engine::add(const Extent& e) {
  if (finished_) refuse("the engine is finished: nothing can be added");
  if (e.c < 1 || e.d < 1 || e.h < 1 || e.w < 1) refuse("an empty tensor " + text(e));
  product({filled(e.c), e.d, e.h, e.w});
  Value v;
  v.extent = e;
  v.root = static_cast<int>(values_.size());
  v.floats = e.floats();
  values_.push_back(v);
  return v.root;
}

const Extent& Engine::extent(int value) const {
  if (value < 0 || value >= static_cast<int>(values_.size()))
    refuse("there is no value " + std::to_string(value));
  return values_[static_cast<size_t>(value)].extent;
}

std::vector<int64_t> Engine::shape(int value) const {
  const Extent& e = extent(value);
  return {e.c, e.d, e.h, e.w};
}

int64_t Engine::plain_floats(int value) const {
  const Extent& e = extent(value);
  return e.c * e.voxels();
}

Array Engine::checked(const Array& array, int64_t size, const char* what) const {
  if (array.data == nullptr || array.size != size)
    refuse(std::string(what) + " has " + std::to_string(array.size) + " numbers, but needs " +
           std::to_string(size));
  return array;
}

float* Engine::reserve(int64_t floats) {
  weights_.push_back(allocate(floats));
  weight_floats_ += floats;
  std::memset(weights_.back().get(), 0, static_cast<size_t>(floats) * sizeof(float));
  return weights_.back().get();
}

// A copy with zeros up to `full` numbers.
const float* Engine::keep(const Array& array, int64_t full, const char* what, int64_t size) {
  checked(array, size, what);
  float* copy = reserve(full);
  std::memcpy(copy, array.data, static_cast<size_t>(size) * sizeof(float));
  return copy;
}

Activation Engine::keep(const ActivationSpec& spec, int64_t channels) {
  Activation act;
  act.kind = spec.kind;
  act.alpha = spec.alpha;
  if (spec.kind == Act::prelu)
    act.slope = keep(spec.slope, filled(channels), "prelu's slope", channels);
  return act;
}

void Engine::step(const std::string& name, std::vector<int> reads, std::vector<int> writes,
                  Step work) {
  names_.push_back(name);
  steps_.push_back({std::move(work), std::move(reads), std::move(writes), nullptr});
}

float* Engine::at(int value) const {
  const Value& v = values_[static_cast<size_t>(value)];
  return arena_.get() + values_[static_cast<size_t>(v.root)].place + v.offset;
}

void Engine::parallel(int64_t count, int64_t grain, const ThreadPool::Work& work) {
  pool_.run(count, std::max<int64_t>(grain, 1), work);
}

void Engine::scratch(int64_t floats) {
  if (floats > kMostFloats) refuse("a step that needs more than 2^33 numbers of scratch memory");
  scratch_floats_ = std::max(scratch_floats_, (floats + 15) / 16 * 16 + 16);
}

int Engine::input(int64_t c, int64_t d, int64_t h, int64_t w) {
  product({c, d, h, w});
  const int value = add({c, d, h, w});
  inputs_.push_back(value);
  return value;
}

void Engine::output(int value) {
  extent(value);
  outputs_.push_back(value);
}

// --- convolution -------------------------------------------------------------------------------

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
  c->in = spec.in;
  c->shortcut = spec.shortcut;
  c->residual = spec.residual;
  c->condition = spec.condition;
  ConvArgs& a = c->args;
  a.in_extent = e, a.conv_extent = conv, a.out_extent = out, a.window = spec.window;
  c->out = add(out);
  if (spec.second) c->second = add(spec.sparse ? conv : out);
  if (spec.residual >= 0 && !same(extent(spec.residual), conv))
    refuse("the residual " + text(extent(spec.residual)) + " does not fit " + text(conv));
  build_conv(c, spec);

  std::vector<int> reads{spec.in}, writes{c->out};
  if (spec.residual >= 0) reads.push_back(spec.residual);
  if (spec.condition >= 0) reads.push_back(spec.condition);
  if (spec.shortcut >= 0) reads.push_back(spec.shortcut);
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
  const bool is_input = std::find(inputs_.begin(), inputs_.end(), spec.in) != inputs_.end();

  int64_t points = 0;
  if (spec.tile[0] || spec.tile[1] || spec.tile[2]) {
    points = 1;
    for (int i = 0; i < 3; ++i) {
      if ((spec.tile[i] != 2 && spec.tile[i] != 4) || k.kernel[i] != 3 || k.stride[i] != 1 ||
          k.dilation[i] != 1 || spec.depthwise)
        refuse("Winograd tiles are 2 or 4, for 3x3x3 kernels with stride and dilation 1");
      points *= spec.tile[i] + 2;
      a.tile[i] = spec.tile[i];
    }
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
    c->bias_generator = {keep(spec.bias, ce.c * cout, "a generated convolution's bias", ce.c * cout),
                         ce.c * cout};
    c->raw = reserve(raw);
    c->bias = reserve(lanes);
    a.epilogue.bias = c->bias;
  } else {
    checked(spec.weight, raw, "a convolution's weight");
    a.epilogue.bias = keep(spec.bias, lanes, "a convolution's bias", cout);
  }
  const auto pack_all = [&](const float* weight, float* to) {
    if (points) {
      parallel(vectors * cin, 64, [&](int64_t b, int64_t n, int) {
        kernels_.winograd_weights(weight, cin, cout, a.tile, to, b, n);
      });
    } else {
      parallel(panels, 1, [&](int64_t b, int64_t n, int) {
        kernels_.pack(weight, cout, taps * cin, to, b, n);
      });
    }
  };
  if (c->kind == Conv::Kind::winograd || c->kind == Conv::Kind::gather) {
    c->packed = reserve(product({points ? points : taps, cin, lanes}));
    if (spec.condition < 0) pack_all(spec.weight.data, c->packed);
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
    shortcut_floats = a.tile[0] * a.tile[1] * a.tile[2] * (filled(se.c) + lanes) + kBlock;
  }

  // Partition and scratch. Blocks are small enough for the second-level cache, and there are a
  // few tasks for each thread; what is left over is split along the output channels.
  const int64_t threads = pool_.threads();
  a.ring = e.d;
  a.ring_rows = e.h;
  if (c->kind == Conv::Kind::winograd) {
    int64_t tiles = 1;
    const int64_t size[3] = {o.d, o.h, o.w};
    for (int i = 0; i < 3; ++i) tiles *= (size[i] + a.tile[i] - 1) / a.tile[i];
    const int64_t row = filled(cin) + lanes;
    // (U and M) in about 800 KB
    const int64_t fit = 200'000 / (points * row);
    const int64_t unit = kernels_.rows_two;
    a.rows = std::max<int64_t>(fit / unit * unit, unit);
    a.rows = std::min(a.rows, std::max<int64_t>((tiles + threads - 1) / threads, 1));
    a.count = tiles;
    scratch(points * kBlock + points * (a.rows * filled(cin) + kBlock) +
            points * (a.rows * lanes + kBlock) + shortcut_floats);
  } else if (c->kind == Conv::Kind::gather) {
    const int64_t depth = taps * cin, lda = filled(depth) + kBlock;
    const int64_t unit = vectors == 1 ? kernels_.rows_one : kernels_.rows_two;
    const int64_t fit = 100'000 / lda;
    a.rows = std::max<int64_t>(fit / unit * unit, unit);
    a.count = o.voxels();
    a.rows = std::min(a.rows, std::max<int64_t>((a.count + threads - 1) / threads, 1));
    scratch(a.rows * lda + a.rows * (lanes + per * kBlock));
  } else if (c->kind == Conv::Kind::one_channel) {
    scratch(3 * kBlock * kBlock);
    // The borders of the padded input stay zero from here on.
    a.in_extent = {1, e.d + 2 * k.padding[0], e.h + 2 * k.padding[1], e.w + 2 * k.padding[2]};
    c->padded = reserve(product({a.in_extent.d, a.in_extent.h, a.in_extent.w}) + kSpare);
    a.in = c->padded;
    for (int64_t t = 0; t < taps; ++t)
      c->shift.push_back((t / (k.kernel[1] * k.kernel[2]) * k.dilation[0] * a.in_extent.h +
                          t / k.kernel[2] % k.kernel[1] * k.dilation[1]) * a.in_extent.w +
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
    a.ring_rows = a.out_extent.h;
    c->tasks = a.out_extent.d * a.out_extent.h;
  } else {
    c->tasks = vectors * o.d * o.h;
  }
}

void Engine::generate(Conv& c) {
  const float* e = at(c.condition);
  const ConvArgs& a = c.args;
  const int64_t cout = a.conv_extent.c, n = c.generator.size / c.conditions;
  const Window& k = a.window;
  const int64_t taps = k.kernel[0] * k.kernel[1] * k.kernel[2];
  parallel((n + 1023) / 1024, 1, [&](int64_t begin, int64_t end, int) {
    kernels_.mix(c.generator.data, e, c.conditions, n, c.raw, begin * 1024,
                 std::min(end * 1024, n));
  });
  kernels_.mix(c.bias_generator.data, e, c.conditions, cout, c.bias, 0, cout);
  const int64_t per = kernels_.vectors_per_panel, vectors = blocks_of(cout);
  const int64_t cin = a.in_extent.c;
  if (c.kind == Conv::Kind::winograd)
    parallel(vectors * cin, 32, [&](int64_t begin, int64_t end, int) {
      kernels_.winograd_weights(c.raw, cin, cout, a.tile, c.packed, begin, end);
    });
  else
    parallel((vectors + per - 1) / per, 1, [&](int64_t begin, int64_t end, int) {
      kernels_.pack(c.raw, cout, taps * cin, c.packed, begin, end);
    });
}

void Engine::run_conv(Conv& c) {
  ConvArgs& a = c.args;
  if (c.condition >= 0) generate(c);
  a.out = at(c.out);
  a.epilogue.residual = c.residual >= 0 ? at(c.residual) : nullptr;
  a.epilogue.second = c.second >= 0 ? at(c.second) : nullptr;
  const auto mine = [&](int thread) { return scratch_memory_.get() + thread * scratch_floats_; };
  if (c.kind == Conv::Kind::one_channel) {
    pad_input(c);
    parallel(c.tasks, 1, [&](int64_t b, int64_t n, int t) {
      kernels_.one_channel(a, b, n, mine(t));
    });
    return;
  }
  a.in = at(c.in);
  a.shortcut.in = c.shortcut >= 0 ? at(c.shortcut) : nullptr;
  if (c.producer) {
    run_ring(c);
    return;
  }
  if (c.kind == Conv::Kind::winograd)
    parallel(c.tasks, 1, [&](int64_t b, int64_t n, int t) { kernels_.winograd(a, b, n, mine(t)); });
  else if (c.kind == Conv::Kind::gather)
    parallel(c.tasks, 1, [&](int64_t b, int64_t n, int t) { kernels_.gather(a, b, n, mine(t)); });
  else
    parallel(c.tasks, 4, [&](int64_t b, int64_t n, int) { kernels_.depthwise(a, b, n); });
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
  const auto mine = [&](int thread) { return scratch_memory_.get() + thread * scratch_floats_; };
  const int64_t layer =
      (o.h + a.tile[1] - 1) / a.tile[1] * ((o.w + a.tile[2] - 1) / a.tile[2]);
  const int64_t layers = (o.d + a.tile[0] - 1) / a.tile[0];
  const int64_t step = (a.ring - 2) / a.tile[0];
  int64_t made = 0;
  for (int64_t z = 0; z < layers; z += step) {
    const int64_t next = std::min(z + step, layers);
    const int64_t need = std::clamp<int64_t>(next * a.tile[0] + 2 - a.window.padding[0], made, e.d);
    parallel((need - made) * e.h, 4, [&](int64_t b, int64_t n, int t) {
      kernels_.one_channel(p.args, made * e.h + b, made * e.h + n, mine(t));
    });
    made = need;
    a.first = z * layer;
    a.count = (next - z) * layer;
    parallel((a.count + a.rows - 1) / a.rows, 1, [&](int64_t b, int64_t n, int t) {
      kernels_.winograd(a, b, n, mine(t));
    });
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
        second->in != first->out || second->condition >= 0 || second->residual == first->out ||
        second->shortcut == first->out || first->args.out_extent.floats() < kLarge)
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

// --- the rest ----------------------------------------------------------------------------------

int Engine::pool(int in, const Window& window, bool average, bool count_include_pad, bool ceil) {
  const Extent e = extent(in);
  check(window);
  for (int i = 0; i < 3; ++i)
    if (window.padding[i] * 2 > window.kernel[i]) refuse("pooling pads at most half its kernel");
  const Extent o{e.c, window_size(e.d, window, 0, ceil), window_size(e.h, window, 1, ceil),
                 window_size(e.w, window, 2, ceil)};
  const int out = add(o);
  step(average ? "average pool" : "max pool", {in}, {out}, [=] {
    const PoolArgs a{at(in), e, at(out), o, window, average, count_include_pad};
    parallel(blocks_of(o.c) * o.d * o.h, 4,
             [&](int64_t b, int64_t n, int) { kernels_.pool(a, b, n); });
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
  const int out = add({e.c, 1, 1, 1});
  step(average ? "global average" : "global maximum", {in}, {out}, [=] {
    parallel(blocks_of(e.c), 1, [&](int64_t b, int64_t n, int) {
      kernels_.reduce(at(in), e, steps.data(), at(out), !average, b, n);
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
  const int out = add(e);
  step("affine", {in}, {out}, [=] {
    parallel(blocks_of(e.c), 1, [&](int64_t b, int64_t n, int) {
      kernels_.affine(at(in), at(out), e.voxels(), s, t, act, b, n);
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
  const int out = add(e);
  step(multiply ? "multiply" : "add", {a, b}, {out}, [=] {
    parallel(blocks_of(e.c), 1, [&](int64_t begin, int64_t end, int) {
      kernels_.binary(at(a), at(b), at(out), e.voxels(), per_channel, multiply, act, begin, end);
    });
  });
  return out;
}

int Engine::concat(const std::vector<int>& in) {
  if (in.empty()) refuse("nothing to concatenate");
  Extent o = extent(in[0]);
  o.c = 0;
  for (int i : in) {
    const Extent& e = extent(i);
    if (e.d != o.d || e.h != o.h || e.w != o.w)
      refuse("concatenate " + text(extent(in[0])) + " and " + text(e));
    o.c += e.c;
  }
  const int out = add(o);
  step("concat", in, {out}, [=] {
    const int64_t voxels = o.voxels();
    float* to = at(out);
    int64_t c = 0;
    for (int i : in) {
      const float* from = at(i);
      const int64_t n = extent(i).c;
      if (c % kBlock == 0) {
        float* place = to + c * voxels;
        if (place != from)
          std::memmove(place, from, static_cast<size_t>(filled(n) * voxels) * sizeof(float));
      } else {
        for (int64_t j = 0; j < n; ++j) {
          const float* x = from + j / kBlock * voxels * kBlock + j % kBlock;
          float* y = to + (c + j) / kBlock * voxels * kBlock + (c + j) % kBlock;
          for (int64_t v = 0; v < voxels; ++v) y[v * kBlock] = x[v * kBlock];
        }
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
  const int out = add({stop - start, e.d, e.h, e.w});
  step("slice", {in}, {out}, [=] {
    const int64_t voxels = e.voxels();
    const float* from = at(in);
    float* to = at(out);
    if (start % kBlock == 0) {
      std::memcpy(to, from + start * voxels,
                  static_cast<size_t>(filled(stop - start) * voxels) * sizeof(float));
      return;
    }
    for (int64_t j = start; j < stop; ++j) {
      const float* x = from + j / kBlock * voxels * kBlock + j % kBlock;
      float* y = to + (j - start) / kBlock * voxels * kBlock + (j - start) % kBlock;
      for (int64_t v = 0; v < voxels; ++v) y[v * kBlock] = x[v * kBlock];
    }
  });
  return out;
}

// [C][D][H][W] -> a vector in this order
int Engine::flatten(int in) {
  const Extent e = extent(in);
  const int out = add({e.c * e.voxels(), 1, 1, 1});
  step("flatten", {in}, {out}, [=] {
    const int64_t voxels = e.voxels();
    const float* from = at(in);
    float* to = at(out);
    parallel(blocks_of(e.c), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t b = begin; b < end; ++b)
        for (int64_t j = 0; j < kBlock && b * kBlock + j < e.c; ++j)
          for (int64_t v = 0; v < voxels; ++v)
            to[(b * kBlock + j) * voxels + v] = from[(b * voxels + v) * kBlock + j];
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
  const int out = add(o);
  const int64_t d0 = before[0], h0 = before[1], w0 = before[2];
  step("pad", {in}, {out}, [=] {
    parallel(blocks_of(e.c) * o.d, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t block = i / o.d, d = i % o.d - d0;
        float* plane = at(out) + i * o.h * o.w * kBlock;
        std::memset(plane, 0, static_cast<size_t>(o.h * o.w * kBlock) * sizeof(float));
        if (d < 0 || d >= e.d) continue;
        for (int64_t h = 0; h < e.h; ++h)
          std::memcpy(plane + ((h + h0) * o.w + w0) * kBlock,
                      at(in) + ((block * e.d + d) * e.h + h) * e.w * kBlock,
                      static_cast<size_t>(e.w * kBlock) * sizeof(float));
      }
    });
  });
  return out;
}

int Engine::linear(int in, int64_t outputs, Array weight, Array bias, const ActivationSpec& spec) {
  const Extent e = extent(in);
  if (e.voxels() != 1) refuse("linear needs a vector, not " + text(e));
  const int64_t n = product({e.c, outputs}), ld = filled(outputs);
  checked(weight, n, "a linear layer's weight");
  float* w = reserve(product({e.c, ld}));
  for (int64_t i = 0; i < e.c; ++i)
    std::memcpy(w + i * ld, weight.data + i * outputs,
                static_cast<size_t>(outputs) * sizeof(float));
  const float* b = keep(bias, ld, "a linear layer's bias", outputs);
  const Activation act = keep(spec, outputs);
  const int out = add({outputs, 1, 1, 1});
  step("linear", {in}, {out}, [=] {
    parallel(ld / kBlock, n > 100'000 ? 1 : ld, [&](int64_t begin, int64_t end, int) {
      kernels_.linear(at(in), e.c, w, ld, b, act, at(out), begin, end);
    });
  });
  return out;
}

int Engine::hyper_linear(int in, int condition, int64_t outputs, Array weight, Array bias,
                         const ActivationSpec& spec) {
  const Extent e = extent(in), ce = extent(condition);
  if (e.voxels() != 1 || ce.voxels() != 1) refuse("hyper_linear needs vectors");
  const int64_t k = ce.c, n = product({e.c, outputs}), ld = filled(outputs);
  checked(weight, product({k, n}), "a generated linear layer's weight");
  checked(bias, product({k, outputs}), "a generated linear layer's bias");
  float* w = reserve(product({k, e.c, ld}));
  for (int64_t i = 0; i < k * e.c; ++i)
    std::memcpy(w + i * ld, weight.data + i * outputs,
                static_cast<size_t>(outputs) * sizeof(float));
  float* b = reserve(k * ld);
  for (int64_t i = 0; i < k; ++i)
    std::memcpy(b + i * ld, bias.data + i * outputs, static_cast<size_t>(outputs) * sizeof(float));
  float* made = reserve(e.c * ld);
  float* made_bias = reserve(ld);
  const Activation act = keep(spec, outputs);
  const int out = add({outputs, 1, 1, 1});
  step("hyper linear", {in, condition}, {out}, [=] {
    const float* c = at(condition);
    kernels_.mix(w, c, k, e.c * ld, made, 0, e.c * ld);
    kernels_.mix(b, c, k, ld, made_bias, 0, ld);
    kernels_.linear(at(in), e.c, made, ld, made_bias, act, at(out), 0, ld / kBlock);
  });
  return out;
}

int Engine::one_and(int in) {
  const Extent e = extent(in);
  if (e.voxels() != 1) refuse("one_and needs a vector, not " + text(e));
  const int out = add({e.c + 1, 1, 1, 1});
  step("one and", {in}, {out}, [=] {
    float* y = at(out);
    std::memmove(y + 1, at(in), static_cast<size_t>(e.c) * sizeof(float));
    y[0] = 1;
  });
  return out;
}

int Engine::combine(int in, int condition, const ActivationSpec& spec) {
  const Extent e = extent(in), ce = extent(condition);
  if (e.voxels() != 1 || ce.voxels() != 1 || e.c % ce.c)
    refuse("combine " + text(e) + " with a condition " + text(ce));
  const int64_t k = ce.c, n = e.c / k;
  const Activation act = keep(spec, n);
  const int out = add({n, 1, 1, 1});
  step("combine", {in, condition}, {out}, [=] {
    kernels_.mix(at(in), at(condition), k, n, at(out), 0, n);
    if (act.kind != Act::none)
      kernels_.affine(at(out), at(out), 1, nullptr, nullptr, act, 0, blocks_of(n));
  });
  return out;
}

int Engine::softmax(int in) {
  const Extent e = extent(in);
  if (e.voxels() != 1) refuse("softmax needs a vector, not " + text(e));
  const int out = add(e);
  step("softmax", {in}, {out}, [=] {
    const float* x = at(in);
    float* y = at(out);
    float most = x[0], sum = 0;
    for (int64_t i = 1; i < e.c; ++i) most = std::max(most, x[i]);
    for (int64_t i = 0; i < e.c; ++i) sum += y[i] = std::exp(x[i] - most);
    for (int64_t i = 0; i < e.c; ++i) y[i] /= sum;
  });
  return out;
}

int Engine::instance_norm(int in, Array scale, Array shift, float eps,
                          const ActivationSpec& spec) {
  const Extent e = extent(in);
  const float* s = keep(scale, filled(e.c), "the scale", e.c);
  const float* t = keep(shift, filled(e.c), "the shift", e.c);
  const Activation act = keep(spec, e.c);
  float* mean = reserve(filled(e.c));
  float* gain = reserve(filled(e.c));
  float* offset = reserve(filled(e.c));
  const int out = add(e);
  step("instance norm", {in}, {out}, [=] {
    static const int64_t every[3] = {1, 1, 1};
    const float count = static_cast<float>(e.voxels());
    parallel(blocks_of(e.c), 1, [&](int64_t begin, int64_t end, int) {
      kernels_.reduce(at(in), e, every, mean, false, begin, end);
      for (int64_t i = begin * kBlock; i < end * kBlock; ++i) mean[i] /= count;
      kernels_.deviation(at(in), e.voxels(), mean, gain, begin, end);
      for (int64_t i = begin * kBlock; i < end * kBlock; ++i) {
        gain[i] = s[i] / std::sqrt(gain[i] / count + eps);
        offset[i] = t[i] - mean[i] * gain[i];
      }
      kernels_.affine(at(in), at(out), e.voxels(), gain, offset, act, begin, end);
    });
  });
  return out;
}

// --- memory and running ------------------------------------------------------------------------

void Engine::place_values() {
  // Concatenated values are written where they will stand, if a block of channels starts there.
  std::vector<bool> fixed(values_.size(), false);
  for (int i : inputs_) fixed[static_cast<size_t>(i)] = true;
  for (size_t s = steps_.size(); s-- > 0;) {
    if (names_[s] != "concat") continue;
    const int out = steps_[s].writes[0];
    int64_t c = 0;
    for (int in : steps_[s].reads) {
      Value& v = values_[static_cast<size_t>(in)];
      const bool twice = std::count(steps_[s].reads.begin(), steps_[s].reads.end(), in) > 1;
      const bool ends = c + v.extent.c == values_[static_cast<size_t>(out)].extent.c;
      if (c % kBlock == 0 && (v.extent.c % kBlock == 0 || ends) && !twice &&
          !fixed[static_cast<size_t>(in)]) {
        const Value& o = values_[static_cast<size_t>(out)];
        v.root = o.root;
        v.offset = o.offset + c * v.extent.voxels();
        fixed[static_cast<size_t>(in)] = true;
      }
      c += v.extent.c;
    }
  }
  // A value that was placed inside another one before that one was placed itself.
  const auto root_of = [&](int value) {
    int64_t offset = 0;
    while (values_[static_cast<size_t>(value)].root != value) {
      offset += values_[static_cast<size_t>(value)].offset;
      value = values_[static_cast<size_t>(value)].root;
    }
    return std::make_pair(value, offset);
  };
  for (size_t i = 0; i < values_.size(); ++i) {
    const auto [root, offset] = root_of(static_cast<int>(i));
    if (root == static_cast<int>(i)) continue;
    values_[i].root = root;
    values_[i].offset = offset;
  }
  const int last_step = static_cast<int>(steps_.size());
  const auto use = [&](int value, int when) {
    Value& v = values_[static_cast<size_t>(values_[static_cast<size_t>(value)].root)];
    v.first = v.first < 0 ? when : std::min(v.first, when);
    v.last = std::max(v.last, when);
  };
  for (int i : inputs_) use(i, -1 + 0);
  for (size_t s = 0; s < steps_.size(); ++s) {
    for (int v : steps_[s].reads) use(v, static_cast<int>(s));
    for (int v : steps_[s].writes) use(v, static_cast<int>(s));
  }
  for (int v : outputs_) use(v, last_step);
  for (int i : inputs_) values_[static_cast<size_t>(i)].first = -1;

  // Largest first, each at the lowest place that is free during its life.
  std::vector<int> order;
  for (size_t i = 0; i < values_.size(); ++i)
    if (values_[i].root == static_cast<int>(i)) order.push_back(static_cast<int>(i));
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return values_[static_cast<size_t>(a)].floats > values_[static_cast<size_t>(b)].floats;
  });
  std::vector<int> placed;
  for (int i : order) {
    Value& v = values_[static_cast<size_t>(i)];
    std::vector<std::pair<int64_t, int64_t>> taken;
    for (int j : placed) {
      const Value& w = values_[static_cast<size_t>(j)];
      if (w.first <= v.last && v.first <= w.last) taken.emplace_back(w.place, w.floats);
    }
    std::sort(taken.begin(), taken.end());
    int64_t place = 0;
    for (const auto& [start, floats] : taken) {
      if (place + v.floats <= start) break;
      place = std::max(place, start + floats + kBlock);
    }
    v.place = (place + 15) / 16 * 16;
    placed.push_back(i);
    arena_floats_ = std::max(arena_floats_, v.place + v.floats);
  }
}

void Engine::finish() {
  if (finished_) refuse("the engine is finished already");
  if (outputs_.empty()) refuse("an engine needs an output");
  fuse_rings();
  // An input that only one-channel convolutions read is used where the caller has it.
  const auto reads_plain = [](const Conv& c, int input) {
    const bool here = c.kind == Conv::Kind::one_channel && c.in == input;
    const bool before = c.producer && c.producer->in == input && c.in != input;
    return (here || before) && c.residual != input && c.condition != input && c.shortcut != input;
  };
  plain_input_.assign(inputs_.size(), true);
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const int input = inputs_[i];
    bool plain = std::count(outputs_.begin(), outputs_.end(), input) == 0;
    for (const auto& s : steps_)
      if (std::count(s.reads.begin(), s.reads.end(), input))
        plain = plain && s.conv && reads_plain(*s.conv, input);
    plain_input_[i] = plain;
    if (plain) values_[static_cast<size_t>(input)].floats = 0;
  }
  input_data_.assign(inputs_.size(), nullptr);
  place_values();
  arena_ = allocate(arena_floats_);
  scratch_memory_ = allocate(scratch_floats_ * pool_.threads());
  seconds_.assign(steps_.size(), 0.0);
  finished_ = true;
}

void Engine::load_input(size_t i, const float* from) {
  input_data_[i] = from;
  if (plain_input_[i]) return;
  const int value = inputs_[i];
  const Extent e = extent(value);
  float* to = at(value);
  const int64_t voxels = e.voxels();
  if (voxels == 1) {
    std::memset(to, 0, static_cast<size_t>(filled(e.c)) * sizeof(float));
    std::memcpy(to, from, static_cast<size_t>(e.c) * sizeof(float));
    return;
  }
  parallel(blocks_of(e.c) * e.d, 1, [&](int64_t begin, int64_t end, int) {
    const int64_t plane = e.h * e.w;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t block = t / e.d, d = t % e.d;
      float* y = to + t * plane * kBlock;
      for (int64_t v = 0; v < plane; ++v)
        for (int64_t j = 0; j < kBlock; ++j) {
          const int64_t c = block * kBlock + j;
          y[v * kBlock + j] = c < e.c ? from[c * voxels + d * plane + v] : 0.0f;
        }
    }
  });
}

void Engine::store_output(size_t i, float* to) {
  const Extent e = extent(outputs_[i]);
  const float* from = at(outputs_[i]);
  const int64_t voxels = e.voxels();
  for (int64_t c = 0; c < e.c; ++c)
    for (int64_t v = 0; v < voxels; ++v)
      to[c * voxels + v] = from[(c / kBlock * voxels + v) * kBlock + c % kBlock];
}

void Engine::profile(bool on) {
  std::lock_guard<std::mutex> lock(mutex_);
  profiling_ = on;
  std::fill(seconds_.begin(), seconds_.end(), 0.0);
}

void Engine::run(const std::vector<Array>& inputs, const std::vector<float*>& outputs,
                 int64_t batch) {
  if (!finished_) refuse("the engine is not finished");
  if (inputs.size() != inputs_.size() || outputs.size() != outputs_.size())
    refuse("the engine has " + std::to_string(inputs_.size()) + " inputs and " +
           std::to_string(outputs_.size()) + " outputs");
  for (size_t i = 0; i < inputs.size(); ++i)
    checked(inputs[i], batch * input_floats(i), "an input");
  std::lock_guard<std::mutex> lock(mutex_);
  using clock = std::chrono::steady_clock;
  for (int64_t b = 0; b < batch; ++b) {
    for (size_t i = 0; i < inputs.size(); ++i)
      load_input(i, inputs[i].data + b * input_floats(i));
    for (size_t s = 0; s < steps_.size(); ++s) {
      if (!steps_[s].work) continue;
      if (!profiling_) {
        steps_[s].work();
        continue;
      }
      const auto start = clock::now();
      steps_[s].work();
      seconds_[s] += std::chrono::duration<double>(clock::now() - start).count();
    }
    for (size_t i = 0; i < outputs.size(); ++i)
      store_output(i, outputs[i] + b * output_floats(i));
  }
}

}  // namespace hfrt
