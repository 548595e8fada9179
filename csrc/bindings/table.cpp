#include "table.h"

#include <algorithm>
#include <unordered_map>

namespace {

constexpr std::int32_t on_cpu = 1;
constexpr std::uint8_t floating = 2;
constexpr float max_step = 0x1p24f;  // float32 counts no further in ones

py::object interned(const char* name) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name));
}

std::int64_t count_elements(const TensorView& view) {
  std::int64_t numel = 1;
  for (int d = 0; d < view.ndim; ++d) numel *= view.shape[d];
  return numel;
}

bool same_shape(const std::vector<std::int64_t>& shape, const TensorView& view) {
  if (static_cast<int>(shape.size()) != view.ndim) return false;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] != view.shape[d]) return false;
  }
  return true;
}

// The stride of a dimension of one element says nothing, and where there is no element, none does.
bool same_strides(const std::vector<std::int64_t>& strides, const TensorView& view,
                  std::int64_t numel) {
  if (numel < 2) return true;
  for (int d = 0; d < view.ndim; ++d) {
    if (view.shape[d] != 1 && view.strides[d] != strides[static_cast<std::size_t>(d)]) return false;
  }
  return true;
}

}  // namespace

Table::Table(const std::vector<std::string>& states, std::size_t num_groups, bool fast)
    : reader_(fast),
      trusted_types_{py::module_::import("torch").attr("Tensor")},
      entry_names_{interned("step")},
      params_key_(interned("params")),
      grad_key_(interned("grad")),
      is_neg_key_(interned("is_neg")),
      grad_descriptor_(trusted_types_[0].attr("grad")),
      group_sizes_(num_groups) {
  if (states.size() > max_states) {
    throw py::value_error("a row of the table holds at most " + std::to_string(max_states) +
                          " states, got " + std::to_string(states.size()));
  }
  for (const std::string& name : states) entry_names_.push_back(interned(name.c_str()));
}

int Table::add_batch(std::int64_t chunk_size) {
  batches_.push_back(Batch{chunk_size, {}, 0});
  return static_cast<int>(batches_.size()) - 1;
}

int Table::add_param(py::object object, int group, int batch, int state_bits,
                     std::vector<std::int64_t> layout) {
  Param param;
  param.group = group;
  param.batch = batch;
  if (batch >= 0) {
    TensorView view;
    if (!reader_.read(object.ptr(), view)) throw py::value_error("tensor without plain memory");
    param.device_type = view.device_type;
    param.device_id = view.device_id;
    param.dtype_code = view.dtype_code;
    param.dtype_bits = view.dtype_bits;
    param.layout = std::move(layout);
    param.state_bits = static_cast<std::uint8_t>(state_bits);
    param.numel = count_elements(view);
    param.shape.assign(view.shape, view.shape + view.ndim);
    param.strides.assign(view.strides, view.strides + view.ndim);
  }
  const py::object grad_descriptor = py::type::of(object).attr("grad");
  param.inherits_grad = Py_TYPE(grad_descriptor_.ptr()) == &PyGetSetDescr_Type &&
                        grad_descriptor.is(grad_descriptor_);
  param.object = std::move(object);
  params_.push_back(std::move(param));
  ++group_sizes_.at(static_cast<std::size_t>(group));
  return static_cast<int>(params_.size()) - 1;
}

void Table::trust(const py::type& type) {
  const auto is_known = [&](const py::type& known) { return known.is(type); };
  if (std::none_of(trusted_types_.begin(), trusted_types_.end(), is_known)) {
    trusted_types_.push_back(type);
  }
}

void Table::expect_state(const py::dict& state) {
  std::unordered_map<PyObject*, int> index_of;
  for (const Param& param : params_) {
    index_of.emplace(param.object.ptr(), static_cast<int>(index_of.size()));
  }
  expected_state_.clear();
  for (const auto& [key, value] : state) {
    const auto found = index_of.find(key.ptr());
    expected_state_.emplace_back(py::reinterpret_borrow<py::object>(key),
                                 found == index_of.end() ? -1 : found->second);
  }
}

