// With the other bindings the only C++ that knows Python. The argument types are the checks;
// the kernels do the rest.
#include "bindings.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "crop_normalise.hpp"
#include "engine/dispatch.hpp"
#include "engine/engine.hpp"
#include "peak.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

hfrt::DType dtype_of(nb::dlpack::dtype t) {
  using hfrt::DType;
  if (t == nb::dtype<uint8_t>()) return DType::u8;
  if (t == nb::dtype<int8_t>()) return DType::i8;
  if (t == nb::dtype<uint16_t>()) return DType::u16;
  if (t == nb::dtype<int16_t>()) return DType::i16;
  if (t == nb::dtype<uint32_t>()) return DType::u32;
  if (t == nb::dtype<int32_t>()) return DType::i32;
  if (t == nb::dtype<uint64_t>()) return DType::u64;
  if (t == nb::dtype<int64_t>()) return DType::i64;
  if (t == nb::dtype<float>()) return DType::f32;
  if (t == nb::dtype<double>()) return DType::f64;
  throw nb::type_error("voxels must be integers of 8 to 64 bits, float32 or float64");
}

using Voxels = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::shape<3, 4>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

hfrt::Volume volume_of(const Voxels& voxels, double slope, double inter) {
  hfrt::Volume volume{voxels.data(), dtype_of(voxels.dtype()), {}, {}, slope, inter};
  for (size_t a = 0; a < 3; ++a) {
    volume.shape[a] = static_cast<int64_t>(voxels.shape(a));
    volume.strides[a] = voxels.stride(a);
    if (volume.shape[a] == 0) throw nb::value_error("a volume's axis has no voxel");
  }
  return volume;
}

void check_same(const hfrt::Support& support, const hfrt::Volume& volume) {
  for (int a = 0; a < 3; ++a)
    if (support.shape[a] != volume.shape[a])
      throw nb::value_error("the support is another volume's");
}

hfrt::Support find_support(const Voxels& voxels) {
  const hfrt::Volume volume = volume_of(voxels, 1, 0);
  nb::gil_scoped_release release;
  return hfrt::find_support(volume);
}

using Mask = nb::ndarray<uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void write_mask(const hfrt::Support& support, const Mask& out) {
  for (size_t a = 0; a < 3; ++a)
    if (static_cast<int64_t>(out.shape(a)) != support.shape[a])
      throw nb::value_error("the mask has another shape than the volume");
  support.write_mask(out.data());
}

// (inside, nonfinite, support, mean, deviation); without a support, by the older rule.
std::tuple<int64_t, int64_t, double, double, double> crop_normalise(const Voxels& voxels,
                                                                    double slope, double inter,
                                                                    const hfrt::Support* support,
                                                                    const Matrix& matrix,
                                                                    const Output& out) {
  const hfrt::Volume volume = volume_of(voxels, slope, inter);
  int64_t out_shape[3];
  for (size_t a = 0; a < 3; ++a) out_shape[a] = static_cast<int64_t>(out.shape(a));
  if (support) check_same(*support, volume);
  hfrt::CropStatistics s;
  {
    nb::gil_scoped_release release;
    s = support ? hfrt::crop_normalise(volume, *support, matrix.data(), out_shape, out.data())
                : hfrt::crop_normalise_nonzero(volume, matrix.data(), out_shape, out.data());
  }
  return {s.inside, s.nonfinite, s.support, s.mean, s.deviation};
}

std::tuple<int64_t, int64_t, double, double, double> crop_range(const Voxels& voxels, double slope,
                                                                double inter, const Matrix& matrix,
                                                                double low, double high,
                                                                const Output& out) {
  const hfrt::Volume volume = volume_of(voxels, slope, inter);
  if (!(low < high)) throw nb::value_error("the range's first value must be below its second");
  int64_t out_shape[3];
  for (size_t a = 0; a < 3; ++a) out_shape[a] = static_cast<int64_t>(out.shape(a));
  hfrt::CropStatistics s;
  {
    nb::gil_scoped_release release;
    s = hfrt::crop_range(volume, matrix.data(), out_shape, low, high, out.data());
  }
  return {s.inside, s.nonfinite, s.support, s.mean, s.deviation};
}

