#include <gtest/gtest.h>

#include <algorithm>

#include "core/error.h"
#include "engine/engine_fixture.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{2, 8, 3};

TEST(Forward, EqualsTheDefinitionInFloat64) {
  std::mt19937 random(1);
  World world(kGeometry, options_with(16));
  for (std::int32_t tokens : {1, 2, 5}) {
    Batch batch(tokens, kGeometry, random);
    batch.run(*world.engine, 1);
    const auto want = batch.expected(world, 1);
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(batch.out[i], want[i], 1e-4);
  }
}

// Landing order depends on the seed; sums do not depend on landing order.
TEST(Forward, AnyOrderOfLandingsGivesTheSameBits) {
  std::vector<float> first;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    std::mt19937 random(3);
    ManualOptions manual;
    manual.seed = seed;
    World world(kGeometry, options_with(6), manual);
    Batch batch(4, kGeometry, random);
    batch.run(*world.engine, 0);
    if (first.empty()) first = batch.out;
    EXPECT_EQ(batch.out, first) << "seed " << seed;
  }
}

// More experts demanded than slots: waves split by token give the bits of the undivided layer.
TEST(Forward, WavesGiveTheBitsOfTheWholeLayer) {
  std::vector<float> whole;
  for (std::int32_t slots : {16, 8, 6, 4, 3}) {
    std::mt19937 random(5);
    World world(kGeometry, options_with(slots));
    Batch batch(9, kGeometry, random);
    batch.run(*world.engine, 1);
    if (whole.empty()) whole = batch.out;
    EXPECT_EQ(batch.out, whole) << slots << " slots";
    if (slots == 3) {
      EXPECT_GT(world.engine->counters().waves, 3u);
    }
    EXPECT_EQ(world.engine->counters().layer_steps, 1u);
  }
}

TEST(Forward, ThreadCountDoesNotChangeBits) {
  std::vector<float> first;
  for (int threads : {1, 2, 4}) {
    std::mt19937 random(6);
    EngineOptions options = options_with(8);
    options.threads = threads;
    World world(kGeometry, options);
    Batch batch(5, kGeometry, random);
    batch.run(*world.engine, 0);
    if (first.empty()) first = batch.out;
    EXPECT_EQ(batch.out, first);
  }
}

TEST(Forward, ExpertsOfOtherRanksAndWeightlessPairsAreNotTouched) {
  std::mt19937 random(8);
  World world(kGeometry, options_with(16));
  Batch batch(2, kGeometry, random);
  batch.ids = {0, 8, 1, 100, 9, 2};    // 8 and above: another rank's
  batch.weights = {1, 1, 0, 1, 1, 2};  // the pair of expert 1 weighs nothing
  batch.run(*world.engine, 0);
  EXPECT_EQ(world.engine->counters().misses, 2u);  // experts 0 and 2
  EXPECT_EQ(world.engine->state({0, 1}), Residency::absent);

  Batch only = batch;
  only.ids = {0, 0, 0, 2, 2, 2};
  only.weights = {1, 0, 0, 0, 0, 2};
  only.run(*world.engine, 0);
  EXPECT_EQ(only.out, batch.out);
}

TEST(Forward, AllPairsOfOtherRanksGiveZero) {
  std::mt19937 random(8);
  World world(kGeometry, options_with(16));
  Batch batch(1, kGeometry, random);
  batch.ids = {8, 9, 10};
  batch.run(*world.engine, 0);
  EXPECT_EQ(batch.out, std::vector<float>(kHidden, 0.0f));
}

TEST(Forward, AFailedReadIsAnErrorAndNeverWeights) {
  std::mt19937 random(9);
  ManualOptions manual;
  manual.wait = ManualOptions::Wait::land;
  World world(kGeometry, options_with(6), manual);
  Batch batch(1, kGeometry, random);
  // Put the layer's experts on their way, then fail one chunk of one of them.
  std::vector<std::int32_t> experts(batch.ids.begin(), batch.ids.end());
  Lease lease;
  world.engine->lease(0, experts, lease);
  world.backend->fail(world.backend->pending()[1].ticket, "disk on fire");
  try {
    batch.run(*world.engine, 0);
    FAIL() << "the failed read went unnoticed";
  } catch (const ReadError& error) {
    EXPECT_NE(std::string(error.what()).find("disk on fire"), std::string::npos);
  }
  world.engine->release(lease);
  EXPECT_EQ(world.engine->counters().reads_failed, 1u);
  // Nothing stays leased, and the next try reads again and is right.
  Batch again = batch;
  again.run(*world.engine, 0);
  const auto want = again.expected(world, 0);
  for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(again.out[i], want[i], 1e-4);
  for (std::int32_t expert = 0; expert < kGeometry.experts_per_layer; ++expert) {
    EXPECT_NE(world.engine->state({0, expert}), Residency::leased);
  }
  expect_bytes_add_up(*world.engine);
}

TEST(Forward, BadCallsGetASentence) {
  std::mt19937 random(9);
  World world(kGeometry, options_with(6));
  Batch batch(1, kGeometry, random);
  EXPECT_THROW(batch.run(*world.engine, 2), InvalidArgument);
  EXPECT_THROW(batch.run(*world.engine, -1), InvalidArgument);
  batch.ids[0] = -1;
  EXPECT_THROW(batch.run(*world.engine, 0), InvalidArgument);
  FfnLayout layout;
  layout.shape = {kHidden, kInter, DType::f32, Activation::silu, true};
  layout.down = {0, 2 * kMatrix + 4};
  EXPECT_THROW(world.engine->set_ffn(layout), InvalidArgument);
  layout.down = {1, 0};
  EXPECT_THROW(world.engine->set_ffn(layout), InvalidArgument);
}

TEST(Forward, OneTokenWithMoreExpertsThanSlotsIsRefused) {
  std::mt19937 random(9);
  World world(kGeometry, options_with(3));
  Geometry wide = kGeometry;
  wide.top_k = 5;
  Batch batch(1, wide, random);
  EXPECT_THROW(batch.run(*world.engine, 0), InvalidArgument);
  Batch fits(1, kGeometry, random);
  fits.run(*world.engine, 0);  // and the engine goes on
}

// Zero cache: every routed expert is read, every time.
TEST(Forward, WithoutKeepingEveryExpertIsReadAtEachUse) {
  std::mt19937 random(10);
  EngineOptions options = options_with(16);
  options.keep = false;
  World world(kGeometry, options);
  for (int step = 0; step < 10; ++step) {
    Batch batch(1, kGeometry, random);
    batch.run(*world.engine, step % 2);
  }
  const Counters c = world.engine->counters();
  EXPECT_EQ(c.hits_resident, 0u);
  EXPECT_EQ(c.bytes_demand, 10u * 3u * kExpertBytes);
  EXPECT_EQ(c.bytes_demand, c.expert_bytes_routed);
}

}  // namespace
}  // namespace prophet
