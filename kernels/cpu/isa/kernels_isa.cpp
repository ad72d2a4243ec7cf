// Compiled once per instruction set and stored type: HFRT_ISA and HFRT_TYPE name them, and
// HFRT_STORED_fp32 or HFRT_STORED_bf16 is defined.
#include "elementwise.hpp"
#include "gather.hpp"
#include "narrow.hpp"
#include "plain.hpp"
#include "planar.hpp"
#include "reduce.hpp"
#include "winograd.hpp"

#define HFRT_JOIN(isa, type) kernels_##isa##_##type
#define HFRT_TABLE(isa, type) HFRT_JOIN(isa, type)
#define HFRT_STRING(s) #s
#define HFRT_NAME(isa) HFRT_STRING(isa)

namespace hfrt {

const Kernels& HFRT_TABLE(HFRT_ISA, HFRT_TYPE)() {
  static const Kernels table{HFRT_NAME(HFRT_ISA),
                             kVectorsPerPanel,
                             kRows1,
                             kRows2,
                             sizeof(Stored),
                             kPair<Factor>,
                             ::pack,
                             ::winograd_weights,
                             ::mix,
                             ::winograd,
                             ::narrow,
                             ::gather,
                             sizeof(Factor) == sizeof(Stored) ? ::pointwise : nullptr,
                             ::planar,
                             ::depthwise,
                             ::block,
                             ::unblock,
                             ::pool,
                             ::affine,
                             ::binary,
                             ::reduce,
                             ::moments,
                             ::along_channels,
                             ::blend,
                             ::affine_plain,
                             ::binary_plain,
                             ::moments_plain,
                             ::blend_plain,
                             ::linear};
  return table;
}

}  // namespace hfrt
