// The gradient of a convolution's weights, on several threads.
#pragma once

#include "../isa/training.hpp"

namespace hfrt {

// weight [cout][3][3][3][cin], bias [cout]. Tasks are added in float64, in their order.
void filter_gradient(const TrainingKernels& kernels, int threads, const FilterGradient& of,
                     float* weight, float* bias);

}  // namespace hfrt
