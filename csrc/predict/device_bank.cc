#include "predict/device_bank.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "kernels/predictor_math.h"
#include "predict/bank_predictor.h"

namespace prophet {
namespace {

constexpr std::size_t kUnit = 256;
constexpr std::size_t kTile = kCudaBankTile;

std::size_t rounded(std::size_t bytes) { return (bytes + kUnit - 1) / kUnit * kUnit; }

std::int32_t few(const char* what, std::size_t count) {
  if (count > std::size_t(kCudaBankParts)) {
    throw InvalidArgument("the forecaster has " + std::to_string(count) + " " + what +
                          ", its kernel has room for " + std::to_string(kCudaBankParts));
  }
  return std::int32_t(count);
}

// Output `first + o` of the CPU's tiles becomes output `o` of the kernel's.
void retile(const std::uint16_t* from, std::size_t first, std::size_t outputs, std::size_t columns,
            std::uint16_t* to) {
  for (std::size_t o = 0; o < outputs; ++o) {
    const std::size_t row = first + o;
    const std::uint16_t* in =
        from + row / kPredictorLanes * columns * kPredictorLanes + row % kPredictorLanes;
    std::uint16_t* out = to + o / kTile * columns * kTile + o % kTile;
    for (std::size_t c = 0; c < columns; ++c) out[c * kTile] = in[c * kPredictorLanes];
  }
}

// Adds `base` to every address.
template <typename T>
void move(T*& pointer, const std::byte* base) {
  pointer = reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(base) +
                                 reinterpret_cast<std::uintptr_t>(pointer));
}

}  // namespace

DeviceBank::DeviceBank(const BankNetwork& n) {
  const BankConfig& c = n.config();
  const std::size_t L = n.layers(), E = n.experts(), C = n.columns(), lanes = n.lanes(),
                    M = std::size_t(c.latents), F = std::size_t(c.ahead), N = std::size_t(c.heads);
  static_assert(kPredictorLanes % kTile == 0);
  if (E > std::size_t(kCudaExperts) || c.geometry.top_k > kCudaTopK) {
    throw InvalidArgument("the forecaster's kernel has room for " + std::to_string(kCudaExperts) +
                          " experts of which " + std::to_string(kCudaTopK) + " are chosen");
  }
  std::int32_t lags = 2;
  for (std::size_t i = 0; i < std::size_t(few("recent blocks", c.recent.size())); ++i) {
    bank_.recent_lag[i] = c.recent[i].lag;
    bank_.recent_gate[i] = c.recent[i].gate;
    lags = std::max(lags, c.recent[i].lag + 1);
  }
  bank_.layers = c.geometry.layers;
  bank_.experts = c.geometry.experts_per_layer;
  bank_.top_k = c.geometry.top_k;
  bank_.rank = c.rank;
  bank_.columns = std::int32_t(C);
  bank_.lanes = std::int32_t(lanes);
  bank_.decays = few("decays", c.decays.size());
  bank_.banks = few("banks", c.bank.size());
  bank_.recents = std::int32_t(c.recent.size());
  bank_.lags = few("rows of history", std::size_t(lags));
  bank_.heads = few("heads", N);
  bank_.latents = few("latents", M);
  bank_.ahead = few("layers ahead", F);
  bank_.hidden = c.hidden;
  bank_.has_middle = n.has_middle();
  bank_.pairs = c.pairs;
  std::copy(c.bank.begin(), c.bank.end(), bank_.bank);
  std::copy(c.decays.begin(), c.decays.end(), bank_.decay);

  const auto room = [&]<typename T>(T*& field, std::size_t count) {
    field = reinterpret_cast<T*>(std::uintptr_t(bytes_.size()));
    bytes_.resize(bytes_.size() + rounded(count * sizeof(T)));
    return reinterpret_cast<std::remove_const_t<T>*>(bytes_.data() +
                                                     reinterpret_cast<std::uintptr_t>(field));
  };
  const auto put = [&]<typename T>(T*& field, const std::remove_const_t<T>* from,
                                   std::size_t count) {
    auto* const to = room(field, count);
    if (count > 0) std::memcpy(to, from, count * sizeof(T));
  };
  put(bank_.entries, n.entries(0, 0), L * E * n.blocks() * C);
  put(bank_.hidden_rows, n.hidden(0), L * std::size_t(c.hidden) * C);
  std::uint16_t* to = room(bank_.middle, n.has_middle() ? C * C : 0);
  if (n.has_middle()) retile(n.middle(), 0, C, C, to);
  to = room(bank_.leave, L * M * lanes * C);
  for (std::size_t at = 0; at < L * M; ++at) {
    retile(n.leave(at / M), at % M * E, E, C, to + at * lanes * C);
  }
  to = room(bank_.ahead_rows, F * L * lanes * C);
  for (std::size_t at = 0; at < F * L; ++at) {
    retile(n.ahead(at / L + 1, at % L), 0, lanes, C, to + at * lanes * C);
  }
  const std::size_t pairs = std::size_t(c.pairs) * F * L * E * lanes;
  put(bank_.pair, pairs > 0 ? n.pair(0, 1, 0, 0) : nullptr, pairs);
  const auto put_all = [&](const float*& field, const std::vector<float>& from) {
    put(field, from.data(), from.size());
  };
  put_all(bank_.enter_bias, n.enter_bias);
  put_all(bank_.norm_gain, n.norm_gain);
  put_all(bank_.norm_bias, n.norm_bias);
  put_all(bank_.mid_bias, n.mid_bias);
  put_all(bank_.own_weight, n.own_weight);
  put_all(bank_.own_bias, n.own_bias);
  put_all(bank_.leave_mix, n.leave_mix);
  put_all(bank_.next_scale, n.next_scale);
  put(bank_.gap_weight, n.gap_weight.data() + std::size_t(c.limit) * (1 + N), 1 + N);
  put_all(bank_.ahead_bias, n.ahead_bias);
  put_all(bank_.ahead_prior, n.ahead_prior);
  put_all(bank_.ahead_scale, n.ahead_scale);

  const CudaBankState state = this->state(nullptr);
  state_bytes_ = reinterpret_cast<std::uintptr_t>(state.arrived) + kUnit;
}

