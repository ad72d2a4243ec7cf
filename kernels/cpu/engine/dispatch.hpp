// The choice of an instruction set, made once.
#pragma once

#include <string>
#include <vector>

#include "../isa/kernels.hpp"
#include "../isa/training.hpp"

namespace hfrt {

// What this machine has, the fastest first.
std::vector<std::string> available_isas();

// The kernels of `isa`, which store volumes in float32 or bfloat16; "" takes the environment's
// HFRT_ISA or else the fastest. Throws std::invalid_argument, naming what the machine has, for any
// other.
const Kernels& kernels_for(const std::string& isa, bool bf16);

// The kernels of training, chosen in the same way.
const TrainingKernels& training_kernels_for(const std::string& isa);

}  // namespace hfrt
