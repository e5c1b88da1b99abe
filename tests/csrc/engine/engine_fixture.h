// An engine over virtual files whose bytes are float32 weights, and a float64 model of what a
// layer must give.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "device/manual/manual_backend.h"
#include "engine/engine.h"
#include "store/synthetic_store.h"

namespace prophet {

constexpr int kHidden = 12, kInter = 10;
constexpr std::uint64_t kMatrix = kHidden * kInter * sizeof(float);
constexpr std::uint64_t kExpertBytes = 3 * kMatrix;

// The weight at byte `offset` (a multiple of four) of a file: in [-0.5, 0.5), never repeating soon.
inline float weight_at(std::uint64_t offset) {
  const std::uint64_t mixed = (offset / 4 + 1) * 0x9E3779B97F4A7C15ull;
  return static_cast<float>(mixed >> 40) / static_cast<float>(1 << 24) - 0.5f;
}

inline void float_content(std::int32_t, std::uint64_t offset, std::span<std::byte> out) {
  for (std::size_t i = 0; i < out.size(); ++i) {
    const float value = weight_at((offset + i) / 4 * 4);
    out[i] = reinterpret_cast<const std::byte*>(&value)[(offset + i) % 4];
  }
}

struct World {
  std::shared_ptr<SyntheticStore> store;
  std::shared_ptr<ManualBackend> backend;
  std::unique_ptr<Engine> engine;

  World(Geometry geometry, EngineOptions options, ManualOptions manual = {},
        std::unique_ptr<Predictor> predictor = nullptr) {
    manual.content = float_content;
    if (options.mover.chunk_bytes == MoverOptions{}.chunk_bytes) options.mover.chunk_bytes = 256;
    store = std::make_shared<SyntheticStore>(geometry, kExpertBytes, 16);
    manual.alignment = 16;
    backend = std::make_shared<ManualBackend>(manual);
    backend->open({"virtual"});
    engine = std::make_unique<Engine>(store, backend, options, std::move(predictor));
    FfnLayout layout;
    layout.shape = {kHidden, kInter, DType::f32, Activation::silu, true};
    // One piece: gate, up and down one after the other.
    layout.gate = {0, 0};
    layout.up = {0, kMatrix};
    layout.down = {0, 2 * kMatrix};
    engine->set_ffn(layout);
  }

  std::uint64_t file_offset(ExpertKey key) const { return store->where(key)[0].offset; }

  // True when the slot of a held expert holds exactly its own bytes.
  bool content_is_right(ExpertKey key, std::int32_t slot) const {
    const std::byte* at = engine->arena().data() + std::uint64_t(slot) * store->slot_bytes() +
                          store->piece_at(key, 0);
    std::vector<std::byte> want(kExpertBytes);
    float_content(0, file_offset(key), want);
    return std::memcmp(at, want.data(), want.size()) == 0;
  }
};

struct Batch {
  std::int32_t tokens, top_k;
  std::vector<float> x, weights, out;
  std::vector<std::int64_t> ids;

  Batch(std::int32_t tokens_, const Geometry& geometry, std::mt19937& random)
      : tokens(tokens_),
        top_k(geometry.top_k),
        x(std::size_t(tokens) * kHidden),
        weights(std::size_t(tokens) * top_k),
        out(std::size_t(tokens) * kHidden, std::nanf("")),
        ids(std::size_t(tokens) * top_k) {
    std::uniform_real_distribution<float> real(-1, 1);
    for (float& value : x) value = real(random);
    for (float& value : weights) value = real(random) + 2;
    std::vector<std::int64_t> all(geometry.experts_per_layer);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = std::int64_t(i);
    for (std::int32_t token = 0; token < tokens; ++token) {
      std::shuffle(all.begin(), all.end(), random);
      std::copy_n(all.begin(), top_k, ids.begin() + token * top_k);
    }
  }

  void run(Engine& engine, std::int32_t layer) {
    engine.forward(layer, {tokens, top_k, DType::f32, DType::f32, x.data(), ids.data(),
                           weights.data(), out.data()});
  }

  // float64, straight from the definition.
  template <typename Files>
  std::vector<double> expected(const Files& world, std::int32_t layer) const {
    std::vector<double> y(x.size(), 0.0);
    for (std::int32_t token = 0; token < tokens; ++token) {
      for (std::int32_t k = 0; k < top_k; ++k) {
        const auto expert = static_cast<std::int32_t>(ids[token * top_k + k]);
        const std::uint64_t base = world.file_offset({layer, expert});
        auto w = [&](int matrix, int row, int column, int width) {
          return double(weight_at(base + matrix * kMatrix + (row * width + column) * 4));
        };
        double act[kInter];
        for (int i = 0; i < kInter; ++i) {
          double g = 0, u = 0;
          for (int h = 0; h < kHidden; ++h) {
            g += w(0, i, h, kHidden) * x[token * kHidden + h];
            u += w(1, i, h, kHidden) * x[token * kHidden + h];
          }
          act[i] = g / (1 + std::exp(-g)) * u;
        }
        for (int h = 0; h < kHidden; ++h) {
          double sum = 0;
          for (int i = 0; i < kInter; ++i) sum += w(2, h, i, kInter) * act[i];
          y[token * kHidden + h] += sum * weights[token * top_k + k];
        }
      }
    }
    return y;
  }
};

inline void expect_bytes_add_up(const Engine& engine) {
  const Counters c = engine.counters();
  EXPECT_EQ(c.bytes_moved, c.bytes_demand + c.bytes_prefetch_used + c.bytes_prefetch_late +
                               c.bytes_prefetch_wasted + c.bytes_cancelled +
                               c.bytes_prefetch_unused);
}

inline EngineOptions options_with(std::int32_t slots) {
  EngineOptions options;
  options.slots = slots;
  options.background = false;
  return options;
}

}  // namespace prophet
