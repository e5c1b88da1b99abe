#include "bindings/policy.h"

#include <pybind11/stl.h>

#include <set>
#include <string>
#include <utility>

#include "core/error.h"

namespace py = pybind11;

namespace prophet {
namespace {

class PythonPolicy final : public EvictionPolicy {
 public:
  PythonPolicy(const py::function& make, const Geometry& geometry)
      : policy_(make(geometry.layers, geometry.experts_per_layer, geometry.top_k)),
        arrived_(method("arrived")),
        used_(method("used")),
        left_(method("left")),
        tick_(method("tick")),
        victim_(method("victim")) {
    if (victim_.is_none()) {
      throw InvalidArgument(
          "an eviction policy in Python needs a method victim(candidates, incoming)");
    }
  }
  ~PythonPolicy() override {
    py::gil_scoped_acquire hold;
    for (py::object* one : {&policy_, &arrived_, &used_, &left_, &tick_, &victim_}) {
      *one = py::object();
    }
  }

  std::string name() const override { return "python"; }
  void arrived(ExpertKey key) override {
    here_.insert(key);
    tell(arrived_, key);
  }
  void used(ExpertKey key) override { tell(used_, key); }
  void left(ExpertKey key) override {
    here_.erase(key);
    tell(left_, key);
  }
  void tick(std::int32_t layer) override {
    if (tick_.is_none()) return;
    py::gil_scoped_acquire hold;
    tick_(layer);
  }

  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey incoming) const override {
    std::vector<std::pair<std::int32_t, std::int32_t>> candidates;
    for (ExpertKey key : here_) {
      if (view.evictable(key)) candidates.emplace_back(key.layer, key.expert);
    }
    if (candidates.empty()) return std::nullopt;
    py::gil_scoped_acquire hold;
    const auto [layer, expert] = victim_(candidates, std::pair(incoming.layer, incoming.expert))
                                     .cast<std::pair<std::int32_t, std::int32_t>>();
    const ExpertKey named{layer, expert};
    if (!here_.contains(named)) {
      throw InvalidArgument("an eviction policy in Python named expert " + std::to_string(expert) +
                            " of layer " + std::to_string(layer) +
                            ", which is none of its candidates");
    }
    return named;
  }

 private:
  py::object method(const char* name) const { return py::getattr(policy_, name, py::none()); }
  static void tell(const py::object& method, ExpertKey key) {
    py::gil_scoped_acquire hold;  // also to see that there is none
    if (!method.is_none()) method(key.layer, key.expert);
  }

  py::object policy_, arrived_, used_, left_, tick_, victim_;
  std::set<ExpertKey> here_;
};

}  // namespace

MakePolicy python_policy(py::function make) {
  // The last copy may go without the interpreter's lock.
  const std::shared_ptr<py::function> kept(new py::function(std::move(make)),
                                           [](py::function* one) {
                                             py::gil_scoped_acquire hold;
                                             delete one;
                                           });
  return [kept](const Geometry& geometry) -> std::unique_ptr<EvictionPolicy> {
    py::gil_scoped_acquire hold;
    return std::make_unique<PythonPolicy>(*kept, geometry);
  };
}

}  // namespace prophet
