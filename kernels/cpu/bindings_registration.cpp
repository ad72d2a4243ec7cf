// Python's side of registration.hpp. The argument types are the checks; the kernels do the rest.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include "bindings.hpp"
#include "registration.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using hfrt::Shape3;
using Floats = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Mask = nb::ndarray<const uint8_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::shape<3, 4>, nb::c_contig, nb::device::cpu>;

template <class Array>
Shape3 shape_of(const Array& a) {
  Shape3 shape;
  for (size_t i = 0; i < 3; ++i) {
    shape[i] = static_cast<int64_t>(a.shape(i));
    if (shape[i] == 0) throw nb::value_error("a volume's axis has no voxel");
  }
  return shape;
}

hfrt::FloatVolume volume_of(const Floats& a) { return {a.data(), shape_of(a)}; }

void check_shape(const Shape3& got, const Shape3& wanted) {
  if (got != wanted) throw nb::value_error("an array has another shape than it must have");
}

const uint8_t* mask_of(const std::optional<Mask>& mask, const Out& out) {
  if (!mask) return nullptr;
  check_shape(shape_of(*mask), shape_of(out));
  return mask->data();
}

void block_means(const Floats& voxels, const Shape3& step, const Out& out) {
  const hfrt::FloatVolume in = volume_of(voxels);
  Shape3 wanted;
  for (size_t a = 0; a < 3; ++a) {
    if (step[a] < 1) throw nb::value_error("a block has at least one voxel along each axis");
    wanted[a] = (in.shape[a] + step[a] - 1) / step[a];
  }
  check_shape(shape_of(out), wanted);
  nb::gil_scoped_release release;
  hfrt::block_means(in, step, out.data());
}

void smooth(const Floats& voxels, const std::array<double, 3>& sigma, double truncate,
            const Out& out) {
  check_shape(shape_of(out), shape_of(voxels));
  const hfrt::FloatVolume in = volume_of(voxels);
  nb::gil_scoped_release release;
  hfrt::smooth(in, sigma.data(), truncate, out.data());
}

void sample_linear(const Floats& voxels, const Matrix& matrix, bool nearest,
                   const std::optional<Mask>& mask, const Out& out) {
  const hfrt::FloatVolume in = volume_of(voxels);
  const uint8_t* where = mask_of(mask, out);
  const Shape3 shape = shape_of(out);
  nb::gil_scoped_release release;
  hfrt::sample_linear(in, matrix.data(), nearest, where, shape, out.data());
}

void sample_cubic(const Floats& voxels, const Matrix& matrix, const std::optional<Mask>& mask,
                  const Out& out) {
  const hfrt::FloatVolume in = volume_of(voxels);
  const uint8_t* where = mask_of(mask, out);
  const Shape3 shape = shape_of(out);
  nb::gil_scoped_release release;
  hfrt::sample_cubic(in, matrix.data(), where, shape, out.data());
}

using Normal = nb::ndarray<double, nb::shape<12, 12>, nb::c_contig, nb::device::cpu>;
using Gradient = nb::ndarray<double, nb::shape<12>, nb::c_contig, nb::device::cpu>;

// (inside, score, cost, scale)
std::array<double, 4> equations(const hfrt::LocalCorrelation& self, const Floats& scan,
                                const Matrix& matrix, double least,
                                const std::optional<Normal>& normal,
                                const std::optional<Gradient>& gradient) {
  const hfrt::FloatVolume in = volume_of(scan);
  const bool derive = normal && gradient;
  hfrt::Equations found;
  {
    nb::gil_scoped_release release;
    found = self.at(in, matrix.data(), least, derive);
  }
  if (derive) {
    std::copy(found.normal.begin(), found.normal.end(), normal->data());
    std::copy(found.gradient.begin(), found.gradient.end(), gradient->data());
  }
  return {found.inside, found.score, found.cost, found.scale};
}

}  // namespace

void define_registration(nb::module_& m) {
  m.def("block_means", block_means, "voxels"_a, "step"_a, "out"_a);
  m.def("smooth", smooth, "voxels"_a, "sigma"_a, "truncate"_a, "out"_a);
  m.def("sample_linear", sample_linear, "voxels"_a, "matrix"_a, "nearest"_a, "mask"_a.none(),
        "out"_a);
  m.def("sample_cubic", sample_cubic, "voxels"_a, "matrix"_a, "mask"_a.none(), "out"_a);
  nb::class_<hfrt::LocalCorrelation>(m, "LocalCorrelation")
      .def(
          "__init__",
          [](hfrt::LocalCorrelation* self, const Floats& image, const Mask& compared,
             double sigma) {
            check_shape(shape_of(compared), shape_of(image));
            if (!(sigma > 0)) throw nb::value_error("the window must be wider than 0");
            new (self)
                hfrt::LocalCorrelation(image.data(), compared.data(), shape_of(image), sigma);
          },
          "image"_a, "compared"_a, "sigma"_a)
      .def_ro("centre", &hfrt::LocalCorrelation::centre)
      .def_ro("radius", &hfrt::LocalCorrelation::radius)
      .def("at", equations, "scan"_a, "matrix"_a, "least"_a, "normal"_a.none(),
           "gradient"_a.none());
}
