// Compiled once per instruction set: HFRT_ISA names it.
#include "elementwise.hpp"
#include "gather.hpp"
#include "one_channel.hpp"
#include "winograd.hpp"

#define HFRT_JOIN(a, b) a##b
#define HFRT_TABLE(isa) HFRT_JOIN(kernels_, isa)
#define HFRT_STRING(s) #s
#define HFRT_NAME(isa) HFRT_STRING(isa)

namespace hfrt {

const Kernels& HFRT_TABLE(HFRT_ISA)() {
  static const Kernels table{HFRT_NAME(HFRT_ISA), kVectorsPerPanel,
                             kRows1,              kRows2,
                             ::pack,              ::winograd_weights,
                             ::mix,               ::winograd,
                             ::gather,            ::one_channel,
                             ::depthwise,         ::pool,
                             ::affine,            ::binary,
                             ::reduce,            ::deviation,
                             ::linear};
  return table;
}

}  // namespace hfrt
