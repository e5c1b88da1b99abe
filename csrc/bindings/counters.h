// The engine's counters as a Python dictionary, one key per member.
#pragma once

#include <pybind11/pybind11.h>

#include "engine/engine.h"

namespace prophet {

pybind11::dict to_dict(const Counters& counters);

}  // namespace prophet
