#include "dtensor_reader.h"

#include <structmember.h>

#include <algorithm>

namespace {

std::ptrdiff_t offset_of_slot(const py::type& type, const char* name) {
  const py::object descriptor = type.attr(name);
  if (Py_TYPE(descriptor.ptr()) != &PyMemberDescr_Type) {
    throw py::type_error(std::string(name) + " is no slot");
  }
  return reinterpret_cast<PyMemberDescrObject*>(descriptor.ptr())->d_member->offset;
}

// Two values that are both there and differ: torch leaves out what follows from the others.
bool differ(const py::object& a, const py::object& b) {
  if (a.is(b) || a.is_none() || b.is_none()) return false;
  const int equal = PyObject_RichCompareBool(a.ptr(), b.ptr(), Py_EQ);
  if (equal < 0) throw py::error_already_set();
  return equal == 0;
}

}  // namespace

void DTensorReader::know(const py::type& type, const std::vector<std::string>& sharding) {
  local_offset_ = offset_of_slot(type, "_local_tensor");
  spec_offset_ = offset_of_slot(type, "_spec");
  type_ = type;
  sharding_.clear();
  for (const std::string& name : sharding) {
    sharding_.push_back(
        py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name.c_str())));
  }
}

bool DTensorReader::same_sharding(PyObject* dtensor, PyObject* other) const {
  const py::handle spec = slot(dtensor, spec_offset_), other_spec = slot(other, spec_offset_);
  if (spec.is(other_spec)) return true;
  if (!spec || !other_spec) return false;
  return std::none_of(sharding_.begin(), sharding_.end(), [&](const py::object& name) {
    return differ(spec.attr(name), other_spec.attr(name));
  });
}
