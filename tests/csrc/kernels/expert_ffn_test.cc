#include "kernels/expert_ffn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "core/error.h"
#include "kernels/ffn_reference.h"

namespace prophet {
namespace {

using testing::Expert;
using testing::for_each_isa;
using ::testing::HasSubstr;
using testing::random_floats;

constexpr Activation kActivations[] = {Activation::silu, Activation::gelu_erf,
                                       Activation::gelu_tanh, Activation::relu, Activation::relu2};
constexpr DType kTypes[] = {DType::f32, DType::f16, DType::bf16};

// Outputs of one call, one row per token, with a canary after each row.
struct Outputs {
  static constexpr float kCanary = -123.5f;
  std::size_t hidden;
  std::vector<float> values;
  std::vector<float*> pointers;

  Outputs(int tokens, int hidden_size)
      : hidden(static_cast<std::size_t>(hidden_size)), values(tokens * (hidden + 1), kCanary) {
    for (int t = 0; t < tokens; ++t) pointers.push_back(values.data() + t * (hidden + 1));
  }
  std::vector<float> row(int t) const { return {pointers[t], pointers[t] + hidden}; }
  bool canaries_live() const {
    return std::all_of(pointers.begin(), pointers.end(),
                       [this](const float* p) { return p[hidden] == kCanary; });
  }
};

std::vector<std::int32_t> ascending(int n) {
  std::vector<std::int32_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

// A copy that starts `floats` floats past a cache line: 0 is the path that reads x in place.
class Placed {
 public:
  Placed(const std::vector<float>& values, std::size_t floats) : room_(values.size() + 32) {
    const auto address = reinterpret_cast<std::uintptr_t>(room_.data()) / sizeof(float);
    at_ = (16 - address % 16) % 16 + floats;
    std::copy(values.begin(), values.end(), room_.begin() + static_cast<std::ptrdiff_t>(at_));
  }
  const float* data() const { return room_.data() + at_; }

 private:
  std::vector<float> room_;
  std::size_t at_;
};

// Bits, not values: NaN equals itself and zeros have signs.
bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class ExpertFfn : public ::testing::Test {
 protected:
  std::mt19937 random{20240607};
  WorkerPool pool{2};
  FfnScratch scratch;

  // One expert, rows 0, 1, 2 … of x.
  Outputs run(const FfnShape& shape, const Expert& expert, const float* x, int tokens) {
    Outputs outputs(tokens, shape.hidden);
    const auto rows = ascending(tokens);
    const FfnJob job = expert.job(shape, tokens, rows.data(), outputs.pointers.data());
    expert_ffn(shape, {&job, 1}, x, scratch, pool);
    return outputs;
  }

  void expect_reference(const FfnShape& shape, int tokens, std::size_t offset) {
    const Expert expert(shape, offset, random);
    const auto x = random_floats(static_cast<std::size_t>(tokens) * shape.hidden, random);
    std::vector<testing::Reference> expected;
    for (int t = 0; t < tokens; ++t) {
      expected.push_back(testing::reference_ffn(shape, expert, x.data() + t * shape.hidden));
    }
    for_each_isa([&](const std::string& isa) {
      const Outputs got = run(shape, expert, x.data(), tokens);
      EXPECT_TRUE(got.canaries_live()) << isa << " wrote past a result";
      for (int t = 0; t < tokens; ++t) {
        for (int r = 0; r < shape.hidden; ++r) {
          ASSERT_NEAR(got.pointers[t][r], expected[t].value[r], 1e-6 * expected[t].scale[r] + 1e-30)
              << isa << " H=" << shape.hidden << " I=" << shape.inter << " dtype "
              << int(shape.weights) << " activation " << int(shape.activation) << " gate "
              << shape.has_gate << " token " << t << " of " << tokens << " row " << r;
        }
      }
    });
  }
};

TEST_F(ExpertFfn, EqualsFloat64ForEveryTypeActivationAndOddShape) {
  constexpr int kShapes[][2] = {{1, 1}, {3, 7}, {16, 16}, {33, 17}, {31, 64}, {65, 97}};
  for (DType type : kTypes)
    for (Activation activation : kActivations)
      for (bool gated : {true, false})
        for (const auto& [hidden, inter] : kShapes)
          for (int tokens : {1, 2, 3, 4, 5, 9})
            expect_reference({hidden, inter, type, activation, gated}, tokens, tokens % 2);
}

TEST_F(ExpertFfn, EqualsFloat64WhenSharedByThreads) {
  for (DType type : kTypes) {
    expect_reference({515, 387, type, Activation::silu, true}, 1, 0);
    expect_reference({512, 384, type, Activation::silu, true}, 7, 3);
    expect_reference({384, 641, type, Activation::relu2, false}, 5, 1);
  }
}

TEST_F(ExpertFfn, TailsOfEveryLength) {
  for (int n = 1; n <= 70; ++n) {
    expect_reference({n, 71 - n, kTypes[n % 3], Activation::relu, n % 2 == 0}, 1 + n % 5, n % 4);
  }
}

// The promise of the header: the same bits whatever else is in the call.
TEST_F(ExpertFfn, BatchInvariant) {
  for_each_isa([&](const std::string& isa) {
    for (DType type : kTypes) {
      for (const auto& [hidden, inter] : {std::pair{192, 64}, {333, 101}, {512, 512}}) {
        const FfnShape shape{hidden, inter, type, Activation::silu, true};
        constexpr int kTokens = 13;
        const auto x = random_floats(static_cast<std::size_t>(kTokens) * hidden, random);
        std::vector<Expert> experts;
        for (int e = 0; e < 3; ++e) experts.emplace_back(shape, 0, random);

        // Each token alone, by each expert.
        std::vector<std::vector<std::vector<float>>> alone(3);
        for (int e = 0; e < 3; ++e) {
          for (int t = 0; t < kTokens; ++t) {
            alone[e].push_back(run(shape, experts[e], x.data() + t * hidden, 1).row(0));
          }
        }
        // Any mixture of tokens and experts, in any order.
        for (int trial = 0; trial < 12; ++trial) {
          std::vector<std::vector<std::int32_t>> rows(3);
          std::vector<Outputs> outputs;
          std::vector<FfnJob> jobs;
          for (int e = 0; e < 3; ++e) {
            rows[e] = ascending(kTokens);
            std::shuffle(rows[e].begin(), rows[e].end(), random);
            rows[e].resize(1 + random() % kTokens);
            outputs.emplace_back(static_cast<int>(rows[e].size()), hidden);
          }
          std::vector<int> order = {0, 1, 2};
          std::shuffle(order.begin(), order.end(), random);
          for (int e : order) {
            jobs.push_back(experts[e].job(shape, static_cast<int>(rows[e].size()), rows[e].data(),
                                          outputs[e].pointers.data()));
          }
          WorkerPool crowd(1 + trial % 5);
          const Placed placed(x, trial % 2);
          expert_ffn(shape, jobs, placed.data(), scratch, crowd);
          for (int e = 0; e < 3; ++e) {
            for (std::size_t t = 0; t < rows[e].size(); ++t) {
              ASSERT_TRUE(same_bits(outputs[e].row(static_cast<int>(t)), alone[e][rows[e][t]]))
                  << isa << " H=" << hidden << " expert " << e << " token " << rows[e][t];
            }
          }
        }
      }
    }
  });
}

TEST_F(ExpertFfn, SameBitsAtAnyAddress) {
  const FfnShape base{96, 80, DType::bf16, Activation::gelu_tanh, true};
  for_each_isa([&](const std::string& isa) {
    for (DType type : kTypes) {
      FfnShape shape = base;
      shape.weights = type;
      const auto values = random_floats(3 * 96, random);
      const std::uint32_t seed = random();
      std::vector<float> first;
      for (std::size_t offset : {0, 1, 2, 3, 5, 64}) {
        std::mt19937 same(seed);
        const Expert expert(shape, offset, same);
        const Placed x(values, offset % 16);
        const Outputs got = run(shape, expert, x.data(), 3);
        if (offset == 0) first = got.values;
        EXPECT_TRUE(same_bits(got.values, first)) << isa << " weights at byte " << offset;
      }
    }
  });
}

TEST_F(ExpertFfn, InfinityAndNanGoWhereArithmeticTakesThem) {
  for_each_isa([&](const std::string& isa) {
    for (DType type : kTypes) {
      const FfnShape shape{45, 21, type, Activation::relu, false};
      Expert expert(shape, 1, random);
      std::vector<float> x(5 * 45, 0.5f);
      x[2 * 45 + 44] = NAN;  // token 2, in the tail
      expert.down.set(7 * 21 + 20, INFINITY);
      for (int c = 0; c < 45; ++c) expert.up.set(20 * 45 + c, 1.0f);  // a positive 20th value
      const Outputs got = run(shape, expert, x.data(), 5);
      for (int t = 0; t < 5; ++t) {
        for (int r = 0; r < 45; ++r) {
          const float y = got.pointers[t][r];
          if (t == 2) {
            EXPECT_TRUE(std::isnan(y)) << isa << " row " << r;
          } else if (r == 7) {
            EXPECT_EQ(y, INFINITY) << isa << " token " << t;
          } else {
            EXPECT_TRUE(std::isfinite(y)) << isa << " token " << t << " row " << r;
          }
        }
      }
    }
  });
}

TEST_F(ExpertFfn, SubnormalWeightsCount) {
  for_each_isa([&](const std::string& isa) {
    for (DType type : kTypes) {
      const FfnShape shape{1, 1, type, Activation::relu, false};
      Expert expert(shape, 0, random);
      expert.up.set_bits(0, 1);  // the smallest positive number of the type
      expert.down.set(0, 1.0f);
      const float x = 1.0f;
      const Outputs got = run(shape, expert, &x, 1);
      const float smallest = type == DType::f16    ? 0x1p-24f
                             : type == DType::bf16 ? 0x1p-133f
                                                   : 0x1p-149f;
      EXPECT_EQ(got.pointers[0][0], smallest) << isa << " dtype " << int(type);
    }
  });
}

TEST_F(ExpertFfn, ActivationsAreAccurateEverywhere) {
  const FfnShape base{1, 1, DType::f32, Activation::silu, false};
  for (Activation activation : kActivations) {
    FfnShape shape = base;
    shape.activation = activation;
    Expert expert(shape, 0, random);
    expert.up.set(0, 1.0f);
    expert.down.set(0, 1.0f);
    for (float x = -12.0f; x < 40.0f; x += 0.0625f) {
      const double expected = testing::activation_value(activation, x);
      EXPECT_NEAR(run(shape, expert, &x, 1).pointers[0][0], expected,
                  4e-6 * std::fabs(expected) + 1e-15)
          << "activation " << int(activation) << " of " << x;
    }
    for (float x : {-1e30f, -200.0f, 0.0f}) {
      EXPECT_EQ(run(shape, expert, &x, 1).pointers[0][0], 0.0f) << int(activation) << " of " << x;
    }
    const float large = 1e10f;
    const float limit = activation == Activation::relu2 ? large * large : large;
    EXPECT_EQ(run(shape, expert, &large, 1).pointers[0][0], limit) << int(activation);
  }
}

TEST_F(ExpertFfn, ScratchServesCallsOfAnySizeInAnyOrder) {
  for (int hidden : {200, 8, 120, 1, 300}) {
    expect_reference({hidden, 301 - hidden, DType::bf16, Activation::silu, hidden % 3 != 0},
                     1 + hidden % 7, 0);
  }
}

TEST_F(ExpertFfn, LeftoversInScratchDoNotLeak) {
  const FfnShape shape{45, 21, DType::bf16, Activation::silu, true};
  const Expert expert(shape, 0, random);
  const auto x = random_floats(5 * 45, random);
  for_each_isa([&](const std::string& isa) {
    const Outputs clean = run(shape, expert, x.data(), 5);
    std::fill(scratch.activations.begin(), scratch.activations.end(), NAN);
    EXPECT_TRUE(same_bits(run(shape, expert, x.data(), 5).values, clean.values)) << isa;
  });
}

TEST_F(ExpertFfn, NoJobsIsNoWork) {
  EXPECT_NO_THROW(expert_ffn({8, 8}, {}, nullptr, scratch, pool));
}

TEST_F(ExpertFfn, RefusesWhatCannotBe) {
  const FfnShape shape{4, 4, DType::f32, Activation::silu, true};
  const Expert expert(shape, 0, random);
  const std::vector<float> x(4);
  Outputs outputs(1, 4);
  const std::int32_t row = 0;
  const FfnJob good = expert.job(shape, 1, &row, outputs.pointers.data());

  const auto sentence = [&](const FfnShape& s, const FfnJob& job, const float* input) {
    const FfnJob jobs[] = {good, job};
    try {
      expert_ffn(s, jobs, input, scratch, pool);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(sentence(shape, good, x.data()), "accepted");
  FfnShape no_hidden = shape;
  no_hidden.hidden = 0;
  EXPECT_THAT(sentence(no_hidden, good, x.data()), HasSubstr("hidden size 0"));
  EXPECT_THAT(sentence(shape, good, nullptr), HasSubstr("x is null"));
  FfnJob bad = good;
  bad.tokens = 0;
  EXPECT_THAT(sentence(shape, bad, x.data()), HasSubstr("job 1 has no tokens"));
  bad = good;
  bad.gate = nullptr;
  EXPECT_THAT(sentence(shape, bad, x.data()), HasSubstr("job 1 has no gate"));
  bad = good;
  bad.down = nullptr;
  EXPECT_THAT(sentence(shape, bad, x.data()), HasSubstr("no down"));
  bad = good;
  bad.rows = nullptr;
  EXPECT_THAT(sentence(shape, bad, x.data()), HasSubstr("no rows"));
}

TEST(ActivationName, KnowsTheEnumAndListsItOtherwise) {
  EXPECT_EQ(activation_from_name("silu"), Activation::silu);
  EXPECT_EQ(activation_from_name("gelu_erf"), Activation::gelu_erf);
  EXPECT_EQ(activation_from_name("gelu_tanh"), Activation::gelu_tanh);
  EXPECT_EQ(activation_from_name("relu"), Activation::relu);
  EXPECT_EQ(activation_from_name("relu2"), Activation::relu2);
  try {
    activation_from_name("swish");
    FAIL() << "swish was accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(),
                 "unknown activation 'swish'; known are: silu, gelu_erf, gelu_tanh, relu, relu2");
  }
}

}  // namespace
}  // namespace prophet
