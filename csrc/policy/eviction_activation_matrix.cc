// Eviction of MoE-Infinity (arXiv 2401.14361): the victim is the evictable expert with the smallest
//
//     (share + epsilon) * (1 - layer / layers)
//
// where `share` is its part of its layer in the predicted activation matrix: early layers are kept,
// since prefetching cannot cover them. Forecasts carry the share times 1 - horizon / layers, which
// is divided out. Layers that have run keep what was last said of them.
#include "policy/eviction_registry.h"
#include "policy/eviction_worth.h"

namespace prophet {
namespace {

constexpr double kEpsilon = 1e-4;

struct Share {
  double operator()(const Prospect& expert, std::int32_t layer, std::int32_t layers) const {
    const double near = 1 - double(expert.horizon) / layers;
    const double share = near > 0 ? expert.p / near : expert.p;
    return (share + kEpsilon) * (1 - double(layer) / layers);
  }
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_activation_matrix(const Geometry& geometry) {
  return std::make_unique<WorthPolicy<Share>>(geometry, "activation-matrix");
}

}  // namespace prophet
