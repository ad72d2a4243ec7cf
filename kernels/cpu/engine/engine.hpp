// The native engine: a list of fused operations, run one sample at a time. It is built once; after
// that a call allocates nothing.
//
//   input, conv, pool, ...  The builder: each method makes a value and the step that computes it,
//                           packs the step's weights, chooses its kernel (engine, conv, ops.cpp).
//   finish                  The passes, which need to see all the steps: which volumes lie as
//                           `Phases`, which pair of convolutions shares a ring of planes, which
//                           values stand inside another (passes.cpp). Then the arena: a place in
//                           one block of memory for every value, by its lifetime (arena.cpp).
//   run                     For each sample: the inputs are brought into the engine's layout, the
//                           steps run in their order, the outputs are brought back. A step cuts its
//                           work into numbered tasks, the thread pool shares them out, a kernel of
//                           `isa/` does them.
//
// Layouts. The caller's arrays are plain, [C][D][H][W] float32. Inside, a volume is blocked,
// [channels / 16][D][H][W][16], in the stored type, float32 or bfloat16; a volume of few channels
// between convolutions may lie as `Phases` instead; a vector is [C] float32, filled up to 16. A
// "convert" step stands where a vector meets a volume of one voxel.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "../isa/kernels.hpp"
#include "memory.hpp"
#include "step_kind.hpp"
#include "thread_pool.hpp"

namespace hfrt {

// A view of the caller's array, with its size for the checks.
struct Array {
  const float* data = nullptr;
  int64_t size = 0;
};

struct ActivationSpec {
  Act kind = Act::none;
  float alpha = 0, beta = 0;
  Array slope;  // prelu: [C]
};

struct ConvSpec {
  int in = -1, out_channels = 0;
  Window window;
  Array weight;  // [taps][Cin][Cout]; depthwise [taps][C]; generated: K of these
  Array bias;    // [Cout]; generated: [K][Cout]
  bool depthwise = false;
  int groups = 1;  // weight [taps][Cin / groups][Cout]; transposed [taps][Cin][Cout / groups]
  // Backwards: the window is that of the convolution whose gradient this is, `extra` voxels of the
  // output lie behind its last window.
  bool transposed = false;
  int64_t extra[3] = {0, 0, 0};
  int condition = -1;                    // a vector [K]: weight and bias are generated per sample
  Array prologue_scale, prologue_shift;  // [Cin] or none
  ActivationSpec prologue_act;
  int residual = -1;
  ActivationSpec act;
  bool pool = false;
  bool second = false;  // a second output: act(y * scale + shift)
  Array second_scale, second_shift;
  ActivationSpec second_act;
  int64_t tile[3] = {0, 0, 0};  // 0: not Winograd
  bool pairs = false;  // Winograd, 2x2x2: products of bfloat16 pairs, where the kernels have them
  // Winograd: + a 1x1x1 convolution of `shortcut`, weight [Cs][Cout], its bias added to `bias`
  int shortcut = -1;
  int64_t shortcut_stride[3] = {1, 1, 1};
  Array shortcut_weight;
  bool sparse = false;  // Winograd: keep every second voxel of the output
};

// Every builder method returns the number of the value that it makes. They throw
// std::invalid_argument, with what is wrong, on anything that does not fit together.
class Engine {
 public:
  // `stored`: for volumes; `exact`: the float32 kernels of the same machine, for vectors.
  Engine(const Kernels& stored, const Kernels& exact, int threads);

