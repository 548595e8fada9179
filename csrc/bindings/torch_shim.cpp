#include "torch_shim.h"

#include <dlfcn.h>

#include <exception>
#include <system_error>
#include <thread>

namespace {

template <typename Function>
bool look_up(void* library, const std::string& name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, ("aoti_torch_" + name).c_str()));
  return function != nullptr;
}

// The address of a tensor's implementation, as Python can ask for it.
void* implementation(const py::handle tensor) {
  return reinterpret_cast<void*>(tensor.attr("_cdata").cast<std::uintptr_t>());
}

// Whether what torch itself calls a handle is the address of a word as described.
bool handles_are_addresses(const py::object& aoti, const py::object& tensor) {
  const py::list handles = aoti.attr("unsafe_alloc_void_ptrs_from_tensors")(py::make_tuple(tensor));
  const py::capsule handle = handles[0];
  const bool found = *handle.get_pointer<void*>() == implementation(tensor);
  aoti.attr("alloc_tensors_by_stealing_from_void_ptrs")(handles);  // gives the handle back
  return found;
}

// Where in a Python tensor the word lies; nothing unless there is exactly one such place.
std::optional<std::ptrdiff_t> find_handle(const py::object& tensor) {
  void* const wanted = implementation(tensor);
  const auto* words = reinterpret_cast<void* const*>(tensor.ptr());
  const auto size = static_cast<std::size_t>(Py_TYPE(tensor.ptr())->tp_basicsize) / sizeof(void*);
  std::optional<std::ptrdiff_t> offset;
  for (std::size_t i = sizeof(PyObject) / sizeof(void*); i < size; ++i) {
    if (words[i] != wanted) continue;
    if (offset) return std::nullopt;
    offset = static_cast<std::ptrdiff_t>(i * sizeof(void*));
  }
  return offset;
}

template <typename Function>
void look_up_mangled(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

bool tells_inference(const TorchShim& shim, const py::module_& torch, const py::object& tensor) {
  if (shim.is_inference == nullptr || shim.is_inference_mode == nullptr) return false;
  const bool holds_outside =
      !shim.is_inference_mode() && !shim.is_inference(shim.handle(tensor.ptr()));
  const py::object mode = torch.attr("inference_mode")();
  mode.attr("__enter__")();
  const py::object made = torch.attr("empty")(1, py::arg("device") = "cpu");
  const bool holds_inside = shim.is_inference_mode() && shim.is_inference(shim.handle(made.ptr()));
  mode.attr("__exit__")(py::none(), py::none(), py::none());
  return holds_outside && holds_inside;
}

// Keeps of the C++ functions those that do what their names say.
void find_functions(TorchShim& shim, const py::module_& torch, const py::object& tensor) {
  look_up_mangled(shim.library, "_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE",
                  shim.bump_version);
  look_up_mangled(shim.library, "_ZN2at6native6is_negERKNS_6TensorE", shim.is_neg);
  look_up_mangled(shim.library, "_ZN2at6native12is_inferenceERKNS_6TensorE", shim.is_inference);
  look_up_mangled(shim.library, "_ZN3c1013InferenceMode10is_enabledEv", shim.is_inference_mode);
  if (shim.bump_version != nullptr) {
    const auto version = [&] { return tensor.attr("_version").cast<std::int64_t>(); };
    const std::int64_t before = version();
    shim.bump_version(shim.handle(tensor.ptr()));
    if (version() != before + 1) shim.bump_version = nullptr;
  }
  if (shim.is_neg != nullptr) {
    const py::object negated = torch.attr("_neg_view")(tensor);
    const bool holds =
        shim.is_neg(shim.handle(negated.ptr())) && !shim.is_neg(shim.handle(tensor.ptr()));
    if (!holds) shim.is_neg = nullptr;
  }
  if (!tells_inference(shim, torch, tensor)) {
    shim.is_inference = nullptr;
    shim.is_inference_mode = nullptr;
  }
}

std::optional<TorchShim> find_in_torch() {
  TorchShim shim{};
  // Loaded long ago, by torch; only asked for here.
  shim.library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  if (shim.library == nullptr || !look_up(shim.library, "get_data_ptr", shim.get_data_ptr) ||
      !look_up(shim.library, "get_dim", shim.get_dim) ||
      !look_up(shim.library, "get_sizes", shim.get_sizes) ||
      !look_up(shim.library, "get_strides", shim.get_strides) ||
      !look_up(shim.library, "get_dtype", shim.get_dtype) ||
      !look_up(shim.library, "get_device_type", shim.get_device_type) ||
      !look_up(shim.library, "get_device_index", shim.get_device_index)) {
    return std::nullopt;
  }
  look_up(shim.library, "get_layout", shim.get_layout);
  look_up(shim.library, "get_storage_size", shim.get_storage_size);
  look_up(shim.library, "get_storage_offset", shim.get_storage_offset);

  const py::module_ torch = py::module_::import("torch");
  const py::object aoti = torch.attr("_C").attr("_aoti");
  const py::object tensor = torch.attr("empty")(1, py::arg("device") = "cpu");
  if (!handles_are_addresses(aoti, tensor)) return std::nullopt;
  const auto offset = find_handle(tensor);
  if (!offset || offset != find_handle(torch.attr("nn").attr("Parameter")(tensor))) {
    return std::nullopt;
  }
  shim.handle_offset = *offset;
  find_functions(shim, torch, tensor);
  return shim;
}

std::optional<TorchShim> try_to_find() {
  try {
    return find_in_torch();
  } catch (const std::exception&) {
    // A name is missing, something has another type, or one of torch's own functions raised.
    return std::nullopt;
  }
}

}  // namespace

std::optional<TorchShim> TorchShim::find() {
  std::optional<TorchShim> found;
  const py::gil_scoped_release release;
  try {
    std::thread([&found] {
      const py::gil_scoped_acquire acquire;
      found = try_to_find();
    }).join();
  } catch (const std::system_error&) {  // the system starts no thread
    return std::nullopt;
  }
  return found;
}

std::optional<std::int32_t> TorchShim::constant(const std::string& name) const {
  std::int32_t (*function)() = nullptr;
  if (!look_up(library, name, function)) return std::nullopt;
  return function();
}