using Reach = nb::ndarray<const double, nb::shape<3>, nb::c_contig, nb::device::cpu>;
using Points = nb::ndarray<const float, nb::shape<-1, 3>, nb::c_contig, nb::device::cpu>;
using Means = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void sample_means(const Voxels& voxels, double slope, double inter, const hfrt::Support& support,
                  const Matrix& matrix, const Reach& reach, const Points& points,
                  const Means& out) {
  const hfrt::Volume volume = volume_of(voxels, slope, inter);
  check_same(support, volume);
  if (out.shape(0) != points.shape(0)) throw nb::value_error("one mean per point is needed");
  nb::gil_scoped_release release;
  hfrt::sample_means(volume, support, matrix.data(), reach.data(), points.data(),
                     static_cast<int64_t>(points.shape(0)), out.data());
}

double peak_gflops(int threads, double seconds) {
  if (threads < 1 || threads > 4096)
    throw nb::value_error("peak_gflops: threads must be 1 to 4096");
  nb::gil_scoped_release release;
  return hfrt::peak_gflops(threads, seconds);
}

using Weights = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using MaybeWeights = std::optional<Weights>;
using Triple = std::array<int64_t, 3>;
// (name, alpha, beta, prelu's slope or None)
using Act = std::tuple<std::string, float, float, MaybeWeights>;

hfrt::Array array_of(const Weights& a) {
  if (reinterpret_cast<uintptr_t>(a.data()) % alignof(float) != 0)
    throw nb::value_error("an array that is not aligned to 4 bytes; copy it first");
  return {a.data(), static_cast<int64_t>(a.size())};
}
hfrt::Array array_of(const MaybeWeights& a) { return a ? array_of(*a) : hfrt::Array{}; }

hfrt::ActivationSpec act_of(const std::optional<Act>& act) {
  static const char* names[] = {
      "none",      "relu",    "relu6", "leaky_relu", "prelu",       "elu",      "silu", "gelu",
      "gelu_tanh", "sigmoid", "tanh",  "hardswish",  "hardsigmoid", "softplus", "mish", "clip",
      "exp",       "log",     "sqrt",  "abs",        "erf",         "power"};
  if (!act) return {};
  const auto& [name, alpha, beta, slope] = *act;
  int kind = 0;
  for (const char* known : names) {
    if (name == known) return {static_cast<hfrt::Act>(kind), alpha, beta, array_of(slope)};
    ++kind;
  }
  throw nb::value_error(("there is no activation '" + name + "'").c_str());
}

Triple triple_of(const std::vector<int64_t>& v) {
  if (v.size() != 3) throw nb::value_error("three numbers are needed, one per axis");
  return {v[0], v[1], v[2]};
}
using Ints = std::vector<int64_t>;

hfrt::Window window_of(const Ints& kernel, const Ints& stride, const Ints& padding,
                       const Ints& dilation) {
  hfrt::Window w;
  const Triple k = triple_of(kernel), s = triple_of(stride), p = triple_of(padding),
               d = triple_of(dilation);
  for (size_t i = 0; i < 3; ++i)
    w.kernel[i] = k[i], w.stride[i] = s[i], w.padding[i] = p[i], w.dilation[i] = d[i];
  return w;
}

// The lower and upper neighbour of each voxel along an axis, and the part of the second.
using Taps = std::tuple<Ints, Ints, std::vector<float>>;

hfrt::Pair pair_of(const std::string& op) {
  static const char* const names[] = {"add", "sub", "mul", "div", "maximum", "minimum"};
  for (int i = 0; i < 6; ++i)
    if (op == names[i]) return static_cast<hfrt::Pair>(i);
  throw nb::value_error(("there is no operation of two values '" + op + "'").c_str());
}

// (scale, shift, activation)
using AffineArgs = std::tuple<Weights, Weights, std::optional<Act>>;

