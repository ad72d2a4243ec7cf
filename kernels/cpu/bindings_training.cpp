// What training on a CPU uses.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>

#include "bindings.hpp"
#include "engine/dispatch.hpp"
#include "training/filter_gradient.hpp"
#include "training/norm.hpp"
#include "training/parallel.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Scans = nb::ndarray<const float, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using ScansOut = nb::ndarray<float, nb::ndim<5>, nb::c_contig, nb::device::cpu>;
using Matrices = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Row = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using RowOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using RowsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<const double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using SumsOut = nb::ndarray<double, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check(bool fits, const char* what) {
  if (!fits) throw nb::value_error((std::string(what) + " has another shape than x needs").c_str());
}

template <typename Array>
bool is(const Array& a, size_t rows, size_t columns) {
  return a.shape(0) == rows && a.shape(1) == columns;
}

void check_channels(size_t channels) {
  if (channels < 1 || hfrt::norm_period(static_cast<int64_t>(channels)) > hfrt::kNormPeriod)
    throw nb::value_error("x has a number of channels that the kernels do not take");
}

// statistics [3][C]: mean, 1 / standard deviation, scale.
hfrt::Norm norm_of(const Scans& x, const Rows& statistics, const Row& bias,
                   const std::optional<Rows>& factor, bool relu, bool pool) {
  const size_t c = x.shape(4);
  check_channels(c);
  check(is(statistics, 3, c), "statistics");
  check(bias.shape(0) == c, "bias");
  check(!factor || is(*factor, x.shape(0), c), "factor");
  const auto size = [&](size_t axis) { return static_cast<int64_t>(x.shape(axis)); };
  const float* s = statistics.data();
  return {x.data(), size(0), size(1),   size(2),     size(3),
          size(4),  s,       s + 2 * c, bias.data(), factor ? factor->data() : nullptr,
          relu,     pool};
}

template <typename Array>
void check_output(const hfrt::Norm& n, const Array& y) {
  const int64_t part = n.pool ? 2 : 1;
  const int64_t sizes[] = {n.batch, n.d / part, n.h / part, n.w / part, n.channels};
  for (size_t a = 0; a < 5; ++a) check(static_cast<int64_t>(y.shape(a)) == sizes[a], "y");
}

}  // namespace

