#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "internal.hpp"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hfrt {

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

Engine::Engine(const Kernels& stored, const Kernels& exact, int threads)
    : kernels_(stored), exact_(exact), pool_(threads) {}

int Engine::add(const Extent& e, bool stored) {
  if (finished_) refuse("the engine is finished: nothing can be added");
  if (e.c < 1 || e.d < 1 || e.h < 1 || e.w < 1) refuse("an empty tensor " + text(e));
  product({filled(e.c), e.d, e.h, e.w});
  Value v;
  v.extent = e;
  v.root = static_cast<int>(values_.size());
  v.stored = stored;
  v.floats = e.numbers() * (stored ? kernels_.stored : 4) / 4;
  values_.push_back(v);
  return v.root;
}

int Engine::as(int value, bool stored) {
  const Extent e = extent(value);
  if (this->stored(value) == stored || kernels_.stored == exact_.stored) return value;
  const int out = add(e, stored);
  step("convert", {value}, {out}, [=] {
    const char* from = memory(value);
    char* to = memory(out);
    for (int64_t i = 0; i < e.numbers(); ++i) put(to, i, bytes(out), get(from, i, bytes(value)));
  });
  return out;
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
  if (v.own) return v.own;
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
  const int value = add({c, d, h, w}, d * h * w > 1);
  inputs_.push_back(value);
  return value;
}

void Engine::output(int value) {
  extent(value);
  outputs_.push_back(value);
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
        v.offset = o.offset + c * v.extent.voxels() * bytes(out) / 4;
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
  choose_narrow();
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
  const int64_t voxels = e.voxels(), groups = (voxels + kBlock - 1) / kBlock;
  if (voxels == 1) {
    std::memset(at(value), 0, static_cast<size_t>(filled(e.c)) * sizeof(float));
    std::memcpy(at(value), from, static_cast<size_t>(e.c) * sizeof(float));
    return;
  }
  parallel(blocks_of(e.c) * groups, 64, [&](int64_t begin, int64_t end, int) {
    kernels(value).block(from, at(value), e.c, voxels, begin, end);
  });
}

void Engine::store_output(size_t i, float* to) {
  const int value = outputs_[i];
  const Extent e = extent(value);
  const int64_t voxels = e.voxels(), groups = (voxels + kBlock - 1) / kBlock;
  if (voxels == 1 && !stored(value)) {
    std::memcpy(to, at(value), static_cast<size_t>(e.c) * sizeof(float));
    return;
  }
  parallel(blocks_of(e.c) * groups, 64, [&](int64_t begin, int64_t end, int) {
    kernels(value).unblock(at(value), to, e.c, voxels, begin, end);
  });
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
    for (size_t i = 0; i < inputs.size(); ++i) load_input(i, inputs[i].data + b * input_floats(i));
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
    for (size_t i = 0; i < outputs.size(); ++i) store_output(i, outputs[i] + b * output_floats(i));
  }
}

}  // namespace hfrt