int add_conv(hfrt::Engine& engine, int in, int out_channels, const Ints& kernel, const Ints& stride,
             const Ints& padding, const Ints& dilation, const Weights& weight, const Weights& bias,
             bool depthwise, std::optional<int> condition,
             const std::optional<AffineArgs>& prologue, std::optional<int> residual,
             const std::optional<Act>& act, bool pool, const std::optional<AffineArgs>& second,
             const std::optional<Ints>& tile,
             const std::optional<std::tuple<int, Ints, Weights>>& shortcut, bool sparse, bool pairs,
             int groups, const std::optional<Ints>& transposed, const std::optional<Ints>& behind) {
  hfrt::ConvSpec s;
  s.in = in;
  s.out_channels = out_channels;
  s.window = window_of(kernel, stride, padding, dilation);
  s.weight = array_of(weight);
  s.bias = array_of(bias);
  s.depthwise = depthwise;
  s.condition = condition.value_or(-1);
  if (prologue) {
    s.prologue_scale = array_of(std::get<0>(*prologue));
    s.prologue_shift = array_of(std::get<1>(*prologue));
    s.prologue_act = act_of(std::get<2>(*prologue));
  }
  s.residual = residual.value_or(-1);
  s.act = act_of(act);
  s.pool = pool;
  if (second) {
    s.second = true;
    s.second_scale = array_of(std::get<0>(*second));
    s.second_shift = array_of(std::get<1>(*second));
    s.second_act = act_of(std::get<2>(*second));
  }
  if (tile) {
    const Triple t = triple_of(*tile);
    for (size_t i = 0; i < 3; ++i) s.tile[i] = t[i];
  }
  if (shortcut) {
    s.shortcut = std::get<0>(*shortcut);
    const Triple t = triple_of(std::get<1>(*shortcut));
    for (size_t i = 0; i < 3; ++i) s.shortcut_stride[i] = t[i];
    s.shortcut_weight = array_of(std::get<2>(*shortcut));
  }
  s.sparse = sparse;
  s.pairs = pairs;
  s.groups = groups;
  if (behind) {
    const Triple t = triple_of(*behind);
    for (size_t i = 0; i < 3; ++i) s.window.more[i] = t[i] - s.window.padding[i];
  }
  if (transposed) {
    s.transposed = true;
    const Triple t = triple_of(*transposed);
    for (size_t i = 0; i < 3; ++i) s.extra[i] = t[i];
  }
  return engine.conv(s);
}

using Batch = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

void run_engine(hfrt::Engine& engine, const std::vector<Batch>& inputs,
                const std::vector<Result>& outputs) {
  if (inputs.size() != engine.inputs() || outputs.size() != engine.outputs())
    throw nb::value_error("a list with one array per input and one per output is needed");
  int64_t batch = -1;
  const auto check = [&](const char* what, size_t i, size_t ndim, size_t size, size_t leading,
                         int64_t floats) {
    if (ndim < 1) throw nb::value_error("arrays need a leading batch axis");
    const int64_t b = static_cast<int64_t>(leading);
    if (batch < 0) batch = b;
    if (b != batch || static_cast<int64_t>(size) != b * floats)
      throw nb::value_error((std::string(what) + " " + std::to_string(i) + " has " +
                             std::to_string(size) + " numbers in a batch of " + std::to_string(b) +
                             ", but needs " + std::to_string(floats) + " for each of " +
                             std::to_string(batch) + " samples")
                                .c_str());
  };
  std::vector<hfrt::Array> in;
  std::vector<float*> out;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const auto& a = inputs[i];
    check("input", i, a.ndim(), a.size(), a.ndim() ? a.shape(0) : 0, engine.input_floats(i));
    in.push_back(array_of(a));
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& a = outputs[i];
    check("output", i, a.ndim(), a.size(), a.ndim() ? a.shape(0) : 0, engine.output_floats(i));
    out.push_back(a.data());
  }
  nb::gil_scoped_release release;
  engine.run(in, out, std::max<int64_t>(batch, 0));
}

void define_step_kind(nb::module_& m) {
  using hfrt::StepKind;
  nb::enum_<StepKind>(m, "StepKind", "What a step of an engine is; str() is its name in a profile.")
#define HFRT_VALUE(kind, name) .value(#kind, StepKind::kind)
      HFRT_STEP_KINDS(HFRT_VALUE)
#undef HFRT_VALUE
          .def("__str__", &hfrt::name_of);
}

using hfrt::Engine;
using EngineClass = nb::class_<Engine>;

void define_building(EngineClass& engine) {
  engine
      .def(
          "__init__",
          [](Engine* self, int threads, const std::string& isa, const std::string& precision) {
            if (threads < 1 || threads > 4096) throw nb::value_error("threads must be 1 to 4096");
            if (precision != "fp32" && precision != "bf16")
              throw nb::value_error(("precision must be fp32 or bf16, not " + precision).c_str());
            const bool bf16 = precision == "bf16";
            new (self) Engine(hfrt::kernels_for(isa, bf16), hfrt::kernels_for(isa, false), threads);
          },
          "threads"_a, "isa"_a = "", "precision"_a = "fp32")
      .def("input", &Engine::input, "channels"_a, "depth"_a = 1, "height"_a = 1, "width"_a = 1)
      .def("conv", &add_conv, "x"_a, "out_channels"_a, "kernel"_a, "stride"_a, "padding"_a,
           "dilation"_a, "weight"_a, "bias"_a, "depthwise"_a = false, "condition"_a = nb::none(),
           "prologue"_a = nb::none(), "residual"_a = nb::none(), "act"_a = nb::none(),
           "pool"_a = false, "second"_a = nb::none(), "tile"_a = nb::none(),
           "shortcut"_a = nb::none(), "sparse"_a = false, "pairs"_a = false, "groups"_a = 1,
           "transposed"_a = nb::none(), "behind"_a = nb::none())
      .def("output", &Engine::output, "value"_a)
      .def("finish", &Engine::finish)
      .def("shape", &Engine::shape, "value"_a);
}

