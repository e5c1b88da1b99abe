// How does Python ask? This file lists the parts of the module; no logic here.
#include "bindings/parts.h"

PYBIND11_MODULE(prophet_ext, m) {
  m.doc() = "Prophet's native runtime: see prophet_ext.pyi.";
  m.attr("__version__") = PROPHET_VERSION;
  prophet::register_errors(m);
  prophet::register_predictor(m);
  prophet::register_layer_mlp(m);
  prophet::register_text_predictor(m);
  prophet::register_engine(m);
  prophet::register_machine(m);
  prophet::register_cuda(m);
  prophet::register_sim(m);
  prophet::register_systems(m);
  prophet::register_transformer(m);
}
