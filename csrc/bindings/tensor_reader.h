// Reads a torch tensor's address, layout, dtype and device, without torch's headers: through
// torch's C interface (torch_shim.h) or, where there is none, through Python methods, some
// microseconds a tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "torch_shim.h"

namespace py = pybind11;

// Shape and strides stay valid until the next read.
struct TensorView {
  char* data;
  std::int64_t dim;
  const std::int64_t* shape;
  const std::int64_t* strides;
  std::int32_t dtype, device_type;  // numbered by the reader
  std::int32_t device_index;        // 0 on the CPU
};

class TensorReader {
 public:
  // `fast` = false reads through Python methods whatever torch offers.
  explicit TensorReader(bool fast);

  bool fast() const { return shim_.has_value(); }
  std::int32_t cpu() const { return cpu_; }
  // Throws py::key_error for a dtype that no engine has.
  std::int32_t number_of(const py::object& dtype) const;

  // Bytes of an element of a dtype, as numbered by the reader.
  std::int64_t itemsize(std::int32_t dtype) const {
    return itemsizes_[static_cast<std::size_t>(dtype)];
  }

  bool is_tensor(PyObject* object) const { return PyObject_TypeCheck(object, tensor_type()); }

  // False where `tensor` is none, or has no plain memory (sparse, ...).
  bool read(PyObject* tensor, TensorView& view) {
    if (!is_tensor(tensor)) return false;
    return shim_ ? read_by_shim(tensor, view) : read_by_methods(tensor, view);
  }

  // To be asked first where a tensor may be sparse: `read` would have torch log a complaint.
  bool is_strided(PyObject* tensor) const {
    if (!shim_) return true;  // `read` looks for itself
    if (shim_->get_layout == nullptr) {
      const py::object layout = py::handle(tensor).attr("layout");
      return layout.is(strided_);
    }
    std::int32_t layout = -1;
    return shim_->get_layout(shim_->handle(tensor), &layout) == 0 && layout == strided_layout_;
  }

  // A number that tensors of one shape, layout, dtype and device share; others hardly ever have it.
  // 0 for all that the shim does not read. `tensor` must be strided and no subclass.
  std::uint64_t kind_of(PyObject* tensor) const;

  // Whether `tensor`'s elements stand in memory with the other sign: a lazily negated view.
  bool is_neg(PyObject* tensor) const {
    if (shim_ && shim_->is_neg != nullptr) return shim_->is_neg(shim_->handle(tensor));
    return py::handle(tensor).attr("is_neg")().cast<bool>();
  }

  // False for a tensor of inference mode outside of it: torch lets nobody write to such.
  bool may_write(PyObject* tensor) const {
    if (shim_ && shim_->is_inference != nullptr) {
      return !shim_->is_inference(shim_->handle(tensor)) || shim_->is_inference_mode();
    }
    return !py::handle(tensor).attr("is_inference")().cast<bool>() ||
           is_inference_mode_().cast<bool>();
  }

  // Whether `bump_version` may be called: a tenth of the time that torch's Python function takes.
  bool bumps_versions() const { return shim_ && shim_->bump_version != nullptr; }

  // Tells autograd that `tensor` has been written. Throws for a tensor of inference mode outside.
  void bump_version(PyObject* tensor) const { shim_->bump_version(shim_->handle(tensor)); }

  // Whether the storage of `tensor`, which `read` has read, has the `bytes` from its first element
  // on: somebody may have resized the storage, which leaves shape and strides as they were.
  bool is_held(PyObject* tensor, std::int64_t bytes, std::int32_t dtype) const {
    if (!shim_ || shim_->get_storage_size == nullptr || shim_->get_storage_offset == nullptr) {
      return is_held_by_methods(tensor, bytes, dtype);
    }
    void* const handle = shim_->handle(tensor);
    std::int64_t size = 0, offset = 0;
    return shim_->get_storage_size(handle, &size) == 0 &&
           shim_->get_storage_offset(handle, &offset) == 0 &&
           offset * itemsize(dtype) + bytes <= size;
  }

  // Asks for the memory that `read` of this tensor will want. A hint, good for three cache lines,
  // the size of torch's TensorImpl: nothing is read.
  void prefetch(PyObject* tensor) const {
    if (!shim_ || !is_tensor(tensor)) return;
    const char* implementation = shim_->implementation(tensor);
    for (int line = 0; line < 3; ++line) __builtin_prefetch(implementation + 64 * line);
  }

 private:
  PyTypeObject* tensor_type() const { return reinterpret_cast<PyTypeObject*>(tensor_type_.ptr()); }

  bool read_by_shim(PyObject* tensor, TensorView& view) {
    void* const handle = shim_->handle(tensor);
    void* data = nullptr;
    if (shim_->get_data_ptr(handle, &data) != 0 || shim_->get_dim(handle, &view.dim) != 0 ||
        shim_->get_sizes(handle, &view.shape) != 0 ||
        shim_->get_strides(handle, &view.strides) != 0 ||
        shim_->get_dtype(handle, &view.dtype) != 0 ||
        shim_->get_device_type(handle, &view.device_type) != 0) {
      return false;
    }
    view.data = static_cast<char*>(data);
    view.device_index = 0;
    return view.device_type == cpu_ || shim_->get_device_index(handle, &view.device_index) == 0;
  }

  // Fills dtypes_ and what follows it; false where the shim has not all of them.
  bool number_names(const py::module_& torch);

  bool read_by_methods(PyObject* tensor, TensorView& view);
  bool is_held_by_methods(PyObject* tensor, std::int64_t bytes, std::int32_t dtype) const;

  std::optional<TorchShim> shim_;
  py::object tensor_type_;               // torch.Tensor
  py::object strided_;                   // torch.strided
  py::object is_inference_mode_;         // torch.is_inference_mode_enabled
  py::dict dtypes_, device_types_;       // torch.dtype and torch.device.type -> number
  std::vector<std::int64_t> itemsizes_;  // by number
  std::int32_t cpu_, strided_layout_;
  std::vector<std::int64_t> shape_, strides_;
};