  // An input [c][d][h][w] of the caller; a vector is [c][1][1][1].
  int input(int64_t c, int64_t d, int64_t h, int64_t w);
  // Returns the value; with `second`, the second output is the next number.
  int conv(const ConvSpec& spec);
  int pool(int in, const Window& window, bool average, bool count_include_pad, bool ceil);
  int adaptive_pool(int in, const int64_t size[3], bool average);
  int global_pool(int in, const int64_t stride[3], bool average);
  int global_norm(int in);
  int affine(int in, Array scale, Array shift, const ActivationSpec& act);
  // Along each axis equal sizes, or one is 1.
  int binary(int a, int b, Pair pair, const ActivationSpec& act);
  int concat(const std::vector<int>& in);
  int slice(int in, int64_t start, int64_t stop);
  int flatten(int in);
  int unflatten(int in, int64_t c, int64_t d, int64_t h, int64_t w);
  int transpose(int in, const std::vector<int64_t>& sizes, const std::vector<int64_t>& order);
  // Voxel i along an axis is voxel from[axis][i] of the input, or `fill` where that is -1.
  int remap(int in, const std::vector<int64_t> from[3], float fill);
  // Voxel i lies between voxels low and high of the input; `part` of it is the second.
  int blend(int in, const std::vector<int64_t> low[3], const std::vector<int64_t> high[3],
            const std::vector<float> part[3]);
  int linear(int in, int64_t outputs, Array weight, Array bias, const ActivationSpec& act);
  // weight [K][inputs][outputs], bias [K][outputs]
  int hyper_linear(int in, int condition, int64_t outputs, Array weight, Array bias,
                   const ActivationSpec& act);
  int one_and(int in);
  int combine(int in, int condition, const ActivationSpec& act);
  // Along the channels of each voxel.
  int softmax(int in, bool log);
  int reduce(int in, const std::string& kind);
  int channel_norm(int in, Array scale, Array shift, float eps);
  // [members * boxes * n] raw outputs -> [n]: see ensemble.py, which defines the rules.
  int ensemble(int in, int64_t members, int64_t boxes, bool classes, const std::string& rule);
  int group_norm(int in, int64_t groups, Array scale, Array shift, float eps,
                 const ActivationSpec& act);
  void output(int value);
  // Plans the arena. After it nothing can be added.
  void finish();

  // inputs[i]: batch * input floats; outputs likewise; channels-first, plain.
  void run(const std::vector<Array>& inputs, const std::vector<float*>& outputs, int64_t batch);

  int64_t input_floats(size_t i) const { return plain_floats(inputs_.at(i)); }
  int64_t output_floats(size_t i) const { return plain_floats(outputs_.at(i)); }
  size_t inputs() const { return inputs_.size(); }
  size_t outputs() const { return outputs_.size(); }
  int64_t arena_bytes() const { return arena_floats_ * 4; }
  int64_t weight_bytes() const { return weight_floats_ * 4; }
  std::vector<int64_t> shape(int value) const;
  int threads() const { return pool_.threads(); }
  std::vector<StepKind> steps() const;
  // Seconds that each step took, summed over the samples since the last call of `profile(true)`.
  void profile(bool on);
  const std::vector<double>& seconds() const { return seconds_; }

 private:
  struct Value {
    Extent extent;
    int root = -1;                 // the value whose memory this one is part of; itself if its own
    int64_t offset = 0;            // floats from the root's start
    int64_t floats = 0;            // of a root
    bool stored = false;           // as the kernels store volumes; otherwise float32
    int64_t place = -1;            // floats from the arena's start
    float* own = nullptr;          // or memory of its own
    bool plain = false;            // an input that is read where the caller has it,
    const float* given = nullptr;  // which is here
    bool planar = false;           // it is made as [C][D][H][W] float32; see plain_outputs
  };
  struct Conv;  // one convolution step with its arguments
  struct Step {
    StepKind kind;
    std::function<void()> work;  // none: another step does it
    std::vector<int> reads, writes;
    std::shared_ptr<Conv> conv;
    std::shared_ptr<Conv> parts;  // a convolution that others do
    bool plain = false;           // works on plain volumes, too, if all of its volumes are
  };

  // The one place where the number of a value, unchecked, becomes an index.
  Value& value(int i) { return values_[static_cast<size_t>(i)]; }
  const Value& value(int i) const { return values_[static_cast<size_t>(i)]; }
  const Extent& extent(int i) const;  // checked
  bool stored(int i) const { return value(i).stored; }
  const Kernels& kernels(int i) const { return stored(i) ? kernels_ : exact_; }
  int64_t bytes(int i) const { return kernels(i).stored; }
  float* at(int i) const;
  char* memory(int i) const { return reinterpret_cast<char*>(at(i)); }
  int64_t plain_floats(int i) const;

