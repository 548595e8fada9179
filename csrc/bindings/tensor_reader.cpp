#include "tensor_reader.h"

namespace {

// DLPackExchangeAPI of DLPack 1.3, field for field; the same source as TensorView's.
struct ExchangeAPI {
  std::uint32_t major, minor;
  const ExchangeAPI* older;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  int (*dltensor_from_py_object)(void* py_object, TensorView* out);
  void* current_work_stream;
};

constexpr std::uint32_t known_major = 1;

void copy_integers(const py::tuple& from, std::vector<std::int64_t>& to) {
  to.clear();
  for (const py::handle item : from) to.push_back(item.cast<std::int64_t>());
}

}  // namespace

TensorReader::TensorReader(bool fast) {
  const py::module_ torch = py::module_::import("torch");
  tensor_type_ = torch.attr("Tensor");
  if (fast) exchange_ = find_exchange();

  constexpr int floating = 2, bfloat = 4;
  dtypes_[torch.attr("float16")] = py::make_tuple(floating, 16);
  dtypes_[torch.attr("float32")] = py::make_tuple(floating, 32);
  dtypes_[torch.attr("float64")] = py::make_tuple(floating, 64);
  dtypes_[torch.attr("bfloat16")] = py::make_tuple(bfloat, 16);
  device_types_["cpu"] = 1;
  device_types_["cuda"] = 2;
  strided_ = torch.attr("strided");
}

TensorReader::Exchange TensorReader::find_exchange() const {
  if (!py::hasattr(tensor_type_, "__dlpack_c_exchange_api__")) return nullptr;
  const py::object capsule = tensor_type_.attr("__dlpack_c_exchange_api__");
  void* pointer = PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api");
  if (pointer == nullptr) throw py::error_already_set();
  const auto* api = static_cast<const ExchangeAPI*>(pointer);
  while (api != nullptr && api->major != known_major) api = api->older;
  return api == nullptr ? nullptr : api->dltensor_from_py_object;
}

bool TensorReader::read_by_methods(PyObject* object, TensorView& view) {
  const py::handle tensor(object);
  const py::object layout = tensor.attr("layout");
  if (!layout.is(strided_)) return false;
  const py::object dtype = tensor.attr("dtype");
  const py::object device = tensor.attr("device");
  const py::object device_type = device.attr("type");
  if (!dtypes_.contains(dtype) || !device_types_.contains(device_type)) return false;
  const py::tuple code_and_bits = dtypes_[dtype];
  const py::object index = device.attr("index");
  copy_integers(tensor.attr("shape"), shape_);
  copy_integers(tensor.attr("stride")(), strides_);
  view = {reinterpret_cast<char*>(tensor.attr("data_ptr")().cast<std::uintptr_t>()),
          device_types_[device_type].cast<std::int32_t>(),
          index.is_none() ? 0 : index.cast<std::int32_t>(),
          static_cast<std::int32_t>(shape_.size()),
          code_and_bits[0].cast<std::uint8_t>(),
          code_and_bits[1].cast<std::uint8_t>(),
          1,
          shape_.data(),
          strides_.data(),
          0};
  return true;
}
