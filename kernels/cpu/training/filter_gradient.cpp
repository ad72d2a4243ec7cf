#include "filter_gradient.hpp"

#include <vector>

#include "parallel.hpp"

namespace hfrt {

void filter_gradient(const TrainingKernels& kernels, int threads, const FilterGradient& of,
                     float* weight, float* bias) {
  const int64_t count = of.batch * of.slabs(), numbers = of.numbers(), padded = of.padded();
  std::vector<float> tasks(static_cast<size_t>(count * numbers));
  parallel(threads, count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(static_cast<size_t>(of.scratch()));
    kernels.filter_gradient(of, scratch.data(), tasks.data(), begin, end);
  });
  std::vector<double> sums(static_cast<size_t>(numbers));
  for (int64_t task = 0; task < count; ++task)
    for (int64_t i = 0; i < numbers; ++i)
      sums[static_cast<size_t>(i)] +=
          static_cast<double>(tasks[static_cast<size_t>(task * numbers + i)]);
  for (int64_t o = 0; o < of.cout; ++o) {
    for (int64_t i = 0; i < 27 * of.cin; ++i)
      weight[o * 27 * of.cin + i] = static_cast<float>(sums[static_cast<size_t>(i * padded + o)]);
    bias[o] = static_cast<float>(sums[static_cast<size_t>(27 * of.cin * padded + o)]);
  }
}

}  // namespace hfrt
