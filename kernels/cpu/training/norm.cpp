#include "norm.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.hpp"

namespace hfrt {
namespace {

// Voxels that are worth handing to a thread.
constexpr int64_t kWorth = 32768;

int64_t grain_of(int64_t count, int64_t numbers) {
  return count ? std::max<int64_t>(1, kWorth * count / std::max<int64_t>(numbers, 1)) : 1;
}

// Adds up the tasks, in their order: out [2][C] of tasks [count][2][C].
void add_up(const std::vector<double>& tasks, int64_t channels, double* out) {
  const auto width = static_cast<size_t>(2 * channels);
  std::fill(out, out + width, 0.0);
  for (size_t at = 0; at < tasks.size(); at += width)
    for (size_t c = 0; c < width; ++c) out[c] += tasks[at + c];
}

int64_t numbers_of(const Norm& n) { return n.batch * n.channels * n.d * n.h * n.w; }

}  // namespace

void norm_sums(const TrainingKernels& kernels, int threads, const Norm& norm, double* sums) {
  const int64_t count = norm.batch * norm_parts(norm), c = norm.channels;
  std::vector<double> tasks(static_cast<size_t>(2 * c * count));
  parallel(threads, count, grain_of(count, numbers_of(norm)),
           [&](int64_t begin, int64_t end) { kernels.norm_sums(norm, tasks.data(), begin, end); });
  std::fill(sums, sums + c, static_cast<double>(numbers_of(norm) / c));
  add_up(tasks, c, sums + c);
}

void norm_statistics(const NormStatistics& of, int64_t channels, double eps, double momentum) {
  for (int64_t c = 0; c < channels; ++c) {
    const double n = of.sums[c], mean = of.sums[channels + c] / n;
    const double variance = of.sums[2 * channels + c] / n - mean * mean;
    // Rounding can leave a constant channel a little below 0; a NaN stays.
    const double spread = variance < 0 ? 0 : variance;
    const double inverse = 1 / std::sqrt(spread + eps);
    of.mean[c] = static_cast<float>(mean);
    of.inverse[c] = static_cast<float>(inverse);
    of.scale[c] = static_cast<float>(static_cast<double>(of.weight[c]) * inverse);
    const auto update = [momentum](float& running, double found) {
      running =
          static_cast<float>((1 - momentum) * static_cast<double>(running) + momentum * found);
    };
    update(of.running_mean[c], mean);
    update(of.running_variance[c], spread * n / (n - 1));
  }
}

void norm(const TrainingKernels& kernels, int threads, const Norm& norm, float* y) {
  const int64_t count = norm.batch * norm_parts(norm);
  parallel(threads, count, grain_of(count, numbers_of(norm)),
           [&](int64_t begin, int64_t end) { kernels.norm(norm, y, begin, end); });
}

void norm_gradient_sums(const TrainingKernels& kernels, int threads, const Norm& norm,
                        const float* inverse, const float* dy, double* sums) {
  const int64_t count = norm.batch * norm_parts(norm);
  std::vector<double> tasks(static_cast<size_t>(2 * norm.channels * count));
  parallel(threads, count, grain_of(count, numbers_of(norm)), [&](int64_t begin, int64_t end) {
    kernels.norm_gradient_sums(norm, dy, tasks.data(), begin, end);
  });
  add_up(tasks, norm.channels, sums);
  for (int64_t c = 0; c < norm.channels; ++c)
    sums[norm.channels + c] *= static_cast<double>(inverse[c]);
}

void norm_gradient(const TrainingKernels& kernels, int threads, const Norm& norm,
                   const float* inverse, const float* dy, const double* sums, const double* count,
                   float* dx) {
  const auto channels = static_cast<size_t>(norm.channels);
  std::vector<float> first(channels), second(channels);
  for (size_t c = 0; c < channels; ++c) {
    const auto scale = static_cast<double>(norm.scale[c]);
    first[c] = static_cast<float>(scale * sums[c] / count[c]);
    second[c] =
        static_cast<float>(scale * static_cast<double>(inverse[c]) * sums[channels + c] / count[c]);
  }
  const int64_t tasks = norm.batch * norm_parts(norm);
  parallel(threads, tasks, grain_of(tasks, numbers_of(norm)), [&](int64_t begin, int64_t end) {
    kernels.norm_gradient(norm, dy, first.data(), second.data(), dx, begin, end);
  });
}

}  // namespace hfrt
