#include "dispatch.hpp"

#include <cstdlib>
#include <stdexcept>

namespace hfrt {

std::vector<std::string> available_isas() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) found.emplace_back("avx512_bf16");
  if (avx512) found.emplace_back("avx512");
  if (avx2) found.emplace_back("avx2");
#elif defined(__aarch64__)
  found.emplace_back("neon");
#endif
  return found;
}

namespace {

// `isa`, or the environment's HFRT_ISA, or the fastest: one that this machine has.
std::string chosen(const std::string& isa) {
  const auto available = available_isas();
  std::string wanted = isa;
  if (wanted.empty())
    if (const char* forced = std::getenv("HFRT_ISA")) wanted = forced;
  if (wanted.empty() && !available.empty()) wanted = available.front();
  std::string list;
  for (const auto& name : available) {
    if (name == wanted) return name;
    list += (list.empty() ? "" : ", ") + name;
  }
  throw std::invalid_argument(
      "instruction set '" + wanted + "' (HFRT_ISA): this machine has " +
      (list.empty() ? "none that the native engine knows (AVX2 with FMA, AVX-512, NEON)" : list));
}

}  // namespace

const Kernels& kernels_for(const std::string& isa, bool bf16) {
  [[maybe_unused]] const std::string name = chosen(isa);
#if defined(__x86_64__)
  if (name == "avx512_bf16" && bf16) return kernels_avx512_bf16_bf16();
  if (name == "avx2") return bf16 ? kernels_avx2_bf16() : kernels_avx2_fp32();
  return bf16 ? kernels_avx512_bf16() : kernels_avx512_fp32();
#elif defined(__aarch64__)
  return bf16 ? kernels_neon_bf16() : kernels_neon_fp32();
#endif
}

const TrainingKernels& training_kernels_for(const std::string& isa) {
  [[maybe_unused]] const std::string name = chosen(isa);
#if defined(__x86_64__)
  return name == "avx2" ? training_avx2() : training_avx512();
#elif defined(__aarch64__)
  return training_neon();
#endif
}

}  // namespace hfrt