void define_pooling(EngineClass& engine) {
  engine
      .def(
          "pool",
          [](Engine& e, int x, const Ints& k, const Ints& s, const Ints& p, const Ints& d,
             bool average, bool count_include_pad, bool ceil) {
            return e.pool(x, window_of(k, s, p, d), average, count_include_pad, ceil);
          },
          "x"_a, "kernel"_a, "stride"_a, "padding"_a, "dilation"_a, "average"_a,
          "count_include_pad"_a = true, "ceil_mode"_a = false)
      .def(
          "adaptive_pool",
          [](Engine& e, int x, const Ints& size, bool average) {
            return e.adaptive_pool(x, triple_of(size).data(), average);
          },
          "x"_a, "size"_a, "average"_a)
      .def(
          "global_pool",
          [](Engine& e, int x, const Ints& stride, bool average) {
            return e.global_pool(x, triple_of(stride).data(), average);
          },
          "x"_a, "stride"_a, "average"_a)
      .def("global_norm", &Engine::global_norm, "x"_a)
      .def("reduce", &Engine::reduce, "x"_a, "kind"_a);
}

void define_volumes(EngineClass& engine) {
  engine
      .def(
          "affine",
          [](Engine& e, int x, const MaybeWeights& scale, const MaybeWeights& shift,
             const std::optional<Act>& act) {
            return e.affine(x, array_of(scale), array_of(shift), act_of(act));
          },
          "x"_a, "scale"_a = nb::none(), "shift"_a = nb::none(), "act"_a = nb::none())
      .def(
          "binary",
          [](Engine& e, int a, int b, const std::string& op, const std::optional<Act>& act) {
            return e.binary(a, b, pair_of(op), act_of(act));
          },
          "a"_a, "b"_a, "op"_a, "act"_a = nb::none())
      .def("concat", &Engine::concat, "values"_a)
      .def("slice", &Engine::slice, "x"_a, "start"_a, "stop"_a)
      .def("flatten", &Engine::flatten, "x"_a)
      .def("unflatten", &Engine::unflatten, "x"_a, "channels"_a, "depth"_a, "height"_a, "width"_a)
      .def("transpose", &Engine::transpose, "x"_a, "sizes"_a, "order"_a)
      .def(
          "remap",
          [](Engine& e, int x, const Ints& d, const Ints& h, const Ints& w, float fill) {
            const Ints tables[3] = {d, h, w};
            return e.remap(x, tables, fill);
          },
          "x"_a, "depth"_a, "height"_a, "width"_a, "fill"_a = 0.0f)
      .def(
          "blend",
          [](Engine& e, int x, const std::vector<Taps>& axes) {
            if (axes.size() != 3) throw nb::value_error("neighbours along three axes are needed");
            Ints low[3], high[3];
            std::vector<float> part[3];
            for (size_t i = 0; i < 3; ++i) std::tie(low[i], high[i], part[i]) = axes[i];
            return e.blend(x, low, high, part);
          },
          "x"_a, "axes"_a);
}

void define_normalisation(EngineClass& engine) {
  engine
      .def(
          "group_norm",
          [](Engine& e, int x, int64_t groups, const Weights& scale, const Weights& shift,
             float eps, const std::optional<Act>& act) {
            return e.group_norm(x, groups, array_of(scale), array_of(shift), eps, act_of(act));
          },
          "x"_a, "groups"_a, "scale"_a, "shift"_a, "eps"_a, "act"_a = nb::none())
      .def(
          "channel_norm",
          [](Engine& e, int x, const Weights& scale, const Weights& shift, float eps) {
            return e.channel_norm(x, array_of(scale), array_of(shift), eps);
          },
          "x"_a, "scale"_a, "shift"_a, "eps"_a)
      .def("softmax", &Engine::softmax, "x"_a, "log"_a = false);
}

