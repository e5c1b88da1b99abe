// Our errors in Python: each is also the built-in exception a caller would expect.
#include <pybind11/pybind11.h>

#include "bindings/parts.h"
#include "core/error.h"

namespace py = pybind11;

namespace prophet {
namespace {

py::object make_type(py::module_& m, const char* name, py::tuple bases) {
  py::dict fields;
  fields["__module__"] = "prophet_ext";
  py::object type =
      py::reinterpret_borrow<py::object>((PyObject*)&PyType_Type)(name, bases, fields);
  m.attr(name) = type;
  return type;
}

}  // namespace

void register_errors(py::module_& m) {
  // Kept alive by the module; the translator below borrows them.
  static PyObject *invalid, *read, *device, *state, *root;
  py::object base = make_type(m, "ProphetError", py::make_tuple(py::handle(PyExc_RuntimeError)));
  root = base.ptr();
  invalid =
      make_type(m, "InvalidArgument", py::make_tuple(base, py::handle(PyExc_ValueError))).ptr();
  read = make_type(m, "ReadError", py::make_tuple(base, py::handle(PyExc_OSError))).ptr();
  device = make_type(m, "DeviceError", py::make_tuple(base)).ptr();
  state = make_type(m, "StateError", py::make_tuple(base)).ptr();
  py::register_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const InvalidArgument& e) {
      PyErr_SetString(invalid, e.what());
    } catch (const ReadError& e) {
      PyErr_SetString(read, e.what());
    } catch (const DeviceError& e) {
      PyErr_SetString(device, e.what());
    } catch (const StateError& e) {
      PyErr_SetString(state, e.what());
    } catch (const Error& e) {
      PyErr_SetString(root, e.what());
    }
  });
}

}  // namespace prophet
