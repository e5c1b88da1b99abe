// How Python names a rule of prefetching.
#pragma once

#include <pybind11/pybind11.h>

#include "policy/prefetch_policy.h"

namespace prophet {

// From {"first": 1, "last": 3, "least": 0.1, "per_layer": 4, "order": "confidence", "discount":
// 0.02, "fill": 1.0, "conscience": True}, all optional. Throws InvalidArgument for unknown fields
// and orders.
PrefetchRule rule_from(const pybind11::dict& fields);
// The reverse: the fields that differ from an empty rule's.
pybind11::dict to_dict(const PrefetchRule& rule);

}  // namespace prophet
