#include "engine/device_forecaster.h"

#include <cstring>

#include "core/error.h"
#include "predict/bank_predictor.h"

namespace prophet {
namespace {

constexpr int kInvalidValue = 1;  // of a cudaError_t: sizes that a kernel has no room for

}  // namespace

DeviceForecaster::DeviceForecaster(const DeviceTables& tables, BankPredictor& bank,
                                   std::int32_t hidden)
    : api_(*tables.api),
      kernels_(*tables.kernels),
      predictor_(bank),
      layout_(bank.network()),
      weights_(api_),
      state_(api_),
      out_(api_),
      history_(api_),
      hidden_(hidden) {
  cuda_check(api_, api_.use_device(tables.device), "choosing a GPU");
  weights_.grow(layout_.bytes().size(), "the forecaster's weights");
  state_.grow(layout_.state_bytes(), "what the forecaster remembers");
  history_.grow(layout_.state_bytes(), "what the forecaster remembers");
  bank_ = layout_.at(weights_.data());
  memory_ = layout_.state(state_.data());
  out_.grow(std::size_t(floats()) * sizeof(float), "forecasts");
  std::memset(history_.data(), 0, history_.size());
  const DeviceStream stream(api_);
  cuda_check(api_,
             api_.copy_async(weights_.data(), layout_.bytes().data(), layout_.bytes().size(),
                             CudaCopy::to_device, stream.get()),
             "copying the forecaster to the GPU");
  cuda_check(api_, api_.fill_async(state_.data(), 0, state_.size(), stream.get()), "clearing");
  cuda_check(api_, api_.fill_async(out_.data(), 0, out_.size(), stream.get()), "clearing");
  // A step in which nothing was chosen: the kernel says whether it has room. Nobody reads it.
  HitPathCall nothing{};
  nothing.tokens = 1;
  const int code = queue(nothing, stream.get());
  cuda_check(api_, api_.stream_synchronize(stream.get()), "copying the forecaster to the GPU");
  if (code == kInvalidValue) {
    throw InvalidArgument("the forecaster's sizes exceed its kernel's shared memory");
  }
  cuda_check(api_, code, "running the forecaster on the GPU");
}

int DeviceForecaster::queue(const HitPathCall& call, void* stream) const {
  CudaBankCall step{};
  step.layer = call.layer;
  step.tokens = call.tokens;
  step.top_k = call.top_k;
  step.routing_type = call.routing_type;
  step.hidden_type = call.io;
  step.ids = call.ids;
  step.routing = call.routing;
  if (bank_.hidden > 0 && bank_.hidden == hidden_ && call.x != nullptr) {
    const std::size_t row = std::size_t(call.hidden) * size_of(static_cast<DType>(call.io));
    step.hidden = static_cast<const std::byte*>(call.x) + std::size_t(call.tokens - 1) * row;
  }
  step.gaps = out_.as<float>();
  step.next = step.gaps + bank_.experts;
  step.probabilities = step.next + bank_.experts;
  return kernels_.predict(&bank_, &memory_, &step, stream);
}

void DeviceForecaster::take(void* stream) {
  predictor_.save(layout_.state(history_.data()));
  cuda_check(
      api_,
      api_.copy_async(state_.data(), history_.data(), history_.size(), CudaCopy::to_device, stream),
      "copying what the forecaster remembers to the GPU");
  here_ = true;
}

void DeviceForecaster::give(void* stream) {
  here_ = false;  // whatever becomes of it
  cuda_check(
      api_,
      api_.copy_async(history_.data(), state_.data(), history_.size(), CudaCopy::to_host, stream),
      "copying what the forecaster remembers to the host");
  cuda_check(api_, api_.stream_synchronize(stream), "waiting for what the forecaster remembers");
  predictor_.load(layout_.state(history_.data()));
}

}  // namespace prophet
