// The machine's limit of float32 multiply-adds, measured: the floor under every kernel's time.
#pragma once

namespace hfrt {

// GFLOP/s (a multiply-add is two) of `threads` threads that multiply and add in registers for about
// `seconds`, with the processor's widest vectors (AVX-512, AVX2 with FMA, or the default).
double peak_gflops(int threads, double seconds);

}  // namespace hfrt
