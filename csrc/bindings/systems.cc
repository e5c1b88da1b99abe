// prophet_ext.systems(): the recipes as dicts.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/parts.h"
#include "bindings/prefetch.h"
#include "systems/recipe.h"

namespace py = pybind11;

namespace prophet {
namespace {

py::dict to_dict(const Recipe& recipe) {
  constexpr const char* bounds[] = {"", "misses", "foresight", "time", "resident"};
  py::dict out;
  out["name"] = recipe.name;
  out["what"] = recipe.what;
  out["source"] = recipe.source;
  out["modelled"] = recipe.modelled;
  out["not_modelled"] = recipe.not_modelled;
  out["predictor"] = recipe.needs.predictor;
  out["trained"] = recipe.needs.trained;
  out["hidden"] = recipe.needs.hidden;
  out["entering"] = recipe.needs.entering;
  out["tokens"] = recipe.needs.tokens;
  out["router"] = recipe.needs.router;
  out["gates"] = recipe.needs.gates;
  out["future"] = recipe.needs.future;
  out["policy"] = recipe.policy;
  out["keep"] = recipe.keep;
  out["prefetch"] =
      recipe.prefetch.last > 0 ? py::object(to_dict(recipe.prefetch)) : py::object(py::none());
  out["widen"] = recipe.widen;
  out["recall"] = recipe.recall;
  out["next_token"] = recipe.next_token;
  out["bound"] = bounds[static_cast<int>(recipe.bound)];
  out["lossy"] = recipe.lossy.what;
  out["lossy_bytes"] = recipe.lossy.bytes;
  return out;
}

}  // namespace

void register_systems(py::module_& m) {
  m.def("systems", [] {
    py::list out;
    for (const Recipe& recipe : recipes()) out.append(to_dict(recipe));
    return out;
  });
}

}  // namespace prophet
