// Every kernel on small inputs in ordinary memory, for sanitizers: kernel_races CASE PLACE SEEDS
// runs a case under that many seeds, without the barrier at PLACE ("predictor_cuda.cu:64", or
// "none"), each in a process of its own. Prints under how many of them a data race was found.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda_kernels.h"

namespace {

constexpr int kRace = 3;

}  // namespace

extern "C" void __tsan_on_report(void*) { _exit(kRace); }  // one is enough

namespace prophet {
namespace {

std::mt19937 random_engine;

// Memory that begins and ends on four bytes, as device memory does at least; `offset` bytes in.
class Bytes {
 public:
  explicit Bytes(std::size_t bytes, std::size_t offset = 0)
      : words_(new std::uint32_t[(bytes + offset + 3) / 4 + 1]()), offset_(offset) {}
  ~Bytes() { delete[] words_; }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  template <typename T = unsigned char>
  T* at() const {
    return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(words_) + offset_);
  }

 private:
  std::uint32_t* const words_;
  const std::size_t offset_;
};

// float16 or bfloat16 of small size, floats, or any bits of integers.
void fill_halves(const Bytes& to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint16_t bits = 0x2c00 | std::uint16_t(random_engine() & 0x83ff);
    std::memcpy(to.at() + 2 * i, &bits, 2);
  }
}
void fill_floats(const Bytes& to, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const float value = float(random_engine() % 1000) / 1000.0f;
    std::memcpy(to.at() + 4 * i, &value, 4);
  }
}

void require(int code) {
  if (code == 0) return;
  std::fprintf(stderr, "a kernel returned %d\n", code);
  std::exit(2);
}

void experts(int tokens, CudaWeights type, std::size_t offset) {
  constexpr int kExperts = 3, kTopK = 2, kHidden = 37, kInter = 11, kGroup = 32;
  const bool quantised = type == CudaWeights::int4;
  const std::size_t row[2] = {quantised ? (kHidden + 1) / 2u : kHidden * 2u,
                              quantised ? (kInter + 1) / 2u : kInter * 2u};
  std::vector<std::unique_ptr<Bytes>> matrices;
  const auto matrix = [&](std::size_t bytes) {
    matrices.push_back(std::make_unique<Bytes>(bytes, offset));
    fill_halves(*matrices.back(), bytes / 2);
    return matrices.back()->at();
  };
  const auto scales = [&](std::size_t count) {
    matrices.push_back(std::make_unique<Bytes>(2 * count));
    fill_halves(*matrices.back(), count);
    return matrices.back()->at();
  };
  std::vector<CudaExpert> plain;
  std::vector<CudaQuantisedExpert> small;
  for (int e = 0; e < kExperts; ++e) {
    if (quantised) {
      const auto quantised_matrix = [&](std::size_t rows, std::size_t bytes, std::size_t groups) {
        return CudaQuantised{matrix(rows * bytes), scales(rows * groups), nullptr};
      };
      small.push_back({quantised_matrix(kInter, row[0], 2), quantised_matrix(kInter, row[0], 2),
                       quantised_matrix(kHidden, row[1], 1)});
    } else {
      plain.push_back({matrix(kInter * row[0]), matrix(kInter * row[0]), matrix(kHidden * row[1])});
    }
  }
  const Bytes x(2 * tokens * kHidden), out(2 * tokens * kHidden), gates(4 * tokens * kTopK);
  fill_halves(x, tokens * kHidden);
  fill_floats(gates, tokens * kTopK);
  std::vector<std::int64_t> ids;
  for (int i = 0; i < tokens * kTopK; ++i) ids.push_back(std::int64_t(random_engine() % 4));
  CudaFfnCall call{};
  call.tokens = tokens;
  call.top_k = kTopK;
  call.experts = kExperts;
  call.hidden = kHidden;
  call.inter = kInter;
  call.group = kGroup;
  call.weights = type;
  call.io = 1;
  call.has_gate = 1;
  call.table = quantised ? static_cast<const void*>(small.data()) : plain.data();
  call.x = x.at();
  call.ids = ids.data();
  call.routing = gates.at();
  call.out = out.at();
  call.scratch_bytes = prophet_cuda_kernels()->expert_ffn_scratch_bytes(&call);
  call.scratch = std::aligned_alloc(256, call.scratch_bytes);
  require(prophet_cuda_kernels()->expert_ffn(&call, nullptr));
  std::free(call.scratch);
}

void router() {
  constexpr int kTokens = 6, kExperts = 40, kTopK = 3;
  const Bytes logits(4 * kTokens * kExperts);
  fill_floats(logits, kTokens * kExperts);
  std::vector<std::int64_t> ids(kTokens * kTopK);
  std::vector<float> weights(kTokens * kTopK);
  std::vector<CudaExpert> table(kExperts);
  std::vector<std::int32_t> missing(kExperts), missed(1);
  CudaTopKCall call{
      kTokens,      kExperts,       kTopK,        0, 0, 1, logits.at(), ids.data(), weights.data(),
      table.data(), missing.data(), missed.data()};
  require(prophet_cuda_kernels()->top_k(&call, nullptr));
}

