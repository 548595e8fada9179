// torch's C interface for compiled models: reads a field of a tensor in two nanoseconds, without
// torch's headers. Source: torch/csrc/inductor/aoti_torch/c/shim.h in github.com/pytorch/pytorch,
// which promises that these functions stay as they are.
//
// They take handles. A handle is the address of one word, which holds the address of the tensor's
// implementation; and the object that Python knows as a tensor has such a word too. Both are tested
// in this very process, and where either does not hold there is no shim.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace py = pybind11;

struct TorchShim {
  // Nothing where torch lacks the interface, or its objects are not as described above. Tests in a
  // thread of its own: the caller may be in inference mode, or in a mode that makes other tensors
  // than those asked for, and each of these modes belongs to one thread. Releases the GIL.
  static std::optional<TorchShim> find();

  // The word of a Python tensor that serves as a handle while the object lives.
  void* handle(PyObject* tensor) const { return reinterpret_cast<char*>(tensor) + handle_offset; }

  // Where the tensor's implementation is, for those who want its memory and not its contents.
  const char* implementation(PyObject* tensor) const {
    return *static_cast<const char* const*>(handle(tensor));
  }

  // torch's number of a dtype, device type or layout, named as in "dtype_float32"; nothing where
  // torch has no such name.
  std::optional<std::int32_t> constant(const std::string& name) const;

  // All return 0, or else torch has logged why not.
  template <typename T>
  using Getter = int (*)(void* handle, T* out);
  Getter<void*> get_data_ptr;
  Getter<std::int64_t> get_dim;
  Getter<const std::int64_t*> get_sizes, get_strides;
  Getter<std::int32_t> get_dtype, get_device_type, get_device_index;
  Getter<std::int32_t> get_layout;                            // null in older releases
  Getter<std::int64_t> get_storage_size, get_storage_offset;  // bytes, elements; null where missing

  // C++ functions of torch's, by the names that the compiler gives them; null where there is none
  // of that name. They take a tensor by reference, and a reference to a tensor is a handle.
  void (*bump_version)(void* handle);  // may throw: the tensor may be one of inference mode
  bool (*is_neg)(void* handle);
  bool (*is_inference)(void* handle);  // both null where either is missing
  bool (*is_inference_mode)();

  void* library;  // of dlopen
  std::ptrdiff_t handle_offset;
};
