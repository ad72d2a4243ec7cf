// Compiled once per instruction set, which HFRT_ISA names.
#include "filter_gradient.hpp"
#include "norm.hpp"
#include "warp.hpp"

#define HFRT_JOIN(isa) training_##isa
#define HFRT_TABLE(isa) HFRT_JOIN(isa)

namespace hfrt {

const TrainingKernels& HFRT_TABLE(HFRT_ISA)() {
  static const TrainingKernels table{
      ::norm_sums, ::norm, ::norm_gradient_sums, ::norm_gradient, ::filter_gradient, ::warp};
  return table;
}

}  // namespace hfrt