void dequantise() {
  constexpr int kRows = 2, kColumns = 45;
  const Bytes values(kRows * 23, 1), scales(2 * kRows * 2), out(2 * kRows * kColumns);
  fill_halves(values, kRows * 23 / 2);
  fill_halves(scales, kRows * 2);
  CudaDequantiseCall call{
      kRows, kColumns, 32, CudaWeights::int4, 2, {values.at(), scales.at(), nullptr}, out.at()};
  require(prophet_cuda_kernels()->dequantise(&call, nullptr));
}

void forecaster() {
  constexpr int kLayers = 2, kExperts = 37, kLanes = 40, kRank = 21, kColumns = 24, kHidden = 5;
  constexpr int kDecays = 2, kBanks = 1, kRecents = 2, kLags = 2, kHeads = 2, kLatents = 1;
  std::vector<std::unique_ptr<Bytes>> kept;
  const auto halves = [&](std::size_t count) {
    kept.push_back(std::make_unique<Bytes>(2 * count));
    fill_halves(*kept.back(), count);
    return kept.back()->at<std::uint16_t>();
  };
  const auto floats = [&](std::size_t count) {
    kept.push_back(std::make_unique<Bytes>(4 * count));
    fill_floats(*kept.back(), count);
    return kept.back()->at<float>();
  };
  CudaBank bank{kLayers, kExperts, 2,     kRank,  kColumns, kLanes,      kDecays,
                kBanks,  kRecents, kLags, kHeads, kLatents, 1,           kHidden,
                2,       1,        {1},   {0, 1}, {1, 0},   {0.5f, 0.9f}};
  bank.entries = halves(kLayers * kExperts * (kBanks + kRecents) * kColumns);
  bank.hidden_rows = halves(kLayers * kHidden * kColumns);
  bank.middle = halves(kColumns * kColumns);
  bank.leave = halves(kLayers * kLatents * kLanes * kColumns);
  bank.ahead_rows = halves(kLayers * kLanes * kColumns);
  bank.pair = halves(bank.pairs * kLayers * kExperts * kLanes);
  bank.enter_bias = floats(kColumns);
  bank.norm_gain = floats(kLayers * kColumns);
  bank.norm_bias = floats(kLayers * kColumns);
  bank.mid_bias = floats(kColumns);
  bank.own_weight = floats(kLayers * kHeads * (kDecays + 2));
  bank.own_bias = floats(kLayers * kHeads * kLanes);
  bank.leave_mix = floats(kHeads * kLatents);
  bank.next_scale = floats(kLayers * kHeads);
  bank.gap_weight = floats(1 + kHeads);
  bank.ahead_bias = floats(kLayers * kLanes);
  bank.ahead_prior = floats(kLayers);
  bank.ahead_scale = floats(kLayers);
  std::vector<std::int32_t> row_ids(kLayers * kLags * kCudaTopK, -1);
  std::uint32_t arrived = 0;
  const CudaBankState state{floats(kLayers * kDecays * kLanes),
                            floats(kLayers * (kBanks + 1) * kColumns),
                            floats(kLayers * kLanes),
                            row_ids.data(),
                            floats(row_ids.size()),
                            floats(kColumns),
                            &arrived};
  std::vector<float> gaps(kExperts), next(kExperts), probabilities(kExperts);
  for (int step = 0; step < 3; ++step) {
    const std::vector<std::int64_t> ids = {3 + step, 7, 5, 1 + step};
    const CudaBankCall call{step % kLayers,
                            2,
                            2,
                            0,
                            0,
                            ids.data(),
                            floats(4),
                            floats(kHidden),
                            gaps.data(),
                            next.data(),
                            probabilities.data()};
    require(prophet_cuda_kernels()->predict(&bank, &state, &call, nullptr));
  }
}

void run(const std::string& name) {
  if (name == "one_token") return experts(1, CudaWeights::bf16, 0);
  if (name == "experts") return experts(3, CudaWeights::bf16, 2);
  if (name == "int4") return experts(3, CudaWeights::int4, 1);
  if (name == "top_k") return router();
  if (name == "dequantise") return dequantise();
  if (name == "predict") return forecaster();
  std::fprintf(stderr, "no case is called %s\n", name.c_str());
  std::exit(2);
}

}  // namespace
}  // namespace prophet

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  if (std::strcmp(argv[2], "none") != 0) setenv("PROPHET_EMULATED_DROP", argv[2], 1);
  int races = 0;
  for (int seed = 0; seed < std::atoi(argv[3]); ++seed) {
    setenv("PROPHET_EMULATED_SEED", std::to_string(seed).c_str(), 1);
    const pid_t child = fork();
    if (child == 0) {
      prophet::random_engine.seed(std::uint32_t(seed));
      prophet::run(argv[1]);
      _exit(0);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 1;
    if (WEXITSTATUS(status) == kRace) {
      ++races;
    } else if (WEXITSTATUS(status) != 0) {
      return 1;
    }
  }
  std::printf("%d\n", races);
  return 0;
}
