#include "transfer/reconcile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace prophet {
namespace {

Residency absent(ExpertKey) { return Residency::absent; }

std::vector<ExpertKey> keys(const std::vector<Prefetch>& wishes) {
  std::vector<ExpertKey> out;
  for (const Prefetch& wish : wishes) out.push_back(wish.key);
  return out;
}

TEST(Reconcile, KeepsTheOrderOfThePlan) {
  const std::vector<Prefetch> wanted = {
      {{2, 1}, .9f, 7}, {{1, 5}, .5f, 6}, {{1, 3}, .8f, 6}, {{1, 4}, .8f, 6}};
  const auto plan = reconcile(wanted, {}, absent);
  EXPECT_EQ(keys(plan.start), (std::vector<ExpertKey>{{2, 1}, {1, 5}, {1, 3}, {1, 4}}));
}

TEST(Reconcile, NamedTwiceIsOneTransferAndTheFirstWishCounts) {
  const std::vector<Prefetch> wanted = {{{0, 1}, .4f, 9}, {{0, 2}, .5f, 4}, {{0, 1}, .7f, 3}};
  const auto plan = reconcile(wanted, {}, absent);
  ASSERT_EQ(plan.start.size(), 2u);
  EXPECT_EQ(plan.start[0].deadline, 9);
}

TEST(Reconcile, WhatIsHereIsATouchNotATransfer) {
  const std::vector<Prefetch> wanted = {{{0, 1}, .9f, 1}, {{0, 2}, .9f, 1}, {{0, 3}, .9f, 1}};
  const auto plan = reconcile(wanted, {}, [](ExpertKey key) {
    return key.expert == 1   ? Residency::resident
           : key.expert == 2 ? Residency::leased
                             : Residency::absent;
  });
  EXPECT_EQ(keys(plan.start), (std::vector<ExpertKey>{{0, 3}}));
}

TEST(Reconcile, EmptyPlanCancelsEverythingThatMoves) {
  const std::vector<ExpertKey> moving = {{0, 1}, {3, 2}};
  const auto plan = reconcile({}, moving, absent);
  EXPECT_EQ(plan.cancel, moving);
  EXPECT_TRUE(plan.start.empty());
}

// The three answers partition (wanted ∪ moving) minus what is here, whatever the sets.
TEST(Reconcile, IsASetDifference) {
  std::mt19937 random(7);
  for (int round = 0; round < 500; ++round) {
    std::map<ExpertKey, Residency> states;
    std::vector<Prefetch> wanted;
    std::vector<ExpertKey> moving;
    for (int i = 0; i < 12; ++i) {
      const ExpertKey key{int(random() % 3), int(random() % 6)};
      states[key] = random() % 4 == 0 ? Residency::resident : Residency::absent;
      if (random() % 2) wanted.push_back({key, float(random() % 10) / 10, int(random() % 5)});
    }
    for (auto& [key, state] : states) {
      if (state == Residency::absent && random() % 3 == 0) {
        state = Residency::loading;
        moving.push_back(key);
      }
    }
    const auto plan = reconcile(wanted, moving, [&](ExpertKey key) { return states[key]; });

    std::set<ExpertKey> wish, move(moving.begin(), moving.end());
    for (const Prefetch& prefetch : wanted) wish.insert(prefetch.key);
    std::set<ExpertKey> start, cancel(plan.cancel.begin(), plan.cancel.end()),
        resume(plan.resume.begin(), plan.resume.end());
    for (const Prefetch& prefetch : plan.start) start.insert(prefetch.key);
    EXPECT_EQ(start.size(), plan.start.size());
    for (ExpertKey key : wish) {
      EXPECT_EQ(start.count(key), states[key] == Residency::absent ? 1u : 0u);
      EXPECT_EQ(resume.count(key), move.count(key));
      EXPECT_EQ(cancel.count(key), 0u);
    }
    for (ExpertKey key : move) EXPECT_EQ(cancel.count(key), wish.count(key) ? 0u : 1u);
    EXPECT_EQ(cancel.size() + resume.size(), move.size());
  }
}

}  // namespace
}  // namespace prophet
