#include "predict/predictor_registry.h"

#include "core/error.h"

namespace prophet {
namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<Predictor> (*make)(const Geometry&, const PredictorInputs&);
};

constexpr Entry kPredictors[] = {
    {"popularity", make_popularity},
    {"previous-token", make_previous_token},
    {"markov", make_markov},
    {"activation-matrix", make_activation_matrix_search},
    {"expert-map", make_expert_map_search},
    {"next-gate", make_next_gate},
};

}  // namespace

std::unique_ptr<Predictor> make_predictor(std::string_view name, const Geometry& geometry,
                                          const PredictorInputs& inputs) {
  std::string known;
  for (const Entry& entry : kPredictors) {
    if (entry.name == name) return entry.make(geometry, inputs);
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw InvalidArgument("there is no training-free predictor '" + std::string(name) +
                        "'; choose one of " + known + ", or give the file of a trained one");
}

std::vector<std::string> predictor_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kPredictors) names.emplace_back(entry.name);
  return names;
}

}  // namespace prophet