CudaBank DeviceBank::at(const std::byte* base) const {
  CudaBank bank = bank_;
  for (const std::uint16_t** each : {&bank.entries, &bank.hidden_rows, &bank.middle, &bank.leave,
                                     &bank.ahead_rows, &bank.pair}) {
    move(*each, base);
  }
  for (const float** each :
       {&bank.enter_bias, &bank.norm_gain, &bank.norm_bias, &bank.mid_bias, &bank.own_weight,
        &bank.own_bias, &bank.leave_mix, &bank.next_scale, &bank.gap_weight, &bank.ahead_bias,
        &bank.ahead_prior, &bank.ahead_scale}) {
    move(*each, base);
  }
  return bank;
}

CudaBankState DeviceBank::state(std::byte* base) const {
  const CudaBank& b = bank_;
  const std::size_t L = std::size_t(b.layers), rows = L * std::size_t(b.lags) * kCudaTopK;
  auto at = reinterpret_cast<std::uintptr_t>(base);
  const auto room = [&]<typename T>(T*& field, std::size_t count) {
    field = reinterpret_cast<T*>(at);
    at += rounded(count * sizeof(T));
  };
  CudaBankState state{};
  room(state.averages, L * std::size_t(b.decays) * std::size_t(b.lanes));
  room(state.shares, L * std::size_t(b.banks + 1) * std::size_t(b.columns));
  room(state.raw, L * std::size_t(b.lanes));
  room(state.row_ids, rows);
  room(state.row_gates, rows);
  room(state.entered, std::size_t(b.columns));
  room(state.arrived, 1);
  return state;
}

void BankPredictor::save(const CudaBankState& to) const {
  std::copy(averages_.begin(), averages_.end(), to.averages);
  std::copy(shares_.begin(), shares_.end(), to.shares);
  std::copy(raw_.begin(), raw_.end(), to.raw);
  std::copy(entered_.begin(), entered_.end(), to.entered);
  for (std::size_t at = 0; at < rows_.size(); ++at) {
    const Row& row = rows_[at];
    const std::size_t count = row.experts.size();
    if (count > std::size_t(kCudaTopK)) {
      throw InvalidArgument("a token of " + std::to_string(count) + " experts is more than the " +
                            std::to_string(kCudaTopK) + " that a device remembers");
    }
    std::int32_t* const ids = to.row_ids + at * kCudaTopK;
    std::fill_n(ids, kCudaTopK, -1);
    std::copy(row.experts.begin(), row.experts.end(), ids);
    std::copy(row.gates.begin(), row.gates.end(), to.row_gates + at * kCudaTopK);
  }
  *to.arrived = 0;
}

void BankPredictor::load(const CudaBankState& from) {
  std::copy_n(from.averages, averages_.size(), averages_.begin());
  std::copy_n(from.shares, shares_.size(), shares_.begin());
  std::copy_n(from.raw, raw_.size(), raw_.begin());
  std::copy_n(from.entered, entered_.size(), entered_.begin());
  for (std::size_t at = 0; at < rows_.size(); ++at) {
    Row& row = rows_[at];
    row.experts.clear();
    row.gates.clear();
    for (std::size_t k = at * kCudaTopK; k < (at + 1) * kCudaTopK; ++k) {
      if (from.row_ids[k] < 0) continue;
      row.experts.push_back(from.row_ids[k]);
      row.gates.push_back(from.row_gates[k]);
    }
  }
  seen_ = -1;
}

}  // namespace prophet
