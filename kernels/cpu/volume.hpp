// A scan's voxels as they are stored, whatever their type and layout.
#pragma once

#include <cstdint>

namespace hfrt {

enum class DType { u8, i8, u16, i16, u32, i32, u64, i64, f32, f64 };

struct Volume {
  const void* voxels;  // first voxel; any layout that strides describe
  DType dtype;
  int64_t shape[3];
  int64_t strides[3];   // in elements, may be negative
  double slope, inter;  // value = slope * voxel + inter
};

// f(static_cast<const T*>(voxels)) with the type that the voxels have.
template <class F>
auto with_type(const Volume& v, F f) {
  switch (v.dtype) {
    case DType::u8: return f(static_cast<const uint8_t*>(v.voxels));
    case DType::i8: return f(static_cast<const int8_t*>(v.voxels));
    case DType::u16: return f(static_cast<const uint16_t*>(v.voxels));
    case DType::i16: return f(static_cast<const int16_t*>(v.voxels));
    case DType::u32: return f(static_cast<const uint32_t*>(v.voxels));
    case DType::i32: return f(static_cast<const int32_t*>(v.voxels));
    case DType::u64: return f(static_cast<const uint64_t*>(v.voxels));
    case DType::i64: return f(static_cast<const int64_t*>(v.voxels));
    case DType::f32: return f(static_cast<const float*>(v.voxels));
    case DType::f64: break;
  }
  return f(static_cast<const double*>(v.voxels));
}

}  // namespace hfrt