  // building
  int add(const Extent& extent, bool stored);
  // `i`, or a new value that holds it in the other type.
  int as(int i, bool stored);
  void step(StepKind kind, std::vector<int> reads, std::vector<int> writes,
            std::function<void()> work);
  Array checked(const Array& array, int64_t size, const char* what) const;
  const float* keep(const Array& array, int64_t filled, const char* what, int64_t size);
  Activation keep(const ActivationSpec& spec, int64_t channels);
  float* reserve(int64_t floats);
  void scratch(int64_t floats);
  void map_channels(int out, const AffineArgs& args);
  int over_voxels(int in, const std::vector<int64_t>& stride, Sum sum, StepKind kind,
                  const std::function<float(double)>& last);
  int along_channels(int in, Along kind, int64_t channels, StepKind name, const float* scale,
                     const float* shift, float eps);

  // convolutions: building
  void choose_kernel(Conv& conv, const ConvSpec& spec) const;
  StepKind gathered(const ConvSpec& spec) const;
  void keep_maps(Conv& conv, const ConvSpec& spec);
  void keep_weights(Conv& conv, const ConvSpec& spec);
  void keep_generator(Conv& conv, const ConvSpec& spec);
  void pack_weights(const Conv& conv, const float* weight);
  void keep_shortcut(Conv& conv, const ConvSpec& spec);
  void keep_narrow(Conv& conv, const ConvSpec& spec);
  void keep_planar(Conv& conv, const ConvSpec& spec);
  void partition(Conv& conv);
  void partition_winograd(Conv& conv);
  void partition_gather(Conv& conv);
  void partition_planar(Conv& conv);
  void split_blocks(Conv& conv);
  // the factors in 32 bits of its packed weights
  int64_t pair_of(const Conv& conv) const;
  // convolutions of parts
  struct Channels;
  void each_group(const ConvSpec& spec,
                  const std::function<void(const ConvSpec&, const Channels&)>& build);
  static std::shared_ptr<Conv> part_of_conv(const Conv& whole, const ConvSpec& spec,
                                            const Extent& conv, const Channels& at);
  int grouped(const ConvSpec& spec, const std::shared_ptr<Conv>& whole);
  void add_phases(const ConvSpec& spec, const std::shared_ptr<Conv>& whole, const Channels& at);
  int transposed(const ConvSpec& spec, const std::shared_ptr<Conv>& whole);
  int finish_parts(const std::shared_ptr<Conv>& whole);
  void run_parts(Conv& whole);
  // convolutions: running
  void run_conv(Conv& conv);
  void point(Conv& conv);
  void run_tasks(const Conv& conv, int64_t begin, int64_t end, int thread);
  void generate(Conv& conv);
  void pad_input(const Conv& conv);
  void run_ring(Conv& conv);

  // passes
  struct Narrow;
  void choose_narrow();
  Narrow narrow_candidates() const;
  bool drop_candidates(Narrow& narrow) const;
  void use_phases(Step& step, const std::set<int>& phased, bool narrow);
  void fuse_rings();
  bool can_share_ring(size_t first) const;
  void find_plain_inputs();
  void choose_plain();
  std::set<int> plain_candidates() const;
  void keep_plain(const Step& step, std::set<int>& plain) const;
  void make_plain(Step& step, const std::set<int>& plain);
  void place_values();
  void place_in_concats();

  // running
  void parallel(int64_t count, int64_t grain, const ThreadPool::Work& work);
  float* scratch_of(int thread) const { return scratch_memory_.get() + thread * scratch_floats_; }
  void load_input(int i, const float* from);
  void store_output(int i, float* to);

  const Kernels &kernels_, &exact_;
  ThreadPool pool_;
  std::mutex mutex_;
  std::vector<Value> values_;
  std::vector<int> inputs_, outputs_;
  std::vector<Step> steps_;
  std::vector<double> seconds_;
  bool profiling_ = false, finished_ = false;
  std::vector<Floats> weights_;
  int64_t weight_floats_ = 0, arena_floats_ = 0, scratch_floats_ = 0;
  Floats arena_, scratch_memory_;
};

}  // namespace hfrt
