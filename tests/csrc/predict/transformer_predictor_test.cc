// What is particular to the transformer; that it computes what its file means is held by
// tests/python/predict/test_transformer.py against float64, what every predictor promises by
// conformance_test.cc.
#include "predict/transformer_predictor.h"

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <vector>

#include "core/error.h"
#include "kernels/expert_ffn.h"
#include "predict/small_transformer.h"

namespace prophet {
namespace {

using small_transformer::config;
using small_transformer::weights;

std::unique_ptr<TransformerPredictor> make(const TransformerConfig& c = config()) {
  return std::make_unique<TransformerPredictor>(
      std::make_shared<const TransformerNetwork>(c, weights(c)));
}

TransformerConfig routing_alone() {
  TransformerConfig c = config();
  c.hidden = 0;
  return c;
}

std::vector<float> ahead(TransformerPredictor& predictor, std::int32_t layer, std::int32_t f) {
  std::vector<float> p(small_bank::kExperts);
  predictor.probabilities(layer, f, p);
  return p;
}

TEST(TransformerPredictor, EveryInstructionSetSaysTheSame) {
  const std::string before(kernel_isa());
  const std::int32_t ids[] = {0, 4, 7};
  const float gates[] = {.5f, .3f, .2f};
  std::vector<float> want;
  for (const auto& isa : kernel_isas()) {
    set_kernel_isa(isa);
    const auto predictor = make(routing_alone());
    std::vector<float> got(small_bank::kExperts);
    for (std::int32_t layer = 0; layer < 2; ++layer) predictor->observe({layer, 1, 3, ids, gates});
    predictor->next_use(1, got);
    for (float p : ahead(*predictor, 1, 2)) got.push_back(p);
    if (want.empty()) want = got;
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5) << isa;
  }
  set_kernel_isa(before);
}

TEST(TransformerPredictor, AWeightThatIsNoneCountsAsUnknown) {
  const std::int32_t ids[] = {0, 4, 7};
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float odd[][3] = {{nan, .5f, .5f}, {-1, 1, 1}, {0, 0, 0}, {1e-45f, 0, 0}};
  const auto plain = make(routing_alone());
  plain->observe({0, 1, 3, ids, nullptr});
  for (const auto& gates : odd) {
    const auto other = make(routing_alone());
    other->observe({0, 1, 3, ids, gates});
    EXPECT_EQ(ahead(*plain, 0, 1), ahead(*other, 0, 1));
  }
}

TEST(TransformerPredictor, WithoutAHiddenStateItReadsZeros) {
  const std::int32_t ids[] = {0, 4, 7};
  const std::vector<float> zeros(small_bank::kHidden, 0);
  std::vector<float> broken(small_bank::kHidden, 1);
  broken[3] = std::numeric_limits<float>::infinity();
  const auto none = make(), nothing = make(), infinite = make();
  none->observe({0, 1, 3, ids, nullptr, nullptr});
  nothing->observe({0, 1, 3, ids, nullptr, zeros.data()});
  infinite->observe({0, 1, 3, ids, nullptr, broken.data()});
  EXPECT_EQ(ahead(*none, 0, 1), ahead(*nothing, 0, 1));
  EXPECT_EQ(ahead(*none, 0, 1), ahead(*infinite, 0, 1));
}

TEST(TransformerPredictor, LooksAtTheLastRowsOfAStepAlone) {
  constexpr std::int32_t kTokens = TransformerPredictor::kMostRows + 3;
  std::vector<std::int32_t> ids(kTokens * 3, 1), other(kTokens * 3, 1);
  for (int i = 0; i < 9; ++i) other[std::size_t(i)] = 5;  // of the first three rows
  const auto a = make(routing_alone()), b = make(routing_alone());
  a->observe({0, kTokens, 3, ids.data(), nullptr});
  b->observe({0, kTokens, 3, other.data(), nullptr});
  EXPECT_EQ(ahead(*a, 0, 1), ahead(*b, 0, 1));
  other.back() = 5;
  b->observe({0, kTokens, 3, other.data(), nullptr});
  EXPECT_NE(ahead(*a, 0, 1), ahead(*b, 0, 1));
}

TEST(TransformerPredictor, RowsThatCannotBeThoseOfTheLayerBeforeAreNotTakenForThem) {
  const std::int32_t ids[] = {0, 4, 7, 1, 2, 3};
  const auto fewer = make(routing_alone()), alone = make(routing_alone());
  fewer->observe({0, 1, 3, ids, nullptr});
  fewer->observe({1, 2, 3, ids, nullptr});
  alone->observe({1, 2, 3, ids, nullptr});
  EXPECT_EQ(ahead(*fewer, 1, 1), ahead(*alone, 1, 1));
}

TEST(TransformerPredictor, RefusesWeightsOfOtherSizesAndBrokenOnes) {
  TransformerWeights w = weights(config());
  w.up_weight.pop_back();
  EXPECT_THROW(TransformerNetwork(config(), w), InvalidArgument);
  w = weights(config());
  w.read_weight[5] = 0x7e00;  // not a number
  EXPECT_THROW(TransformerNetwork(config(), w), InvalidArgument);
  TransformerConfig c = config();
  c.attention_heads = 3;
  EXPECT_THROW(TransformerNetwork(c, weights(config())), InvalidArgument);
}

}  // namespace
}  // namespace prophet