bool Table::refresh(const py::list& param_groups, const py::dict& state) {
  clear();
  if (param_groups.size() != group_sizes_.size()) return false;
  std::size_t next = 0;
  for (std::size_t g = 0; g < group_sizes_.size(); ++g) {
    PyObject* group = PyList_GET_ITEM(param_groups.ptr(), static_cast<Py_ssize_t>(g));
    if (!PyDict_Check(group)) return false;
    PyObject* params = PyDict_GetItemWithError(group, params_key_.ptr());
    if (params == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (params == nullptr || !(PyList_Check(params) || PyTuple_Check(params))) return false;
    const auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(params));
    if (size != group_sizes_[g]) return false;
    PyObject** items = PySequence_Fast_ITEMS(params);
    for (std::size_t i = 0; i < size; ++i) {
      if (items[i] != params_[next++].object.ptr()) return false;
    }
  }

  // In step with the dictionary's own order: no key is hashed, every key is compared.
  PyObject *key, *value;
  Py_ssize_t position = 0;
  std::size_t seen = 0;
  while (PyDict_Next(state.ptr(), &position, &key, &value)) {
    if (seen == expected_state_.size()) return false;
    const auto& [expected_key, index] = expected_state_[seen++];
    if (expected_key.ptr() != key) return false;
    if (index < 0) continue;  // an entry of the user's own
    if (!PyDict_Check(value)) return false;
    params_[static_cast<std::size_t>(index)].state = value;
  }
  if (seen != expected_state_.size()) return false;

  for (Param& param : params_) {
    if (param.batch == by_reference) continue;
    const py::object grad = grad_of(param);
    if (grad.is_none()) continue;
    if (param.batch == dormant || param.state == nullptr) return false;
    Entries entries{grad.ptr()};
    if (!find_entries(param.state, entries) || !fill(param, entries)) return false;
  }
  return true;
}

