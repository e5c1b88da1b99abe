// The table of systems: complete, and buildable of parts that exist.
#include "systems/recipe.h"

#include <gmock/gmock.h>

#include <set>

#include "core/error.h"
#include "policy/eviction_policy.h"

namespace prophet {
namespace {

TEST(Recipes, AreThePublishedSystemsAndTheBounds) {
  std::vector<std::string_view> names;
  for (const Recipe& recipe : recipes()) names.push_back(recipe.name);
  EXPECT_THAT(names, ::testing::ElementsAre(
                         "on-demand", "lru", "lfu", "lfru", "least-stale", "expected-next-use",
                         "promoe", "expertflow", "expertflow-2025", "prescope", "finemoe", "fate",
                         "moe-infinity", "duoserve", "floe", "od-moe", "pre-attention", "prophet",
                         "belady", "oracle", "clairvoyant", "resident"));
}

TEST(Recipes, AreMadeOfPartsThatExist) {
  for (const Recipe& recipe : recipes()) {
    SCOPED_TRACE(recipe.name);
    EXPECT_EQ(make_eviction_policy(recipe.policy, {4, 8, 2})->name(), recipe.policy);
    EXPECT_NO_THROW(make_prefetch_policy(recipe.prefetch));
    EXPECT_EQ(recipe.prefetch.last > 0, !recipe.needs.predictor.empty());
    EXPECT_LE(recipe.prefetch.first, std::max(recipe.prefetch.last, 1));
    EXPECT_TRUE(recipe.recall > 0 && recipe.recall <= 1);
  }
}

TEST(Recipes, SayWhatTheyAreAndWhatIsModelled) {
  for (const Recipe& recipe : recipes()) {
    SCOPED_TRACE(recipe.name);
    EXPECT_FALSE(recipe.what.empty() || recipe.source.empty() || recipe.modelled.empty());
    if (recipe.source.find("arXiv") != std::string_view::npos) {
      EXPECT_TRUE(recipe.modelled == "all" || !recipe.not_modelled.empty());
    }
  }
}

TEST(Recipes, AreLosslessUnlessAsked) {
  std::set<std::string_view> lossy;
  for (const Recipe& recipe : recipes()) {
    if (!recipe.lossy.what.empty()) lossy.insert(recipe.name);
    EXPECT_TRUE(recipe.lossy.bytes > 0 && recipe.lossy.bytes <= 1);
    EXPECT_EQ(recipe.lossy.what.empty(), recipe.lossy.bytes == 1) << recipe.name;
  }
  EXPECT_THAT(lossy, ::testing::UnorderedElementsAre("fate", "floe"));
}

TEST(Recipes, OnlyProphetHasAConscience) {
  for (const Recipe& recipe : recipes()) {
    if (recipe.prefetch.last == 0) continue;
    EXPECT_EQ(recipe.prefetch.conscience, recipe.name == "prophet") << recipe.name;
  }
}

TEST(Recipes, AnUnknownNameListsTheKnownOnes) {
  EXPECT_EQ(recipe("lru").policy, "lru");
  try {
    recipe("magic");
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("'magic'"));
    for (const Recipe& one : recipes()) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr(std::string(one.name)));
    }
  }
}

}  // namespace
}  // namespace prophet
