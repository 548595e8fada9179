#include "tensor_reader.h"

#include <pybind11/gil_safe_call_once.h>

#include <algorithm>
#include <string>

namespace {

void copy_integers(const py::tuple& from, std::vector<std::int64_t>& to) {
  to.clear();
  for (const py::handle item : from) to.push_back(item.cast<std::int64_t>());
}

}  // namespace

TensorReader::TensorReader(bool fast) {
  const py::module_ torch = py::module_::import("torch");
  tensor_type_ = torch.attr("Tensor");
  strided_ = torch.attr("strided");
  is_inference_mode_ = torch.attr("is_inference_mode_enabled");
  if (fast) {
    // Not a plain static: one thread would wait for another that waits for its GIL.
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<std::optional<TorchShim>> found;
    shim_ = found.call_once_and_store_result([] { return TorchShim::find(); }).get_stored();
  }
  if (!number_names(torch)) {
    shim_.reset();
    number_names(torch);
  }
}

bool TensorReader::number_names(const py::module_& torch) {
  bool complete = true;
  std::int32_t count = 0;
  const auto number = [&](const std::string& name) {
    const auto found = shim_ ? shim_->constant(name) : count++;
    complete &= found.has_value();
    return found.value_or(-1);
  };
  for (const std::string name : {"float16", "bfloat16", "float32", "float64", "uint8", "int16"}) {
    const py::object dtype = torch.attr(name.c_str());
    const auto index = static_cast<std::size_t>(std::max(number("dtype_" + name), 0));
    dtypes_[dtype] = index;
    if (itemsizes_.size() <= index) itemsizes_.resize(index + 1);
    itemsizes_[index] = dtype.attr("itemsize").cast<std::int64_t>();
  }
  for (const std::string name : {"cpu", "cuda"}) {
    device_types_[name.c_str()] = number("device_type_" + name);
  }
  cpu_ = device_types_["cpu"].cast<std::int32_t>();
  strided_layout_ = number("layout_strided");
  return complete;
}

std::uint64_t TensorReader::kind_of(PyObject* tensor) const {
  if (!shim_) return 0;
  void* const handle = shim_->handle(tensor);
  std::int64_t dim = 0;
  const std::int64_t *shape = nullptr, *strides = nullptr;
  std::int32_t dtype = 0, device_type = 0, device_index = 0;
  if (shim_->get_dim(handle, &dim) != 0 || shim_->get_sizes(handle, &shape) != 0 ||
      shim_->get_strides(handle, &strides) != 0 || shim_->get_dtype(handle, &dtype) != 0 ||
      shim_->get_device_type(handle, &device_type) != 0 ||
      (device_type != cpu_ && shim_->get_device_index(handle, &device_index) != 0)) {
    return 0;
  }
  std::uint64_t kind = 0;
  const auto mix = [&](std::int64_t value) {
    // A step of splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators".
    kind = (kind ^ static_cast<std::uint64_t>(value)) + 0x9e3779b97f4a7c15u;
    kind = (kind ^ (kind >> 30)) * 0xbf58476d1ce4e5b9u;
    kind = (kind ^ (kind >> 27)) * 0x94d049bb133111ebu;
    kind ^= kind >> 31;
  };
  for (const std::int32_t number : {dtype, device_type, device_index}) mix(number);
  for (std::int64_t d = 0; d < dim; ++d) {
    mix(shape[d]);
    mix(strides[d]);
  }
  return kind;
}

std::int32_t TensorReader::number_of(const py::object& dtype) const {
  return dtypes_[dtype].cast<std::int32_t>();
}

bool TensorReader::read_by_methods(PyObject* object, TensorView& view) {
  const py::handle tensor(object);
  const py::object layout = tensor.attr("layout");
  if (!layout.is(strided_)) return false;
  const py::object dtype = tensor.attr("dtype");
  const py::object device = tensor.attr("device");
  const py::object device_type = device.attr("type");
  if (!dtypes_.contains(dtype) || !device_types_.contains(device_type)) return false;
  const py::object index = device.attr("index");
  copy_integers(tensor.attr("shape"), shape_);
  copy_integers(tensor.attr("stride")(), strides_);
  view.data = reinterpret_cast<char*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
  view.dim = static_cast<std::int64_t>(shape_.size());
  view.shape = shape_.data();
  view.strides = strides_.data();
  view.dtype = dtypes_[dtype].cast<std::int32_t>();
  view.device_type = device_types_[device_type].cast<std::int32_t>();
  view.device_index = view.device_type == cpu_ || index.is_none() ? 0 : index.cast<std::int32_t>();
  return true;
}

bool TensorReader::is_held_by_methods(PyObject* object, std::int64_t bytes,
                                      std::int32_t dtype) const {
  const py::handle tensor(object);
  const auto size = tensor.attr("untyped_storage")().attr("nbytes")().cast<std::int64_t>();
  const auto offset = tensor.attr("storage_offset")().cast<std::int64_t>();
  return offset * itemsize(dtype) + bytes <= size;
}
