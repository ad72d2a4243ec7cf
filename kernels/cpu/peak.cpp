#include "peak.hpp"

#include <chrono>
#include <thread>
#include <vector>

namespace hfrt {
namespace {

// Enough independent chains to hide the latency of a multiply-add on two units.
constexpr int kChains = 12;
constexpr int kSteps = 4096;

template <int Width>
struct Vector {
  typedef float type __attribute__((vector_size(Width * sizeof(float))));
};

template <int Width>
__attribute__((always_inline)) inline float chains(float seed) {
  typename Vector<Width>::type a[kChains], x, y;
  for (int i = 0; i < Width; ++i) x[i] = 0.999f + seed, y[i] = 1e-3f;
  for (int c = 0; c < kChains; ++c) a[c] = y * static_cast<float>(c + 1);
  for (int step = 0; step < kSteps; ++step)
    for (int c = 0; c < kChains; ++c) a[c] = a[c] * x + y;
  float sum = 0;
  for (int c = 0; c < kChains; ++c) sum += a[c][0];
  return sum;
}

using Burst = float (*)(float);

struct Kind {
  Burst burst;
  int width;
};

float burst_default(float seed) { return chains<4>(seed); }

#if defined(__x86_64__)
__attribute__((target("avx2,fma"), optimize("fp-contract=fast"))) float burst_avx2(float seed) {
  return chains<8>(seed);
}
__attribute__((target("avx512f,fma"), optimize("fp-contract=fast"))) float burst_avx512(
    float seed) {
  return chains<16>(seed);
}
Kind widest() {
  if (__builtin_cpu_supports("avx512f")) return {burst_avx512, 16};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {burst_avx2, 8};
  return {burst_default, 4};
}
#else
Kind widest() { return {burst_default, 4}; }
#endif

}  // namespace

double peak_gflops(int threads, double seconds) {
  using clock = std::chrono::steady_clock;
  const Kind kind = widest();
  std::vector<double> rates(static_cast<size_t>(threads));
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t)
    pool.emplace_back([&rates, kind, seconds, t] {
      volatile float sink = kind.burst(0.0f);  // wakes the wide units up
      const auto start = clock::now();
      long bursts = 0;
      double elapsed = 0;
      while (elapsed < seconds) {
        sink = kind.burst(static_cast<float>(t) * 1e-9f);
        ++bursts;
        elapsed = std::chrono::duration<double>(clock::now() - start).count();
      }
      (void)sink;
      rates[static_cast<size_t>(t)] =
          2.0 * kind.width * kChains * kSteps * static_cast<double>(bursts) / elapsed / 1e9;
    });
  for (auto& thread : pool) thread.join();
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

}  // namespace hfrt
