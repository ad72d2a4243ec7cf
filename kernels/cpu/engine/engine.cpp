// Values, what is kept of the caller's arrays, and a run.
#include "engine.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "internal.hpp"

namespace hfrt {

Engine::Engine(const Kernels& stored, const Kernels& exact, int threads)
    : kernels_(stored), exact_(exact), pool_(threads) {}

// --- values ------------------------------------------------------------------------------------

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

int Engine::as(int in, bool stored) {
  const Extent e = extent(in);
  if (this->stored(in) == stored || kernels_.stored == exact_.stored) return in;
  const int out = add(e, stored);
  step(StepKind::convert, {in}, {out}, [=] {
    const char* from = memory(in);
    char* to = memory(out);
    for (int64_t i = 0; i < e.numbers(); ++i) put(to, i, bytes(out), get(from, i, bytes(in)));
  });
  return out;
}

const Extent& Engine::extent(int i) const {
  if (i < 0 || i >= static_cast<int>(values_.size()))
    refuse("there is no value " + std::to_string(i));
  return value(i).extent;
}

std::vector<int64_t> Engine::shape(int i) const {
  const Extent& e = extent(i);
  return {e.c, e.d, e.h, e.w};
}

int64_t Engine::plain_floats(int i) const {
  const Extent& e = extent(i);
  return e.c * e.voxels();
}

float* Engine::at(int i) const {
  const Value& v = value(i);
  return v.own ? v.own : arena_.get() + value(v.root).place + v.offset;
}

int Engine::input(int64_t c, int64_t d, int64_t h, int64_t w) {
  product({c, d, h, w});
  const int made = add({c, d, h, w}, d * h * w > 1);
  inputs_.push_back(made);
  return made;
}

void Engine::output(int i) {
  extent(i);
  outputs_.push_back(i);
}

void Engine::step(StepKind kind, std::vector<int> reads, std::vector<int> writes,
                  std::function<void()> work) {
  steps_.push_back(
      {kind, std::move(work), std::move(reads), std::move(writes), nullptr, nullptr, false});
}

std::vector<StepKind> Engine::steps() const {
  std::vector<StepKind> kinds;
  for (const Step& s : steps_) kinds.push_back(s.kind);
  return kinds;
}

// --- what is kept ------------------------------------------------------------------------------

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
  copy_floats(copy, array.data, size);
  return copy;
}

Activation Engine::keep(const ActivationSpec& spec, int64_t channels) {
  Activation act;
  act.kind = spec.kind;
  act.alpha = spec.alpha;
  act.beta = spec.beta;
  if (spec.kind == Act::prelu)
    act.slope = keep(spec.slope, filled(channels), "prelu's slope", channels);
  return act;
}

void Engine::scratch(int64_t floats) {
  if (floats > kMostFloats) refuse("a step that needs more than 2^33 numbers of scratch memory");
  scratch_floats_ = std::max(scratch_floats_, ceil_div(floats, 16) * 16 + 16);
}

// --- running -----------------------------------------------------------------------------------

void Engine::finish() {
  if (finished_) refuse("the engine is finished already");
  if (outputs_.empty()) refuse("an engine needs an output");
  choose_narrow();
  fuse_rings();
  find_plain_inputs();
  choose_plain();
  place_values();
  arena_ = allocate(arena_floats_);
  scratch_memory_ = allocate(scratch_floats_ * pool_.threads());
  seconds_.assign(steps_.size(), 0.0);
  finished_ = true;
}

void Engine::parallel(int64_t count, int64_t grain, const ThreadPool::Work& work) {
  pool_.run(count, std::max<int64_t>(grain, 1), work);
}

void Engine::load_input(int i, const float* from) {
  value(i).given = from;
  if (value(i).plain) return;
  const Extent e = extent(i);
  const int64_t voxels = e.voxels();
  if (voxels == 1) {
    std::memset(at(i), 0, static_cast<size_t>(filled(e.c)) * sizeof(float));
    copy_floats(at(i), from, e.c);
    return;
  }
  parallel(blocks_of(e.c) * ceil_div(voxels, kBlock), 64, [&](int64_t begin, int64_t end, int) {
    kernels(i).block(from, at(i), e.c, voxels, begin, end);
  });
}

void Engine::store_output(int i, float* to) {
  const Extent e = extent(i);
  const int64_t voxels = e.voxels();
  if (value(i).planar) return;  // it was written there
  if (voxels == 1 && !stored(i)) {
    copy_floats(to, at(i), e.c);
    return;
  }
  parallel(blocks_of(e.c) * ceil_div(voxels, kBlock), 64, [&](int64_t begin, int64_t end, int) {
    kernels(i).unblock(at(i), to, e.c, voxels, begin, end);
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
    for (size_t i = 0; i < inputs.size(); ++i)
      load_input(inputs_[i], inputs[i].data + b * input_floats(i));
    for (size_t i = 0; i < outputs.size(); ++i)
      if (value(outputs_[i]).planar) value(outputs_[i]).own = outputs[i] + b * output_floats(i);
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
      store_output(outputs_[i], outputs[i] + b * output_floats(i));
  }
}

}  // namespace hfrt
