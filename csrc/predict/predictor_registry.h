// Predictors that need no training, by name. A trained one comes from its file (bank_predictor.h).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "predict/predictor.h"

namespace prophet {

// What some of them need of the model. float16 as raw bits.
struct PredictorInputs {
  std::int32_t hidden = 0;                // H, width of what routers read
  std::vector<float> router;              // [L, E, H], or
  std::vector<std::uint16_t> router_f16;  // the same in float16, which wins when both are given
  std::vector<float> router_bias;         // [L, E], or empty
  std::vector<float> norm;    // [L, H] weights of the norms before the routers, or empty
  std::int32_t horizons = 3;  // next-gate: layers ahead at most, 1 to 3; each reads a router
};

// "popularity", "previous-token", "markov", "activation-matrix" (of MoE-Infinity), "expert-map" (of
// FineMoE), "next-gate" (which needs the router weights). Throws
// InvalidArgument for another name, a geometry that cannot be and inputs that do not fit it.
std::unique_ptr<Predictor> make_predictor(std::string_view name, const Geometry& geometry,
                                          const PredictorInputs& inputs = {});
std::vector<std::string> predictor_names();

// Their constructors, one per predictor_*.cc; each file tells its algorithm.
std::unique_ptr<Predictor> make_popularity(const Geometry& geometry, const PredictorInputs& inputs);
std::unique_ptr<Predictor> make_previous_token(const Geometry& geometry,
                                               const PredictorInputs& inputs);
std::unique_ptr<Predictor> make_markov(const Geometry& geometry, const PredictorInputs& inputs);
std::unique_ptr<Predictor> make_activation_matrix_search(const Geometry& geometry,
                                                         const PredictorInputs& inputs);
std::unique_ptr<Predictor> make_expert_map_search(const Geometry& geometry,
                                                  const PredictorInputs& inputs);
std::unique_ptr<Predictor> make_next_gate(const Geometry& geometry, const PredictorInputs& inputs);

}  // namespace prophet
