#include "table.h"

#include <algorithm>
#include <unordered_map>

#include "../engine/scalars.h"

namespace {

constexpr float max_step = 0x1p24f;  // float32 counts no further in ones

py::object interned(const char* name) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name));
}

std::int64_t count_elements(const TensorView& view) {
  std::int64_t numel = 1;
  for (std::int64_t d = 0; d < view.dim; ++d) numel *= view.shape[d];
  return numel;
}

bool same_shape(const std::int64_t* shape, std::int64_t dim, const TensorView& view) {
  if (view.dim != dim) return false;
  for (std::int64_t d = 0; d < dim; ++d) {
    if (view.shape[d] != shape[d]) return false;
  }
  return true;
}

// The stride of a dimension of one element says nothing, and where there is no element, none does.
bool same_strides(const std::int64_t* strides, const TensorView& view, std::int64_t numel) {
  if (numel < 2) return true;
  for (std::int64_t d = 0; d < view.dim; ++d) {
    if (view.strides[d] != strides[d] && view.shape[d] != 1) return false;
  }
  return true;
}

// `numbers`: as Table::set_groups tells.
void set_numbers(Group& group, const py::handle numbers) {
  std::size_t i = 0;
  for (const py::handle number : numbers.cast<py::tuple>()) {
    if (i == max_hyperparameters) {
      throw py::value_error("a rule has at most " + std::to_string(max_hyperparameters) +
                            " hyperparameters");
    }
    if (py::isinstance<py::tuple>(number)) {
      const auto [address, is_wide] = number.cast<std::pair<std::uintptr_t, bool>>();
      group.addresses[i] = reinterpret_cast<const void*>(address);
      group.wide |= std::int64_t{is_wide} << i;
    } else {
      group.values[i] = number.cast<double>();
    }
    ++i;
  }
}

}  // namespace

Table::Table(const std::vector<std::string>& states, std::size_t num_groups, bool fast)
    : reader_(fast),
      trusted_types_{py::module_::import("torch").attr("Tensor")},
      entry_names_{interned("step")},
      params_key_(interned("params")),
      grad_key_(interned("grad")),
      version_key_(interned("_version")),
      grad_descriptor_(trusted_types_[0].attr("grad")),
      increment_version_(
          py::module_::import("torch").attr("autograd").attr("graph").attr("increment_version")),
      step_dtype_(reader_.number_of(py::module_::import("torch").attr("float32"))),
      group_sizes_(num_groups) {
  if (states.size() > max_states) {
    throw py::value_error("a row of the table holds at most " + std::to_string(max_states) +
                          " states, got " + std::to_string(states.size()));
  }
  for (const std::string& name : states) entry_names_.push_back(interned(name.c_str()));
}

int Table::add_batch(std::int64_t chunk_size, bool counts_on_device) {
  batches_.push_back(Batch{chunk_size, counts_on_device, {}, 0, {}, {}});
  return static_cast<int>(batches_.size()) - 1;
}

