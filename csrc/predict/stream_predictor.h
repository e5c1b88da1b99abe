// Several sequences in one pass, each with a history of its own.
//
// A server packs rows of many requests into one layer call (Glimpse::streams). What one of them
// will need follows from its own tokens, not from its neighbours': every stream gets a predictor
// from `make`, all of which should share their weights, and sees its own rows alone. What is told
// is about the pass that is coming, in which all of them take part:
//
//   forecast   P(any needs it) = 1 - prod(1 - p)
//   next use   a stream with gap g uses an expert in a turn with probability 1 / g; the union's
//              probability gives the union's gap, 1 / (1 - prod(1 - 1 / g))
//
// Streams are taken for independent. They are not quite, so the union is told a little too high.
// A stream of which a pass has no row is forgotten: its request has ended. With a single stream,
// and where no streams are named, every call goes to one predictor unchanged. Token ids are divided
// as routes are, and so are hidden states where a glimpse has one for each stream; where it has
// that of its last token alone, and of what enters a layer, only that token's stream gets to see
// it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>
#include <vector>

#include "predict/predictor.h"

namespace prophet {

class StreamPredictor final : public Predictor {
 public:
  using Make = std::function<std::unique_ptr<Predictor>()>;

  // `experts_per_layer` of the geometry that `make` makes predictors for.
  StreamPredictor(Make make, std::int32_t experts_per_layer);

  std::string name() const override { return first_->name(); }
  std::int32_t hidden_width() const override { return first_->hidden_width(); }
  BankPredictor* bank() override { return first_->bank(); }
  bool reads_tokens() const override { return first_->reads_tokens(); }
  std::int32_t entering_width() const override { return first_->entering_width(); }
  void reset() override;
  void observe(const Glimpse& glimpse) override;
  bool approach(const Approach& approach) override;
  bool next_use(std::int32_t layer, std::span<float> gaps) override;
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override;

  // Histories that are kept.
  std::size_t streams() const { return known_.size(); }

 private:
  struct Stream {
    std::unique_ptr<Predictor> predictor;
    std::vector<std::int32_t> experts, ids;  // of its rows of the running step
    std::vector<float> weights;
    const float* hidden = nullptr;  // of its last row, where it was told, or what enters there
    std::int32_t rows = 0;
    bool ready = false;  // it has seen something to forecast from
  };

  // Counts the rows of each stream and lists the streams in `order_`.
  void divide(const std::int64_t* streams, std::int32_t tokens, const float* hidden,
              std::int32_t hidden_rows);
  void begin_pass();

  const Make make_;
  const std::size_t experts_;
  std::unique_ptr<Predictor> first_;  // of calls that name no streams
  std::unordered_map<std::int64_t, Stream> known_;
  std::vector<std::int64_t> order_;  // streams of the running step, by their first rows
  bool named_ = false;               // whether that step named streams
  std::int32_t layer_ = -1;          // observed last
  std::vector<float> one_, none_;    // scratch: one stream's gaps; P(nobody needs it)
  std::vector<Forecast> found_;
};

}  // namespace prophet
