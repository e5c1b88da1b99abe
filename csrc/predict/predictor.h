// What will be needed? A predictor watches the router and forecasts; it decides nothing.
//
// Causality: after observe(l) of token t a predictor may use layers <= l of token t and
// everything of earlier tokens, and nothing else; after approach(l), what was said until then:
// layers < l and what it was told of l. tests/csrc/predict holds every predictor to it by
// scrambling the future.
//
// Two forecasts, for two uses. *Next use* serves eviction: how many turns of its own layer (one
// turn per token while decoding) until an expert is used again. *Horizons* serve prefetch: the
// probability that an expert is needed when a coming layer runs, of the same token or, counting on,
// of the next one; experts that are less likely than kLeastForecast are left out.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/types.h"

namespace prophet {

// Forecasts below it are not worth handing over: with hundreds of experts they are most of them.
inline constexpr float kLeastForecast = 0.01f;

class BankPredictor;

// What the router of one layer said for the tokens of one step. Arrays are [tokens, top_k], dense.
struct Glimpse {
  std::int32_t layer = 0;
  std::int32_t tokens = 0;
  std::int32_t top_k = 0;
  const std::int32_t* experts = nullptr;  // ids outside the layer are ignored
  const float* weights = nullptr;         // gate weights; null when unknown (then 1 / top_k each)
  // [hidden_rows, hidden_width] what the router read, or null: one row, of the last token; or one
  // for the last token of each of several streams, in the order of their first tokens.
  const float* hidden = nullptr;
  // Of a pass that serves several sequences: which one each token belongs to, [tokens]; null: all
  // to one. predict/stream_predictor.h divides it; others see a single sequence.
  const std::int64_t* streams = nullptr;
  // What a device has forecast of this step in place of Predictor::bank(), or null: [2 + layers
  // ahead, experts], the gaps, P of the layer's own next turn, P of the layers ahead.
  const float* told = nullptr;
  std::int32_t hidden_rows = 1;
};

// What is known before a layer runs, while its attention is still to come and the link may idle.
struct Approach {
  std::int32_t layer = 0;   // about to run; 0 begins a forward pass
  std::int32_t tokens = 0;  // rows of the pass
  // [tokens] the tokens fed, told at layer 0 alone; null where unknown, below 0 of a row where
  // unknown.
  const std::int32_t* ids = nullptr;
  // [entering_width] what enters the layer's attention, of the last token, or null.
  const float* entering = nullptr;
  const std::int64_t* streams = nullptr;  // as in Glimpse
};

class Predictor {
 public:
  virtual ~Predictor() = default;
  virtual std::string name() const = 0;

  // The learned forecaster that sees every glimpse of a single sequence as it is; null: there is
  // none. A device may make its forecasts (Glimpse::told).
  virtual BankPredictor* bank() { return nullptr; }

  // Width of Glimpse::hidden it makes use of; 0: none.
  virtual std::int32_t hidden_width() const { return 0; }

  // Whether it makes use of Approach::ids.
  virtual bool reads_tokens() const { return false; }

  // Width of Approach::entering it makes use of; 0: none.
  virtual std::int32_t entering_width() const { return 0; }

  // Forgets everything it has seen: a new, unrelated stream of tokens begins.
  virtual void reset() = 0;

  // The router of a layer has spoken.
  virtual void observe(const Glimpse& glimpse) = 0;

  // A layer is about to run. Comes before its observe, after that of the layer before; not at all
  // where there is nothing to tell that the predictor reads. True: there is news, and
  // `forecast(source)` is asked again, where source is the layer observed last, the one before
  // `approach.layer`; of layer 0 that is the last layer of the token before, also when there was no
  // such token. Horizons count from there: 1 is `approach.layer` itself. What is said then replaces
  // what was said of the same layers before.
  virtual bool approach(const Approach& approach) {
    (void)approach;
    return false;
  }

  // E[min(gap, H)] in turns, >= 1, for every expert of `layer`, which was observed last; `gaps` has
  // experts_per_layer entries. False when this predictor has no opinion (gaps untouched).
  virtual bool next_use(std::int32_t layer, std::span<float> gaps) {
    (void)layer, (void)gaps;
    return false;
  }

  // Appends forecasts with p >= kLeastForecast for layer steps after that of `layer`, which was
  // observed last and whose `next_use` has been asked, or which comes before the layer approached
  // since. A horizon of `layers` is its own next turn.
  virtual void forecast(std::int32_t layer, std::vector<Forecast>& out) { (void)layer, (void)out; }
};

}  // namespace prophet
