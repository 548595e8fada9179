// How the table takes down the tensors of one step: what `Table::refresh` does.
#include <algorithm>

#include "../engine/codes.h"
#include "table.h"

namespace {

constexpr float max_step = 0x1p24f;  // float32 counts no further in ones

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

}  // namespace

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
  return fill_gathered();
}

bool Table::fill_gathered() {
  constexpr std::size_t ahead = 1;
  for (std::size_t i = 0; i < gathered_.size(); ++i) {
    if (i + ahead < gathered_.size()) prefetch(params_[gathered_[i + ahead]]);
    if (!fill(params_[gathered_[i]])) return false;
  }
  look_for_overlap();
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

bool Table::gather_entries(Param& param) {
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
  Coding* const coding =
      param.coding >= 0 ? &codings_[static_cast<std::size_t>(param.coding)] : nullptr;
  if (coding != nullptr && !gather_coded(param, *coding)) return false;
  if (PyDict_Size(state) > static_cast<Py_ssize_t>(entry_names_.size())) {
    // What a format keeps that the param group no longer names is converted before the step.
    const auto stale = [&](bool is_wanted, const py::object& key) {
      return !is_wanted && PyDict_Contains(state, key.ptr()) == 1;
    };
    if (stale(coding != nullptr && coding->has_exponents, exponents_key_) ||
        stale(coding != nullptr && coding->has_remainders, remainders_key_)) {
      return false;
    }
  }
  param.state = py::object();
  return true;
}

bool Table::gather_coded(const Param& param, Coding& coding) const {
  const auto take = [&](bool is_wanted, const py::object& key, py::object& held) {
    if (!is_wanted) return true;
    PyObject* const value = PyDict_GetItemWithError(param.state.ptr(), key.ptr());
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    held = py::reinterpret_borrow<py::object>(value);
    return value != nullptr;
  };
  return take(coding.has_exponents, exponents_key_, coding.exponents) &&
         take(coding.has_remainders, remainders_key_, coding.remainders);
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
  new_grads_.clear();
  for (Batch& batch : batches_) {
    batch.rows.clear();
    batch.coded.clear();
    batch.counts.clear();
    batch.num_chunks = 0;
    batch.selected.reset();
  }
  for (Param& param : params_) {
    param.state = py::object();
    param.is_staged = false;
  }
}

void Table::release(Param& param) {
  for (py::object& held : param.held) held = py::object();
  if (param.coding >= 0) {
    Coding& coding = codings_[static_cast<std::size_t>(param.coding)];
    coding.exponents = coding.remainders = py::object();
  }
  param.is_due = false;
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
  // The same of a tensor that the step writes.
  const auto takes = [&](PyObject* tensor, std::int32_t dtype, TensorView& view) {
    return reads(tensor, dtype, view) && reader_.may_write(tensor);
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
  if (!takes(shard, param.dtype, view) || !lies_as(strides(param), view) || reader_.is_neg(shard)) {
    return false;
  }
  row.param = view.data;
  param.is_staged = !lies_as(layout(param), view);

  const bool is_local = dtensors_.is_dtensor(tensor);
  if (is_local && !reader_.may_write(tensor)) return false;
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
    const bool is_dense = lies_as(layout(param), view);
    if (!note_grad(param, grad, view, is_dense)) return false;
    param.is_staged |= !is_dense || reader_.is_neg(grad);
  }

  for (std::size_t i = 0; i + 1 < entry_names_.size(); ++i) {
    PyObject* const state = param.held[i + 2].ptr();
    if (dtensors_.is_dtensor(state) != is_local ||
        (is_local && !dtensors_.same_sharding(tensor, state)))
      return false;
    if (!takes(dtensors_.local(state), param.state_dtype, view) || !lies_as(layout(param), view)) {
      return false;
    }
    row.state[i] = view.data;
  }

  if (batch.is_coded && !fill_coded(param, batch.coded.emplace_back())) return false;

  if (!reader_.read(param.held[1].ptr(), view) || view.dtype != step_dtype_ || view.dim != 0 ||
      view.data == nullptr || !reader_.may_write(param.held[1].ptr())) {
    return false;
  }
  auto* step = reinterpret_cast<float*>(view.data);
  if (!note_addresses(param, row, step, batch.is_coded ? &batch.coded.back() : nullptr)) {
    return false;
  }
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

bool Table::fill_coded(const Param& param, Coded& coded) {
  const Coding& coding = codings_.at(static_cast<std::size_t>(param.coding));
  coded = Coded{nullptr, nullptr, coding.first_index, coding.key};
  const auto takes = [&](PyObject* tensor, std::int32_t dtype, TensorView& view) {
    return reader_.read(tensor, view) && view.dtype == dtype &&
           view.device_type == param.device_type && view.device_index == param.device_index &&
           (view.data != nullptr || param.numel == 0) && reader_.may_write(tensor);
  };
  TensorView view;
  if (coding.has_exponents) {
    const std::int64_t shape[] = {(param.numel + codes::block - 1) / codes::block,
                                  static_cast<std::int64_t>(entry_names_.size()) - 1};
    const std::int64_t strides[] = {shape[1], 1};
    if (!takes(coding.exponents.ptr(), exponents_dtype_, view) || !same_shape(shape, 2, view) ||
        !same_strides(strides, view, shape[0] * shape[1])) {
      return false;
    }
    coded.exponents = reinterpret_cast<std::uint8_t*>(view.data);
  }
  if (coding.has_remainders) {
    PyObject* const tensor = param.object.ptr();
    PyObject* const given = coding.remainders.ptr();
    const bool is_local = dtensors_.is_dtensor(tensor);
    if (dtensors_.is_dtensor(given) != is_local ||
        (is_local && !dtensors_.same_sharding(tensor, given))) {
      return false;
    }
    if (!takes(dtensors_.local(given), remainders_dtype_, view) ||
        !same_shape(shape(param), param.dim, view) ||
        !same_strides(layout(param), view, param.numel)) {
      return false;
    }
    coded.remainders = reinterpret_cast<std::int16_t*>(view.data);
  }
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