py::object Table::grad_of(const Param& param) const {
  PyObject* object = param.object.ptr();
  PyObject* grad;
  if (param.inherits_grad) {  // past the attribute look-up, a third of its time
    const auto* getset = reinterpret_cast<PyGetSetDescrObject*>(grad_descriptor_.ptr())->d_getset;
    grad = getset->get(object, getset->closure);
  } else {
    grad = PyObject_GetAttr(object, grad_key_.ptr());
  }
  if (grad == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(grad);
}

bool Table::find_entries(PyObject* state, Entries& entries) const {
  // Most often the keys are these very objects, and a walk is quicker than four look-ups.
  std::size_t found = 0;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  while (PyDict_Next(state, &position, &key, &value)) {
    for (std::size_t i = 0; i < entry_names_.size(); ++i) {
      if (entry_names_[i].ptr() == key) {
        entries[i + 1] = value;
        ++found;
      }
    }
  }
  if (found == entry_names_.size()) return true;
  for (std::size_t i = 0; i < entry_names_.size(); ++i) {
    entries[i + 1] = PyDict_GetItemWithError(state, entry_names_[i].ptr());
    if (entries[i + 1] == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (entries[i + 1] == nullptr) return false;
  }
  return true;
}

void Table::clear() {
  due_.clear();
  scalars_rows_.clear();
  for (Batch& batch : batches_) {
    batch.rows.clear();
    batch.num_chunks = 0;
  }
  for (Param& param : params_) {
    param.state = nullptr;
    release(param);
  }
}

void Table::release(Param& param) {
  param.held = {};
  param.step = nullptr;
  param.is_staged = false;
}

bool Table::put(int index, const py::object& grad, const py::tuple& states,
                const py::object& step) {
  Entries entries{grad.ptr(), step.ptr()};
  if (states.size() + 1 != entry_names_.size()) return false;
  for (std::size_t i = 0; i < states.size(); ++i) {
    entries[i + 2] = PyTuple_GET_ITEM(states.ptr(), static_cast<Py_ssize_t>(i));
  }
  return fill(params_.at(static_cast<std::size_t>(index)), entries);
}

bool Table::fill(Param& param, const Entries& entries) {
  PyObject* grad = entries[0];
  const auto same_place = [&](const TensorView& view) {
    return view.device_type == param.device_type && view.device_id == param.device_id &&
           same_shape(param.shape, view) && (view.data != nullptr || param.numel == 0);
  };
  const auto same_dtype = [&](const TensorView& view) {
    return view.dtype_code == param.dtype_code && view.dtype_bits == param.dtype_bits;
  };
  Row row{};
  row.numel = param.numel;
  TensorView view;

  if (!reader_.read(param.object.ptr(), view) || !same_place(view) || !same_dtype(view) ||
      !same_strides(param.strides, view, param.numel)) {
    return false;
  }
  row.param = view.data;
  param.is_staged = !same_strides(param.layout, view, param.numel);

  // Some subclasses of torch.Tensor keep their elements elsewhere.
  const bool is_trusted =
      std::any_of(trusted_types_.begin(), trusted_types_.end(), [&](const py::type& type) {
        return type.ptr() == reinterpret_cast<PyObject*>(Py_TYPE(grad));
      });
  if (!is_trusted) return false;
  if (!reader_.read(grad, view) || !same_place(view) || !same_dtype(view)) return false;
  row.grad = view.data;
  param.is_staged |= !same_strides(param.layout, view, param.numel);
  // Autograd leaves a lazily negated gradient (the imaginary part of a conjugate) only where its
  // stride of two does not show: in a tensor of one element.
  if (param.numel == 1) {
    const auto is_neg = py::reinterpret_steal<py::object>(
        PyObject_CallMethodObjArgs(grad, is_neg_key_.ptr(), nullptr));
    if (!is_neg) throw py::error_already_set();
    param.is_staged |= is_neg.ptr() == Py_True;
  }

  for (std::size_t i = 0; i + 1 < entry_names_.size(); ++i) {
    if (!reader_.read(entries[i + 2], view) || !same_place(view) || view.dtype_code != floating ||
        view.dtype_bits != param.state_bits || !same_strides(param.layout, view, param.numel)) {
      return false;
    }
    row.state[i] = view.data;
  }

  if (!reader_.read(entries[1], view) || view.device_type != on_cpu ||
      view.dtype_code != floating || view.dtype_bits != 32 || view.ndim != 0) {
    return false;
  }
  auto* step = reinterpret_cast<float*>(view.data);
  if (!(*step >= 0 && *step <= max_step)) return false;
  row.scalars = scalars_row(param.group, static_cast<std::int64_t>(*step) + 1);

  param.step = step;
  for (std::size_t i = 0; i < entry_names_.size() + 1; ++i) {
    param.held[i] = py::reinterpret_borrow<py::object>(entries[i]);
  }

  Batch& batch = batches_[static_cast<std::size_t>(param.batch)];
  row.first_chunk = batch.num_chunks;
  batch.num_chunks += (row.numel + batch.chunk_size - 1) / batch.chunk_size;
  param.row = batch.rows.size();
  batch.rows.push_back(row);
  return true;
}

std::int64_t Table::scalars_row(int group, std::int64_t step) {
  const std::pair<int, std::int64_t> pair{group, step};
  // Parameters of one group stand together and mostly share their step count.
  if (!due_.empty() && due_.back() == pair) return static_cast<std::int64_t>(due_.size()) - 1;
  const auto [entry, is_new] = scalars_rows_.emplace(pair, static_cast<std::int64_t>(due_.size()));
  if (is_new) due_.push_back(pair);
  return entry->second;
}

py::list Table::staged() const {
  py::list indices;
  for (std::size_t i = 0; i < params_.size(); ++i) {
    if (params_[i].is_staged) indices.append(i);
  }
  return indices;
}

void Table::stage(int index, std::uintptr_t param_address, std::uintptr_t grad_address) {
  const Param& param = params_.at(static_cast<std::size_t>(index));
  Row& row = batches_[static_cast<std::size_t>(param.batch)].rows[param.row];
  row.param = reinterpret_cast<void*>(param_address);
  row.grad = reinterpret_cast<const void*>(grad_address);
}

py::list Table::due() const {
  py::list pairs;
  for (const auto& [group, step] : due_) pairs.append(py::make_tuple(group, step));
  return pairs;
}

void Table::set_scalars(const py::list& rows) {
  if (rows.size() != due_.size()) {
    throw py::value_error("expected a row of scalars for each pair in due()");
  }
  scalars64_.clear();
  for (const py::handle row : rows) {
    for (const py::handle value : py::reinterpret_borrow<py::tuple>(row)) {
      scalars64_.push_back(value.cast<double>());
    }
  }
  scalars_.assign(scalars64_.begin(), scalars64_.end());  // each rounded once
}

py::object Table::grad(int index) const {
  return params_.at(static_cast<std::size_t>(index)).held[0];
}

py::list Table::advance(int batch) {
  py::list stepped;
  for (Param& param : params_) {
    if (param.batch != batch || param.step == nullptr) continue;
    *param.step += 1;
    release(param);
    stepped.append(param.object);
  }
  return stepped;
}

int Table::traverse(visitproc visit, void* arg) const {
  for (const Param& param : params_) {
    Py_VISIT(param.object.ptr());
    for (const py::object& held : param.held) Py_VISIT(held.ptr());
  }
  for (const auto& entry : expected_state_) Py_VISIT(entry.first.ptr());
  return 0;
}
