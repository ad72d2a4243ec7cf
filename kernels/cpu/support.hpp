// Which voxels of a scan are background, by a rule that survives storage, resampling and offset.
#pragma once

#include <cstdint>
#include <vector>

#include "volume.hpp"

namespace hfrt {

// A bit per voxel. Bit b of a row's words is the voxel of index b along the first axis.
struct Bits {
  std::vector<uint64_t> words;
  int64_t strides[3] = {0, 0, 0};  // in bits, of the volume's axes

  bool operator[](int64_t at) const { return words[at >> 6] >> (at & 63) & 1; }
};

// The background is what has the value of the border and is connected with it:
//
//   b       the most frequent value of the six faces: the centre of the fullest window of 1/128 of
//           the scan's range, and the one stored value that most of that window has, if there is
//           one
//   side    +1 where the rest is brighter than b, -1 where it is darker, 0 where it is both
//   level   the median of side * (v - b) over what is not background
//   T       a tenth of level, at least 4 standard deviations of the border's noise (at most level /
//           4); with side 0 half a step of the stored numbers, or those 4 standard deviations
//   background: connected (6 neighbours) with the border by voxels of side * (v - b) <= T (side 0:
//           |v - b| <= T) or NaN; and single voxels in it. Everything else is support, holes too.
//
// A border that is mostly NaN has b = 0. Numbers are those of the stored voxels. The rule does not
// depend on the order or direction of the axes, nor on a linear change of the values. A scan whose
// border has no such value (its fullest window and those around it hold less than a third of the
// faces) has no background: `found` is false.
struct Support {
  int64_t shape[3] = {0, 0, 0};  // of the volume
  bool found = false;
  int side = 0;
  double background = 0, level = 0, threshold = 0;
  Bits outside;  // background
  Bits rim;      // support with a neighbour in the background
  // Of the 8 voxels from one to the next along every axis: whether all are background; whether all
  // are support and none is rim.
  Bits outer, inner;

  // Whether each voxel is support, in C order of the volume's axes.
  void write_mask(uint8_t* out) const;
};

Support find_support(const Volume& volume);

}  // namespace hfrt
