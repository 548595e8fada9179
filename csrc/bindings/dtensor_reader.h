// Reads of a DTensor which tensor its elements on this rank lie in, and how they were cut. A Python
// class: both stand in slots, read here without a look-up, at every step anew.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

namespace py = pybind11;

class DTensorReader {
 public:
  // `type`: DTensor. `sharding`: the attributes of its specification that say which elements a rank
  // has. Throws py::type_error where it keeps what is read here in no slots.
  void know(const py::type& type, const std::vector<std::string>& sharding);

  // Of this very type; false for all before `know`.
  bool is_dtensor(PyObject* tensor) const {
    return reinterpret_cast<PyObject*>(Py_TYPE(tensor)) == type_.ptr();
  }

  // The tensor that holds the elements on this rank: the local one, borrowed, or `tensor` itself.
  PyObject* local(PyObject* tensor) const {
    PyObject* const local = is_dtensor(tensor) ? slot(tensor, local_offset_) : nullptr;
    return local == nullptr ? tensor : local;
  }

  // Whether two DTensors of one shape have the same elements on this rank; shapes do not tell a
  // replica from a summand (Partial).
  bool same_sharding(PyObject* dtensor, PyObject* other) const;

 private:
  static PyObject* slot(PyObject* object, std::ptrdiff_t offset) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
  }

  py::object type_;
  std::ptrdiff_t local_offset_ = 0, spec_offset_ = 0;
  std::vector<py::object> sharding_;  // interned
};
