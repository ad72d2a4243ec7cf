// Batch norm in training, in parts between which several processes can add up what they found.
#pragma once

#include <cstdint>

#include "../isa/training.hpp"

namespace hfrt {

// Of norm.x, per channel: how many numbers, their sum, the sum of their squares: sums [3][C]. The
// sums of several processes add up. Only x and its sizes are read, and no pooling.
void norm_sums(const TrainingKernels& kernels, int threads, const Norm& norm, double* sums);

// What the sums mean. running <- running + momentum * (found - running), where the variance found
// is the unbiased one.
struct NormStatistics {
  const double* sums;             // [3][C]
  const float* weight;            // [C]
  float *mean, *inverse, *scale;  // [C] each: mean, 1 / sqrt(variance + eps), weight times that
  float *running_mean, *running_variance;  // [C]
};
void norm_statistics(const NormStatistics& of, int64_t channels, double eps, double momentum);

void norm(const TrainingKernels& kernels, int threads, const Norm& norm, float* y);

// Sums [2][C] of the gradient g of what is normalised, scaled and shifted, and of g * normalised x:
// the gradients of bias and weight.
void norm_gradient_sums(const TrainingKernels& kernels, int threads, const Norm& norm,
                        const float* inverse, const float* dy, double* sums);

// dx, of sums over all `count` numbers of a channel.
void norm_gradient(const TrainingKernels& kernels, int threads, const Norm& norm,
                   const float* inverse, const float* dy, const double* sums, const double* count,
                   float* dx);

}  // namespace hfrt
