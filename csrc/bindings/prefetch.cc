// A rule of prefetching as Python hands it over: a dict of the fields of PrefetchRule.
#include "bindings/prefetch.h"

#include <cmath>
#include <string>

#include "core/error.h"

namespace py = pybind11;

namespace prophet {
namespace {

PrefetchRule::Order order_from_name(const std::string& name) {
  if (name == "confidence") return PrefetchRule::Order::confidence;
  if (name == "deadline") return PrefetchRule::Order::deadline;
  if (name == "proximity") return PrefetchRule::Order::proximity;
  throw InvalidArgument("prefetches go in order of confidence, deadline or proximity, not '" +
                        name + "'");
}

}  // namespace

PrefetchRule rule_from(const py::dict& fields) {
  PrefetchRule rule;
  for (const auto& [key, value] : fields) {
    const auto name = key.cast<std::string>();
    if (name == "first") {
      rule.first = value.cast<std::int32_t>();
    } else if (name == "last") {
      rule.last = value.cast<std::int32_t>();
    } else if (name == "least") {
      rule.least = value.cast<float>();
    } else if (name == "staging") {
      rule.staging = value.cast<float>();
    } else if (name == "per_layer") {
      rule.per_layer = value.cast<std::int32_t>();
    } else if (name == "order") {
      rule.order = order_from_name(value.cast<std::string>());
    } else if (name == "discount") {
      rule.discount = value.cast<float>();
    } else if (name == "fill") {
      rule.fill = value.cast<double>();
    } else if (name == "conscience") {
      rule.conscience = value.cast<bool>();
    } else {
      throw InvalidArgument("a rule of prefetching has no field '" + name +
                            "': first, last, least, staging, per_layer, order, discount, fill, "
                            "conscience");
    }
  }
  return rule;
}

py::dict to_dict(const PrefetchRule& rule) {
  const PrefetchRule usual;
  py::dict out;
  out["first"] = rule.first;
  out["last"] = rule.last;
  if (rule.least != usual.least)
    out["least"] = std::round(double(rule.least) * 1e6) / 1e6;  // as it was written
  if (rule.staging != usual.staging) out["staging"] = std::round(double(rule.staging) * 1e6) / 1e6;
  if (rule.per_layer != usual.per_layer) out["per_layer"] = rule.per_layer;
  constexpr const char* orders[] = {"confidence", "deadline", "proximity"};
  out["order"] = orders[static_cast<int>(rule.order)];
  if (rule.discount != usual.discount) out["discount"] = double(rule.discount);
  if (rule.fill != usual.fill) out["fill"] = rule.fill;
  if (rule.conscience != usual.conscience) out["conscience"] = rule.conscience;
  return out;
}

}  // namespace prophet
