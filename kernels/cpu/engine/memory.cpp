#include "memory.hpp"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hfrt {

void Release::operator()(float* p) const {
#if defined(__linux__)
  if (base != nullptr) {
    munmap(base, bytes);
    return;
  }
#endif
  std::free(p);
}

[[noreturn]] static void refuse_bytes(size_t bytes) {
  throw std::invalid_argument("no memory for " + std::to_string(bytes >> 20) + " MiB");
}

Floats allocate(int64_t count) {
  if (count < 0 || count > kMostFloats)
    throw std::invalid_argument("a tensor of more than 2^33 numbers");
  const size_t bytes = (static_cast<size_t>(count) * sizeof(float) + 64 + 63) / 64 * 64;
#if defined(__linux__)
  // Winograd writes to hundreds of places at once, each on a page of its own: with small pages the
  // address translation bounds it. Fresh pages from the kernel can be huge, the heap's cannot.
  constexpr size_t kHugePage = size_t{1} << 21;
  if (bytes >= kHugePage / 2) {
    const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
    void* base = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) refuse_bytes(bytes);
    const auto address = (reinterpret_cast<uintptr_t>(base) + kHugePage - 1) / kHugePage;
    auto* aligned = reinterpret_cast<float*>(address * kHugePage);
    madvise(aligned, whole - kHugePage, MADV_HUGEPAGE);
    return Floats(aligned, Release{base, whole});
  }
#endif
  auto* memory = static_cast<float*>(std::aligned_alloc(64, bytes));
  if (memory == nullptr) refuse_bytes(bytes);
  return Floats(memory, Release{});
}

}  // namespace hfrt
