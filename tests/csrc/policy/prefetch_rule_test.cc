// The rule of prefetching against its sentences, and random moments against a slow reading of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

#include "core/error.h"
#include "policy/prefetch_policy.h"

namespace prophet {
namespace {

using Order = PrefetchRule::Order;

std::vector<Prefetch> plan(const PrefetchRule& rule, const std::vector<Forecast>& forecasts,
                           double steps_per_expert = 0, std::int64_t tick = 100) {
  std::vector<Prefetch> wanted = {{{9, 9}, 1, 1}};  // what was there before must go
  make_prefetch_policy(rule)->plan({tick, forecasts, steps_per_expert}, wanted);
  return wanted;
}

std::vector<ExpertKey> keys(const std::vector<Prefetch>& wanted) {
  std::vector<ExpertKey> out;
  for (const Prefetch& wish : wanted) out.push_back(wish.key);
  return out;
}

PrefetchRule reaching(std::int32_t last) {
  PrefetchRule rule;
  rule.last = last;
  return rule;
}

TEST(PrefetchRule, OrdersAsItSays) {
  const std::vector<Forecast> forecasts = {{{1, 0}, .50f, 1}, {{2, 0}, .60f, 2}, {{3, 0}, .95f, 3}};
  PrefetchRule rule = reaching(3);
  rule.discount = 0;
  EXPECT_EQ(keys(plan(rule, forecasts)), (std::vector<ExpertKey>{{3, 0}, {2, 0}, {1, 0}}));
  rule.discount = .15f;  // .35, .30, .50
  EXPECT_EQ(keys(plan(rule, forecasts)), (std::vector<ExpertKey>{{3, 0}, {1, 0}, {2, 0}}));
  rule.order = Order::deadline;
  EXPECT_EQ(keys(plan(rule, forecasts)), (std::vector<ExpertKey>{{1, 0}, {2, 0}, {3, 0}}));
  rule.order = Order::proximity;  // .5, .3, .317
  EXPECT_EQ(keys(plan(rule, forecasts)), (std::vector<ExpertKey>{{1, 0}, {3, 0}, {2, 0}}));
}

TEST(PrefetchRule, EqualsGoByKeyWhateverTheOrderOfForecasts) {
  std::vector<Forecast> forecasts;
  for (std::int32_t e = 0; e < 6; ++e) forecasts.push_back({{1, e}, .5f, 1});
  std::mt19937 random(3);
  const auto first = keys(plan(reaching(1), forecasts));
  EXPECT_TRUE(std::is_sorted(first.begin(), first.end()));
  for (int round = 0; round < 20; ++round) {
    std::shuffle(forecasts.begin(), forecasts.end(), random);
    EXPECT_EQ(keys(plan(reaching(1), forecasts)), first);
  }
}

TEST(PrefetchRule, AWishTellsItsProbabilityAndItsDeadline) {
  const auto wanted = plan(reaching(4), {{{1, 2}, .25f, 4}}, 0, 1000);
  ASSERT_EQ(wanted.size(), 1u);
  EXPECT_EQ(wanted[0].confidence, .25f);
  EXPECT_EQ(wanted[0].deadline, 1004);
}

TEST(PrefetchRule, AlwaysOneAndNoMoreThanIdleTimeBrings) {
  std::vector<Forecast> forecasts;
  for (std::int32_t e = 0; e < 8; ++e) forecasts.push_back({{1, e}, .5f, 3});
  PrefetchRule rule = reaching(3);
  EXPECT_EQ(plan(rule, forecasts, PrefetchPolicy::kNever).size(), 8u);  // fill: everything
  rule.fill = 1;
  EXPECT_EQ(plan(rule, forecasts, 1.0).size(), 3u);
  EXPECT_EQ(plan(rule, forecasts, 1.4).size(), 2u);
  EXPECT_EQ(plan(rule, forecasts, PrefetchPolicy::kNever).size(), 1u);
  rule.fill = 2;
  EXPECT_EQ(plan(rule, forecasts, 1.0).size(), 6u);
  rule.fill = 1e-9;
  EXPECT_EQ(plan(rule, forecasts, 1.0).size(), 1u);
  EXPECT_TRUE(plan(rule, {}, 1.0).empty());
}

// What does not fit before its own deadline may fit before a later one.
TEST(PrefetchRule, ALaterDeadlineHasMoreRoom) {
  PrefetchRule rule = reaching(4);
  rule.fill = 1;
  rule.order = Order::deadline;
  const std::vector<Forecast> forecasts = {{{1, 0}, .9f, 1}, {{1, 1}, .8f, 1}, {{4, 0}, .1f, 4}};
  EXPECT_EQ(keys(plan(rule, forecasts, 1.0)), (std::vector<ExpertKey>{{1, 0}, {4, 0}}));
}

TEST(PrefetchRule, NoNumberIsNoProbability) {
  const float nan = std::nanf("");
  for (Order order : {Order::confidence, Order::deadline, Order::proximity}) {
    PrefetchRule rule = reaching(2);
    rule.order = order;
    const auto wanted = plan(rule, {{{1, 0}, nan, 1}, {{1, 1}, .5f, 1}, {{1, 2}, -nan, 2}});
    EXPECT_EQ(keys(wanted), (std::vector<ExpertKey>{{1, 1}}));
  }
}

TEST(PrefetchRule, RefusesRulesThatCannotBe) {
  const auto refused = [](auto change) {
    PrefetchRule rule = reaching(3);
    change(rule);
    EXPECT_THROW(make_prefetch_policy(rule), InvalidArgument);
  };
  const float nan = std::nanf("");
  refused([&](PrefetchRule& r) { r.least = -.1f; });
  refused([&](PrefetchRule& r) { r.least = 1.1f; });
  refused([&](PrefetchRule& r) { r.least = nan; });
  refused([&](PrefetchRule& r) { r.discount = -1; });
  refused([&](PrefetchRule& r) { r.discount = nan; });
  refused([&](PrefetchRule& r) { r.first = 0; });
  refused([&](PrefetchRule& r) { r.last = -1; });
  refused([&](PrefetchRule& r) { r.first = 4; });  // and the last is 3
  refused([&](PrefetchRule& r) { r.per_layer = 0; });
  refused([&](PrefetchRule& r) { r.fill = 0; });
  refused([&](PrefetchRule& r) { r.fill = nan; });
  PrefetchRule off;
  off.first = 2;  // last = 0 is no prefetch at all, wherever it would begin
  EXPECT_TRUE(plan(off, {{{1, 0}, 1, 2}}).empty());
}

// Any moment, any rule: exactly what the sentences of PrefetchRule leave, in their order.
TEST(PrefetchRule, AnyPlanIsWhatItsSentencesLeave) {
  std::mt19937 random(11);
  const auto real = [&] { return float(random() % 1000) / 1000; };
  for (int round = 0; round < 2000; ++round) {
    PrefetchRule rule;
    rule.first = 1 + int(random() % 3);
    rule.last = rule.first + int(random() % 4);
    rule.least = random() % 2 ? 0 : real() / 2;
    if (random() % 2) rule.per_layer = 1 + int(random() % 3);
    rule.order = Order(random() % 3);
    rule.discount = random() % 2 ? 0.02f : real();
    if (random() % 2) rule.fill = .25 + double(real());
    const double cost = random() % 4 == 0 ? PrefetchPolicy::kNever : double(real()) * 2;
    std::vector<Forecast> forecasts;
    for (std::int32_t layer = 0; layer < 5; ++layer) {
      const std::int32_t ahead = 1 + int(random() % 6);
      for (std::int32_t e = 0; e < 6; ++e) {
        if (random() % 2) continue;
        forecasts.push_back({{layer, e}, random() % 9 ? real() : std::nanf(""), ahead});
      }
    }
    const auto rank = [&](const Forecast& f) {
      if (rule.order == Order::proximity) return double(f.p) / f.horizon;
      if (rule.order == Order::deadline) return double(f.p) - 10.0 * f.horizon;
      return double(f.p) - double(rule.discount) * f.horizon;
    };
    std::map<std::int32_t, std::vector<Forecast>> by_layer;
    for (const Forecast& f : forecasts) {
      if (f.horizon >= rule.first && f.horizon <= rule.last && f.p >= rule.least) {
        by_layer[f.key.layer].push_back(f);
      }
    }
    std::vector<Forecast> left;
    for (auto& [layer, of] : by_layer) {
      std::stable_sort(of.begin(), of.end(), [](auto& a, auto& b) { return a.p > b.p; });
      of.resize(std::min(of.size(), std::size_t(rule.per_layer)));
      left.insert(left.end(), of.begin(), of.end());
    }
    std::sort(left.begin(), left.end(), [](auto& a, auto& b) { return a.key < b.key; });
    std::stable_sort(left.begin(), left.end(), [&](auto& a, auto& b) { return rank(a) > rank(b); });
    std::vector<ExpertKey> expected;
    double time = 0;
    for (const Forecast& f : left) {
      if (!expected.empty() && time + cost > f.horizon * rule.fill) continue;
      time += cost;
      expected.push_back(f.key);
    }
    ASSERT_EQ(keys(plan(rule, forecasts, cost)), expected) << "round " << round;
  }
}

}  // namespace
}  // namespace prophet