void define_vectors(EngineClass& engine) {
  engine
      .def(
          "linear",
          [](Engine& e, int x, int64_t outputs, const Weights& weight, const Weights& bias,
             const std::optional<Act>& act) {
            return e.linear(x, outputs, array_of(weight), array_of(bias), act_of(act));
          },
          "x"_a, "outputs"_a, "weight"_a, "bias"_a, "act"_a = nb::none())
      .def(
          "hyper_linear",
          [](Engine& e, int x, int condition, int64_t outputs, const Weights& weight,
             const Weights& bias, const std::optional<Act>& act) {
            return e.hyper_linear(x, condition, outputs, array_of(weight), array_of(bias),
                                  act_of(act));
          },
          "x"_a, "condition"_a, "outputs"_a, "weight"_a, "bias"_a, "act"_a = nb::none())
      .def("one_and", &Engine::one_and, "x"_a)
      .def(
          "combine",
          [](Engine& e, int x, int condition, const std::optional<Act>& act) {
            return e.combine(x, condition, act_of(act));
          },
          "x"_a, "condition"_a, "act"_a = nb::none())
      .def("ensemble", &Engine::ensemble, "x"_a, "members"_a, "boxes"_a, "classes"_a, "rule"_a);
}

void define_running(EngineClass& engine) {
  engine
      .def("run", &run_engine, "inputs"_a.noconvert(), "outputs"_a.noconvert(),
           "inputs and outputs: float32 [batch, ...], one array per input and output. The GIL is "
           "released; calls from several threads take turns.")
      .def("profile", &Engine::profile, "on"_a)
      .def_prop_ro("steps", [](const Engine& e) { return e.steps(); })
      .def_prop_ro("seconds", [](const Engine& e) { return e.seconds(); })
      .def_prop_ro("threads", &Engine::threads)
      .def_prop_ro("arena_bytes", &Engine::arena_bytes)
      .def_prop_ro("weight_bytes", &Engine::weight_bytes);
}

void define_engine(nb::module_& m) {
  m.def("available_isas", &hfrt::available_isas,
        "The instruction sets that this machine and the native engine share, fastest first.");
  define_step_kind(m);
  EngineClass engine(
      m, "Engine", "Fused operations on one sample at a time; see kernels/cpu/engine/engine.hpp.");
  define_building(engine);
  define_pooling(engine);
  define_volumes(engine);
  define_normalisation(engine);
  define_vectors(engine);
  define_running(engine);
}

void define_scans(nb::module_& m) {
  nb::class_<hfrt::Support>(m, "Support",
                            "What of a scan is background; see kernels/cpu/support.hpp.")
      .def_ro("found", &hfrt::Support::found)
      .def_ro("side", &hfrt::Support::side)
      .def_ro("background", &hfrt::Support::background)
      .def_ro("level", &hfrt::Support::level)
      .def_ro("threshold", &hfrt::Support::threshold)
      .def(
          "mask", &write_mask, "out"_a.noconvert(),
          "Write whether each voxel is support into `out` uint8 [X, Y, Z], of the volume's shape.");
  m.def("crop_range", &crop_range, "voxels"_a.noconvert(), "slope"_a, "inter"_a, "matrix"_a,
        "low"_a, "high"_a, "out"_a.noconvert(),
        "Crop and resample `voxels` [X, Y, Z] into `out` [D, H, W]; `low` to `high` become 0 to 1. "
        "As crop_normalise, (inside, nonfinite, support, mean, deviation).");
  m.def("find_support", &find_support, "voxels"_a.noconvert(),
        "Where `voxels` [X, Y, Z] hold background, and where support.");
  m.def(
      "crop_normalise", &crop_normalise, "voxels"_a.noconvert(), "slope"_a, "inter"_a,
      "support"_a.none(), "matrix"_a.noconvert(), "out"_a.noconvert(),
      "Sample `out` float32 [D, H, W] from `voxels` [X, Y, Z] through `matrix` float64 [3, 4] and "
      "z-score it over `support` in place; without one, over what is not exactly 0. Returns "
      "(inside, nonfinite, support, mean, deviation).");
  m.def("sample_means", &sample_means, "voxels"_a.noconvert(), "slope"_a, "inter"_a, "support"_a,
        "matrix"_a.noconvert(), "reach"_a.noconvert(), "points"_a.noconvert(), "out"_a.noconvert(),
        "Write into `out` float32 [P] what `voxels` hold around `points` float32 [P, 3], over the "
        "background; `matrix` float64 [3, 4] leads from a point to a voxel coordinate, `reach` "
        "float64 [3] is in voxels.");
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of hyperfusion_rt.";
  define_scans(m);
  m.def("peak_gflops", &peak_gflops, "threads"_a, "seconds"_a = 0.2,
        "Measured float32 multiply-adds in registers, GFLOP/s over all threads: the machine's "
        "limit.");
  define_engine(m);
  define_registration(m);
  define_training(m);
}