void define_training(nb::module_& m) {
  m.def(
      "filter_gradient",
      [](const Scans& x, const Scans& dy, int64_t stride, const ScansOut& weight,
         const RowOut& bias, int threads, const std::string& isa) {
        const auto size = [](const Scans& a, size_t axis) {
          return static_cast<int64_t>(a.shape(axis));
        };
        if (stride < 1) throw nb::value_error("stride is 1 at least");
        const hfrt::FilterGradient of{x.data(),    dy.data(),   size(x, 0),  size(x, 1),
                                      size(x, 2),  size(x, 3),  size(x, 4),  size(dy, 1),
                                      size(dy, 2), size(dy, 3), size(dy, 4), stride};
        bool fits = size(dy, 0) == of.batch;
        for (size_t a = 1; a < 4; ++a) fits &= size(dy, a) == (size(x, a) - 1) / stride + 1;
        check(fits && x.size() && of.cout, "dy");
        const size_t shape[] = {dy.shape(4), 3, 3, 3, x.shape(4)};
        for (size_t a = 0; a < 5; ++a) check(weight.shape(a) == shape[a], "weight");
        check(bias.shape(0) == dy.shape(4), "bias");
        const auto& kernels = hfrt::training_kernels_for(isa);
        nb::gil_scoped_release release;
        hfrt::filter_gradient(kernels, threads, of, weight.data(), bias.data());
      },
      "x"_a.noconvert(), "dy"_a.noconvert(), "stride"_a, "weight"_a.noconvert(),
      "bias"_a.noconvert(), "threads"_a, "isa"_a = "",
      "Into `weight` [Cout, 3, 3, 3, Cin] and `bias` [Cout]: gradients of a 3x3x3 convolution with "
      "a border of one voxel, of `x` [B, D, H, W, Cin] and `dy`.");
  m.def(
      "set_team", [](uintptr_t entry) { hfrt::set_team(reinterpret_cast<hfrt::Team>(entry)); },
      "entry"_a, "The address of the GOMP_parallel whose threads the kernels of training run on.");
  m.def(
      "norm_sums",
      [](const Scans& x, const SumsOut& sums, int threads, const std::string& isa) {
        check(is(sums, 3, x.shape(4)), "sums");
        check_channels(x.shape(4));
        const auto size = [&](size_t axis) { return static_cast<int64_t>(x.shape(axis)); };
        const hfrt::Norm n{x.data(), size(0), size(1), size(2), size(3), size(4),
                           nullptr,  nullptr, nullptr, nullptr, false,   false};
        const auto& kernels = hfrt::training_kernels_for(isa);
        nb::gil_scoped_release release;
        hfrt::norm_sums(kernels, threads, n, sums.data());
      },
      "x"_a.noconvert(), "sums"_a.noconvert(), "threads"_a, "isa"_a = "",
      "Into `sums` [3, C]: count, sum and sum of squares of each channel of `x` [B, D, H, W, C].");
  m.def(
      "norm_statistics",
      [](const Sums& sums, const Row& weight, double eps, double momentum, const RowOut& mean,
         const RowOut& variance, const RowsOut& statistics) {
        const size_t c = weight.shape(0);
        check(is(sums, 3, c), "sums");
        check(is(statistics, 3, c), "statistics");
        check(mean.shape(0) == c && variance.shape(0) == c, "a running statistic");
        float* s = statistics.data();
        hfrt::norm_statistics(
            {sums.data(), weight.data(), s, s + c, s + 2 * c, mean.data(), variance.data()},
            static_cast<int64_t>(c), eps, momentum);
      },
      "sums"_a.noconvert(), "weight"_a.noconvert(), "eps"_a, "momentum"_a,
      "running_mean"_a.noconvert(), "running_variance"_a.noconvert(), "statistics"_a.noconvert(),
      "Into `statistics` [3, C]: mean, 1 / sqrt(variance + eps) and `weight` times that. The "
      "running "
      "statistics move.");
  m.def(
      "norm",
      [](const Scans& x, const Rows& statistics, const Row& bias, const std::optional<Rows>& factor,
         bool relu, bool pool, const ScansOut& y, int threads, const std::string& isa) {
        const hfrt::Norm n = norm_of(x, statistics, bias, factor, relu, pool);
        check_output(n, y);
        const auto& kernels = hfrt::training_kernels_for(isa);
        nb::gil_scoped_release release;
        hfrt::norm(kernels, threads, n, y.data());
      },
      "x"_a.noconvert(), "statistics"_a.noconvert(), "bias"_a.noconvert(),
      "factor"_a.noconvert().none(), "relu"_a, "pool"_a, "y"_a.noconvert(), "threads"_a,
      "isa"_a = "", "Into `y`: factor * pool(relu(scale * (x - mean) + bias)).");
  m.def(
      "norm_gradient_sums",
      [](const Scans& x, const Rows& statistics, const Row& bias, const std::optional<Rows>& factor,
         bool relu, bool pool, const Scans& dy, const SumsOut& sums, int threads,
         const std::string& isa) {
        const hfrt::Norm n = norm_of(x, statistics, bias, factor, relu, pool);
        check_output(n, dy);
        check(is(sums, 2, x.shape(4)), "sums");
        const auto& kernels = hfrt::training_kernels_for(isa);
        nb::gil_scoped_release release;
        hfrt::norm_gradient_sums(kernels, threads, n, statistics.data() + n.channels, dy.data(),
                                 sums.data());
      },
      "x"_a.noconvert(), "statistics"_a.noconvert(), "bias"_a.noconvert(),
      "factor"_a.noconvert().none(), "relu"_a, "pool"_a, "dy"_a.noconvert(), "sums"_a.noconvert(),
      "threads"_a, "isa"_a = "", "Into `sums` [2, C]: the gradients of bias and weight.");
  m.def(
      "norm_gradient",
      [](const Scans& x, const Rows& statistics, const Row& bias, const std::optional<Rows>& factor,
         bool relu, bool pool, const Scans& dy, const Sums& sums, const Sums& forward,
         const ScansOut& dx, int threads, const std::string& isa) {
        const hfrt::Norm n = norm_of(x, statistics, bias, factor, relu, pool);
        check_output(n, dy);
        check(is(sums, 2, x.shape(4)), "sums");
        check(is(forward, 3, x.shape(4)), "the sums of the forward pass");
        for (size_t a = 0; a < 5; ++a) check(dx.shape(a) == x.shape(a), "dx");
        const auto& kernels = hfrt::training_kernels_for(isa);
        nb::gil_scoped_release release;
        hfrt::norm_gradient(kernels, threads, n, statistics.data() + n.channels, dy.data(),
                            sums.data(), forward.data(), dx.data());
      },
      "x"_a.noconvert(), "statistics"_a.noconvert(), "bias"_a.noconvert(),
      "factor"_a.noconvert().none(), "relu"_a, "pool"_a, "dy"_a.noconvert(), "sums"_a.noconvert(),
      "forward"_a.noconvert(), "dx"_a.noconvert(), "threads"_a, "isa"_a = "",
      "Into `dx`: the gradient of x, of `sums` [2, C] and the `forward` sums [3, C] over all "
      "processes.");
  m.def(
      "warp",
      [](const Scans& images, const Matrices& matrix, const Rows& shift,
         const std::optional<Scans>& elastic, const ScansOut& values, const ScansOut& inside,
         int threads, const std::string& isa) {
        const auto size = [&](size_t axis) { return static_cast<int64_t>(images.shape(axis)); };
        const hfrt::Warp of{images.data(), size(0),      size(1),
                            size(2),       size(3),      size(4),
                            matrix.data(), shift.data(), elastic ? elastic->data() : nullptr};
        check(matrix.shape(0) == images.shape(0) && matrix.shape(1) == 3 && matrix.shape(2) == 3,
              "matrix");
        check(is(shift, images.shape(0), 3), "shift");
        for (size_t a = 0; a < 5; ++a) {
          check(values.shape(a) == images.shape(a) && inside.shape(a) == images.shape(a),
                "values or inside");
          check(!elastic || elastic->shape(a) == (a == 1 ? 3 : images.shape(a)), "elastic");
        }
        check(of.d * of.h * of.w <= INT32_MAX, "images");
        const auto& kernels = hfrt::training_kernels_for(isa);
        nb::gil_scoped_release release;
        hfrt::parallel(threads, of.batch * of.d, 1, [&](int64_t begin, int64_t end) {
          kernels.warp(of, values.data(), inside.data(), begin, end);
        });
      },
      "images"_a.noconvert(), "matrix"_a.noconvert(), "shift"_a.noconvert(),
      "elastic"_a.noconvert().none(), "values"_a.noconvert(), "inside"_a.noconvert(), "threads"_a,
      "isa"_a = "",
      "Into `values` and `inside` [B, C, D, H, W]: the brain of `images`, read at `matrix` "
      "[B, 3, 3] * (voxel - centre) + centre + `shift` [B, 3] + `elastic` [B, 3, D, H, W].");
}