int Table::add_param(py::object object, int group, int batch, const py::object& state_dtype,
                     const std::vector<std::int64_t>& layout) {
  Param param;
  param.group = group;
  param.batch = batch;
  param.sizes = sizes_.size();
  if (batch >= 0) {
    TensorView view;
    if (!reader_.read(dtensors_.local(object.ptr()), view))
      throw py::value_error("tensor without plain memory");
    param.dtype = view.dtype;
    param.state_dtype = reader_.number_of(state_dtype);
    param.device_type = view.device_type;
    param.device_index = view.device_index;
    param.numel = count_elements(view);
    const std::int64_t chunk_size = batches_.at(static_cast<std::size_t>(batch)).chunk_size;
    param.num_chunks = (param.numel + chunk_size - 1) / chunk_size;
    param.dim = view.dim;
    sizes_.insert(sizes_.end(), view.shape, view.shape + view.dim);
    sizes_.insert(sizes_.end(), view.strides, view.strides + view.dim);
    sizes_.insert(sizes_.end(), layout.begin(), layout.end());
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
  try {
    if (take_down(param_groups, state)) return true;
  } catch (...) {
    clear();
    throw;
  }
  clear();  // so that no gradient is held that will not be used
  return false;
}

bool Table::take_down(const py::list& param_groups, const py::dict& state) {
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
    // Owned: to read a subclass's `grad` may run code of the user's that drops it.
    params_[static_cast<std::size_t>(index)].state = py::reinterpret_borrow<py::object>(value);
  }
  if (seen != expected_state_.size()) return false;

  // First the objects, then what they hold: so the reader can ask for memory ahead of its turn.
  for (std::size_t i = 0; i < params_.size(); ++i) {
    prefetch_objects(i);
    Param& param = params_[i];
    if (param.batch == by_reference) continue;
    py::object grad = grad_of(param);
    if (grad.is_none()) continue;
    if (param.batch == dormant || !param.state) return false;
    gathered_.push_back(i);
    param.held[0] = std::move(grad);
    if (!gather_entries(param)) return false;
  }
  constexpr std::size_t ahead = 1;
  for (std::size_t i = 0; i < gathered_.size(); ++i) {
    if (i + ahead < gathered_.size()) prefetch(params_[gathered_[i + ahead]]);
    if (!fill(params_[gathered_[i]])) return false;
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

bool Table::gather_entries(Param& param) const {
  // Most often the keys are these very objects in this order, and a walk is quicker than look-ups.
  std::size_t found = 0;
  PyObject *key, *value;
  Py_ssize_t position = 0;
  PyObject* const state = param.state.ptr();
  while (found < entry_names_.size() && PyDict_Next(state, &position, &key, &value)) {
    if (key != entry_names_[found].ptr()) continue;
    param.held[++found] = py::reinterpret_borrow<py::object>(value);
  }
  for (; found < entry_names_.size(); ++found) {
    value = PyDict_GetItemWithError(state, entry_names_[found].ptr());
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    if (value == nullptr) return false;
    param.held[found + 1] = py::reinterpret_borrow<py::object>(value);
  }
  param.state = py::object();
  return true;
}

// What the gathering reads in a few turns: a dict of states has to be there before its keys are.
void Table::prefetch_objects(std::size_t turn) const {
  const auto ahead = [&](std::size_t turns) {
    return turn + turns < params_.size() ? &params_[turn + turns] : nullptr;
  };
  if (const Param* param = ahead(8)) __builtin_prefetch(param->state.ptr());
  if (const Param* param = ahead(4); param != nullptr && param->state) {
    const auto* keys = reinterpret_cast<PyDictObject*>(param->state.ptr())->ma_keys;
    __builtin_prefetch(keys);
    __builtin_prefetch(reinterpret_cast<const char*>(keys) + 64);
  }
  if (const Param* param = ahead(3)) reader_.prefetch(param->object.ptr());
}

void Table::prefetch(const Param& param) const {
  for (std::size_t i = 0; i <= entry_names_.size(); ++i) reader_.prefetch(param.held[i].ptr());
}

void Table::clear() {
  for (const std::size_t index : gathered_) release(params_[index]);
  gathered_.clear();
  due_.clear();
  scalars_rows_.clear();
  for (Batch& batch : batches_) {
    batch.rows.clear();
    batch.counts.clear();
    batch.num_chunks = 0;
  }
  for (Param& param : params_) {
    param.state = py::object();
    param.is_staged = false;
  }
}

void Table::release(Param& param) {
  for (py::object& held : param.held) held = py::object();
  param.is_due = false;
}

bool Table::put(int index, py::object grad, const py::tuple& states, py::object step) {
  Param& param = params_.at(static_cast<std::size_t>(index));
  if (states.size() + 1 != entry_names_.size()) return false;
  gathered_.push_back(static_cast<std::size_t>(index));
  param.held[0] = std::move(grad);
  param.held[1] = std::move(step);
  for (std::size_t i = 0; i < states.size(); ++i) param.held[i + 2] = states[i];
  return fill(param);
}

// Some subclasses of torch.Tensor keep their elements elsewhere.
bool Table::is_trusted(PyObject* tensor) const {
  return std::any_of(trusted_types_.begin(), trusted_types_.end(), [&](const py::type& type) {
    return type.ptr() == reinterpret_cast<PyObject*>(Py_TYPE(tensor));
  });
}

bool Table::fill(Param& param) {
  const auto reads = [&](PyObject* tensor, std::int32_t dtype, TensorView& view) {
    return reader_.read(tensor, view) && view.dtype == dtype &&
           view.device_type == param.device_type && view.device_index == param.device_index &&
           same_shape(shape(param), param.dim, view) && (view.data != nullptr || param.numel == 0);
  };
  const auto lies_as = [&](const std::int64_t* strides, const TensorView& view) {
    return same_strides(strides, view, param.numel);
  };
  TensorView view;
  // In place, so that nothing is copied: a row that is not completed is never launched.
  Batch& batch = batches_[static_cast<std::size_t>(param.batch)];
  param.row = batch.rows.size();
  Row& row = batch.rows.emplace_back();
  row.numel = param.numel;

  PyObject* const tensor = param.object.ptr();
  PyObject* const shard = dtensors_.local(tensor);
  if (!reads(shard, param.dtype, view) || !lies_as(strides(param), view) || reader_.is_neg(shard)) {
    return false;
  }
  row.param = view.data;
  param.is_staged = !lies_as(layout(param), view);

  const bool is_local = dtensors_.is_dtensor(tensor);
  PyObject* const given = param.held[0].ptr();
  if (dtensors_.is_dtensor(given) != is_local) return false;
  PyObject* const grad = dtensors_.local(given);
  if (is_local && !(is_trusted(grad) && dtensors_.same_sharding(tensor, given))) {
    param.is_staged = true;  // a collective is to make it or may still be writing it
  } else {
    if (!is_trusted(grad) || !reader_.is_strided(grad) || !reads(grad, param.dtype, view)) {
      return false;
    }
    row.grad = view.data;
    param.is_staged |= !lies_as(layout(param), view) || reader_.is_neg(grad);
  }

  for (std::size_t i = 0; i + 1 < entry_names_.size(); ++i) {
    PyObject* const state = param.held[i + 2].ptr();
    if (dtensors_.is_dtensor(state) != is_local ||
        (is_local && !dtensors_.same_sharding(tensor, state)))
      return false;
    if (!reads(dtensors_.local(state), param.state_dtype, view) || !lies_as(layout(param), view)) {
      return false;
    }
    row.state[i] = view.data;
  }

  if (!reader_.read(param.held[1].ptr(), view) || view.dtype != step_dtype_ || view.dim != 0) {
    return false;
  }
  auto* step = reinterpret_cast<float*>(view.data);
  if (batch.counts_on_device) {
    if (view.device_type != param.device_type || view.device_index != param.device_index) {
      return false;
    }
    row.scalars = static_cast<std::int64_t>(batch.counts.size());
    batch.counts.push_back(Count{step, param.group});
    param.step = nullptr;
  } else {
    if (view.device_type != reader_.cpu() || !(*step >= 0 && *step <= max_step)) return false;
    row.scalars = scalars_row(param.group, static_cast<std::int64_t>(*step) + 1);
    param.step = step;
  }

  param.is_due = true;
  row.first_chunk = batch.num_chunks;
  batch.num_chunks += param.num_chunks;
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

void Table::prepare(const std::string& rule, const py::list& groups) {
  scalars64_.clear();
  for (const auto& [index, step] : due_) {
    Group group{};
    set_numbers(group, groups[static_cast<std::size_t>(index)]);
    prepare_scalars(rule, step, group, scalars64_);
  }
  scalars_.assign(scalars64_.begin(), scalars64_.end());  // each rounded once
}

void Table::set_groups(int index, const py::list& groups) {
  Batch& batch = batches_.at(static_cast<std::size_t>(index));
  batch.groups.clear();
  for (const py::handle numbers : groups) set_numbers(batch.groups.emplace_back(), numbers);
}

GradTable Table::grad_table(const std::vector<int>& params) const {
  GradTable table;
  for (const int index : params) {
    const Param& param = params_.at(static_cast<std::size_t>(index));
    if (!param.is_due) continue;
    const Row& row = batches_[static_cast<std::size_t>(param.batch)].rows[param.row];
    table.rows.push_back(GradRow{row.grad, row.numel, table.num_segments});
    table.num_segments += (row.numel + segment_size - 1) / segment_size;
  }
  return table;
}

py::list Table::fingerprint() const {
  py::list found;
  for (const std::size_t index : gathered_) {
    const py::object& grad = params_[index].held[0];
    found.append(py::make_tuple(py::weakref(grad), grad.attr(version_key_)));
  }
  return found;
}

bool Table::has_fingerprint(const py::list& fingerprint) const {
  if (fingerprint.size() != gathered_.size()) return false;
  for (std::size_t i = 0; i < gathered_.size(); ++i) {
    const py::object& grad = params_[gathered_[i]].held[0];
    const auto known = fingerprint[i].cast<py::tuple>();
    const py::object version = grad.attr(version_key_);
    if (!known[0]().is(grad) || !version.equal(known[1])) return false;
  }
  return true;
}

py::object Table::grad(int index) const {
  return params_.at(static_cast<std::size_t>(index)).held[0];
}

void Table::advance(int index) {
  std::vector<PyObject*> stepped;
  stepped.reserve(gathered_.size());
  for (const std::size_t i : gathered_) {
    Param& param = params_[i];
    if (param.batch != index || !param.is_due) continue;
    if (param.step != nullptr) *param.step += 1;
    release(param);
    PyObject* const tensor = param.object.ptr();
    stepped.push_back(tensor);
    if (dtensors_.is_dtensor(tensor)) stepped.push_back(dtensors_.local(tensor));
  }
  if (reader_.bumps_versions()) {
    for (PyObject* tensor : stepped) reader_.bump_version(tensor);
  } else {
    py::list tensors;
    for (PyObject* tensor : stepped) tensors.append(py::reinterpret_borrow<py::object>(tensor));
    increment_version_(tensors);
  }
}

int Table::traverse(visitproc visit, void* arg) const {
  for (const Param& param : params_) {
    Py_VISIT(param.object.ptr());
    Py_VISIT(param.state.ptr());
    for (const py::object& held : param.held) Py_VISIT(held.ptr());
  }
  for (const auto& entry : expected_state_) Py_VISIT(entry.first.ptr());
  return 0;
}
