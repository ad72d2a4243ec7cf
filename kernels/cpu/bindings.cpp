// The only C++ file that knows Python. The argument types are the checks; the rest is in the kernels.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <tuple>

#include "crop_normalise.hpp"
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
  throw nb::type_error("crop_normalise: voxels must be integers of 8 to 64 bits, float32 or float64");
}

using Voxels = nb::ndarray<nb::ro, nb::ndim<3>, nb::device::cpu>;
using Matrix = nb::ndarray<const double, nb::shape<3, 4>, nb::c_contig, nb::device::cpu>;
using Output = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

std::tuple<int64_t, int64_t, int64_t, double, double> crop_normalise(
    const Voxels& voxels, double slope, double inter, const Matrix& matrix, const Output& out) {
  hfrt::Volume volume{voxels.data(), dtype_of(voxels.dtype()), {}, {}, slope, inter};
  int64_t out_shape[3];
  for (size_t a = 0; a < 3; ++a) {
    volume.shape[a] = static_cast<int64_t>(voxels.shape(a));
    volume.strides[a] = voxels.stride(a);
    out_shape[a] = static_cast<int64_t>(out.shape(a));
    if (volume.shape[a] == 0) throw nb::value_error("crop_normalise: a volume axis has no voxel");
  }
  hfrt::CropStatistics s;
  {
    nb::gil_scoped_release release;
    s = hfrt::crop_normalise(volume, matrix.data(), out_shape, out.data());
  }
  return {s.inside, s.nonfinite, s.nonzero, s.mean, s.deviation};
}

double peak_gflops(int threads, double seconds) {
  if (threads < 1 || threads > 4096) throw nb::value_error("peak_gflops: threads must be 1 to 4096");
  nb::gil_scoped_release release;
  return hfrt::peak_gflops(threads, seconds);
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native kernels of hyperfusion_rt.";
  m.def("crop_normalise", &crop_normalise, "voxels"_a.noconvert(), "slope"_a, "inter"_a,
        "matrix"_a.noconvert(), "out"_a.noconvert(),
        "Sample `out` float32 [D, H, W] from `voxels` [X, Y, Z] through `matrix` float64 [3, 4] and "
        "z-score its non-zero voxels in place. Returns (inside, nonfinite, nonzero, mean, deviation).");
  m.def("peak_gflops", &peak_gflops, "threads"_a, "seconds"_a = 0.2,
        "Measured float32 multiply-adds in registers, GFLOP/s over all threads: the machine's limit.");
}
