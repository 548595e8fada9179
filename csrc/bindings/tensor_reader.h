// Reads a torch tensor's address, layout, dtype and device, without torch's headers.
//
// torch >= 2.10 offers the C function table of the DLPack specification (version 1.3,
// DLPackExchangeAPI): some 50 nanoseconds a tensor. Older releases are asked through their Python
// methods, some microseconds a tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace py = pybind11;

// A tensor as DLPack describes it: DLTensor, field for field. Shape and strides stay valid until
// the next read. Source: include/dlpack/dlpack.h in github.com/dmlc/dlpack.
struct TensorView {
  char* data;
  std::int32_t device_type, device_id;
  std::int32_t ndim;
  std::uint8_t dtype_code, dtype_bits;
  std::uint16_t dtype_lanes;
  const std::int64_t* shape;
  const std::int64_t* strides;
  std::uint64_t byte_offset;  // counted in `data` already, once read
};

class TensorReader {
 public:
  // `fast` = false reads through Python methods whatever torch offers.
  explicit TensorReader(bool fast);

  bool fast() const { return exchange_ != nullptr; }

  // False where `tensor` is none, or has no plain memory on a device that DLPack names (sparse,
  // meta, ...).
  bool read(PyObject* tensor, TensorView& view) {
    if (!PyObject_TypeCheck(tensor, reinterpret_cast<PyTypeObject*>(tensor_type_.ptr()))) {
      return false;
    }
    if (exchange_ == nullptr) return read_by_methods(tensor, view);
    if (exchange_(tensor, &view) != 0) {
      PyErr_Clear();  // the caller learns it from the result
      return false;
    }
    view.data += view.byte_offset;
    return true;
  }

 private:
  using Exchange = int (*)(void* py_object, TensorView* out);
  Exchange find_exchange() const;

  bool read_by_methods(PyObject* tensor, TensorView& view);

  py::object tensor_type_;  // torch.Tensor
  Exchange exchange_ = nullptr;
  py::dict dtypes_;        // torch.dtype -> (DLPack code, bits)
  py::dict device_types_;  // torch.device.type -> DLPack code
  py::object strided_;
  std::vector<std::int64_t> shape_, strides_;
};
