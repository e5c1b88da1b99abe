// The feed-forward network of experts for decode-sized batches, on a CPU.
//
//   y[t] = W_down · act(W_gate · x[t], W_up · x[t])          (gated)
//   y[t] = W_down · act(W_up · x[t])                         (has_gate = false)
//
// Batch-1 experts stream their weights once, so DRAM bandwidth is the limit. Weights may be
// bf16, fp16 or fp32 and need no alignment beyond one byte; x is widened to fp32; every sum is
// fp32. **Batch invariance**: y[t] has the same bits whichever other tokens are in the call,
// whichever jobs are beside it and however many threads run it, because each output element is
// summed in one fixed order. Bits may differ between instruction sets.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/types.h"
#include "kernels/worker_pool.h"

namespace prophet {

enum class Activation : std::uint8_t {
  silu,       // silu(g) * u
  gelu_erf,   // gelu(g) * u, exact
  gelu_tanh,  // gelu(g) * u, tanh approximation
  relu,       // relu(g) * u
  relu2,      // relu(g)^2 * u
};            // without a gate: act(u) alone

// Names as in the enum, for bindings. Throws InvalidArgument listing the known names.
Activation activation_from_name(std::string_view name);

struct FfnShape {
  std::int32_t hidden = 0;  // H, rows of W_down and columns of W_gate, W_up
  std::int32_t inter = 0;   // I, rows of W_gate, W_up and columns of W_down
  DType weights = DType::bf16;
  Activation activation = Activation::silu;
  bool has_gate = true;
};

// One expert applied to some tokens. Matrices are row-major and dense: gate, up [I, H], down [H,
// I].
struct FfnJob {
  const std::byte* gate = nullptr;  // null when !has_gate
  const std::byte* up = nullptr;
  const std::byte* down = nullptr;
  std::int32_t tokens = 0;             // how many rows this expert serves, >= 1
  const std::int32_t* rows = nullptr;  // [tokens] row of x for each
  float* const* outputs = nullptr;     // [tokens] where each result goes, [H] floats, overwritten
};

// Scratch that a caller keeps between calls so that the hot path allocates nothing.
struct FfnScratch {
  std::vector<float> activations;
  std::vector<std::int32_t> starts;
};

// Computes all jobs. `x` is [rows, H] float32.
void expert_ffn(const FfnShape& shape, std::span<const FfnJob> jobs, const float* x,
                FfnScratch& scratch, WorkerPool& pool);

// Converts between activations' dtype and float32: n elements.
void widen(DType from, const void* source, float* target, std::size_t n);
void narrow(const float* source, DType to, void* target, std::size_t n);  // round to nearest even

// out[i] = sum over k of weights[k] * parts[k][i], k ascending, i < n. Parts that are null are
// skipped.
void weighted_sum(const float* weights, const float* const* parts, int k, float* out,
                  std::size_t n);

// "avx512", "avx2" or "portable": what expert_ffn runs on this machine.
// PROPHET_ISA=portable|avx2|avx512 in the environment, read at first use, lowers it (never raises
// it above what the CPU has).
std::string_view kernel_isa();
// Every instruction set this machine can run, best first, and a way to choose one (tests,
// benchmarks).
std::vector<std::string> kernel_isas();
void set_kernel_isa(std::string_view isa);

}  // namespace prophet
