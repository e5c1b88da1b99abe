// An eviction policy that is written in Python.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>
#include <memory>

#include "policy/eviction_policy.h"

namespace prophet {

using MakePolicy = std::function<std::unique_ptr<EvictionPolicy>(const Geometry&)>;

// From a callable (layers, experts_per_layer, top_k) -> object. The object has victim(candidates,
// incoming), which names one of the candidates, and may have arrived, used, left (layer, expert)
// and tick (layer); candidates and incoming are (layer, expert). Called under the interpreter's
// lock: slow, for replays alone.
MakePolicy python_policy(pybind11::function make);

}  // namespace prophet
