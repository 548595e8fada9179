#include "table.h"

#include <algorithm>
#include <unordered_map>

#include "../engine/float_environment.h"
#include "../engine/scalars.h"

namespace {

py::object interned(const char* name) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name));
}

std::int64_t count_elements(const TensorView& view) {
  std::int64_t numel = 1;
  for (std::int64_t d = 0; d < view.dim; ++d) numel *= view.shape[d];
  return numel;
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
      // Both are names of adamod_fused/formats.py, which says where they are needed.
      exponents_key_(interned("block_exponents")),
      remainders_key_(interned("param_remainder")),
      grad_descriptor_(trusted_types_[0].attr("grad")),
      increment_version_(
          py::module_::import("torch").attr("autograd").attr("graph").attr("increment_version")),
      step_dtype_(reader_.number_of(py::module_::import("torch").attr("float32"))),
      exponents_dtype_(reader_.number_of(py::module_::import("torch").attr("uint8"))),
      remainders_dtype_(reader_.number_of(py::module_::import("torch").attr("int16"))),
      group_sizes_(num_groups) {
  if (states.size() > max_states) {
    throw py::value_error("a row of the table holds at most " + std::to_string(max_states) +
                          " states, got " + std::to_string(states.size()));
  }
  for (const std::string& name : states) entry_names_.push_back(interned(name.c_str()));
}

int Table::add_batch(std::int64_t chunk_size, bool counts_on_device,
                     const std::string& state_format, const std::string& weight_format) {
  const Formats formats = Formats::named(state_format, weight_format);
  const bool is_coded = !formats.are_plain();
  Batch batch{};
  batch.chunk_size = chunk_size;
  batch.counts_on_device = counts_on_device;
  batch.formats = formats;
  batch.is_coded = is_coded;
  batches_.push_back(std::move(batch));
  return static_cast<int>(batches_.size()) - 1;
}

int Table::add_param(
    py::object object, int group, int batch, const py::object& state_dtype,
    const std::vector<std::int64_t>& layout,
    const std::optional<std::tuple<bool, bool, std::int64_t, std::uint64_t>>& coding) {
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
    std::int64_t last = 0;
    for (std::int64_t d = 0; d < view.dim; ++d) last += (view.shape[d] - 1) * view.strides[d];
    param.span_bytes = param.numel == 0 ? 0 : (last + 1) * reader_.itemsize(param.dtype);
    const std::int64_t chunk_size = batches_.at(static_cast<std::size_t>(batch)).chunk_size;
    param.num_chunks = (param.numel + chunk_size - 1) / chunk_size;
    param.dim = view.dim;
    sizes_.insert(sizes_.end(), view.shape, view.shape + view.dim);
    sizes_.insert(sizes_.end(), view.strides, view.strides + view.dim);
    sizes_.insert(sizes_.end(), layout.begin(), layout.end());
    if (coding.has_value()) {
      const auto [has_exponents, has_remainders, first_index, key] = *coding;
      param.coding = static_cast<std::int32_t>(codings_.size());
      codings_.push_back(Coding{has_exponents, has_remainders, first_index, key, {}, {}});
    }
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

py::list Table::staged() const {
  py::list indices;
  for (std::size_t i = 0; i < params_.size(); ++i) {
    if (params_[i].is_staged) indices.append(i);
  }
  return indices;
}

void Table::stage(int index, std::uintptr_t param_address, std::uintptr_t grad_address) {
  const Param& param = params_.at(static_cast<std::size_t>(index));
  Batch& batch = batches_[static_cast<std::size_t>(param.batch)];
  std::size_t at = param.row;
  if (batch.selected) {
    const auto found = std::find(batch.selected->begin(), batch.selected->end(), index);
    at = static_cast<std::size_t>(found - batch.selected->begin());
  }
  Row& row = batch.rows.at(at);
  row.param = reinterpret_cast<void*>(param_address);
  row.grad = reinterpret_cast<const void*>(grad_address);
}

void Table::select(int index, const std::vector<int>& params) {
  Batch& batch = batches_.at(static_cast<std::size_t>(index));
  if (!batch.selected) {
    batch.all_rows = std::move(batch.rows);
    batch.all_coded = std::move(batch.coded);
    batch.all_counts = std::move(batch.counts);
  }
  batch.selected = params;
  batch.rows.clear();
  batch.coded.clear();
  batch.counts.clear();
  batch.num_chunks = 0;
  for (const int i : params) {
    const Param& param = params_.at(static_cast<std::size_t>(i));
    Row row = batch.all_rows.at(param.row);
    row.first_chunk = batch.num_chunks;
    batch.num_chunks += param.num_chunks;
    if (batch.counts_on_device) {
      row.scalars = static_cast<std::int64_t>(batch.counts.size());
      batch.counts.push_back(batch.all_counts.at(param.row));
    }
    if (batch.is_coded) batch.coded.push_back(batch.all_coded.at(param.row));
    batch.rows.push_back(row);
  }
}

void Table::prepare(const std::string& rule, const py::list& groups) {
  in_float_environment([&] {
    scalars64_.clear();
    for (const auto& [index, step] : due_) {
      Group group{};
      set_numbers(group, groups[static_cast<std::size_t>(index)]);
      prepare_scalars(rule, step, group, scalars64_);
    }
    scalars_.assign(scalars64_.begin(), scalars64_.end());  // each rounded once
  });
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

// None for a tensor that was made in inference mode: it counts no writes, and raises if asked.
py::object Table::version_of(const py::object& grad) const {
  try {
    return grad.attr(version_key_);
  } catch (py::error_already_set&) {
    if (!grad.attr("is_inference")().cast<bool>()) throw;
    return py::none();
  }
}

py::list Table::fingerprint() const {
  py::list found;
  for (const std::size_t index : gathered_) {
    const py::object& grad = params_[index].held[0];
    found.append(py::make_tuple(py::weakref(grad), version_of(grad)));
  }
  return found;
}

bool Table::has_fingerprint(const py::list& fingerprint) const {
  if (fingerprint.size() != gathered_.size()) return false;
  for (std::size_t i = 0; i < gathered_.size(); ++i) {
    const py::object& grad = params_[gathered_[i]].held[0];
    const auto known = fingerprint[i].cast<py::tuple>();
    if (!known[0]().is(grad) || !version_of(grad).equal(known[1])) return false;
  }
  return true;
}

py::object Table::param(int index) const {
  return params_.at(static_cast<std::size_t>(index)).object;
}

py::object Table::grad(int index) const {
  return params_.at(static_cast<std::size_t>(index)).held[0];
}

std::vector<int> Table::row_params(int index) const {
  const Batch& batch = batches_.at(static_cast<std::size_t>(index));
  if (batch.selected) return *batch.selected;
  std::vector<int> params(batch.rows.size());
  for (const std::size_t i : gathered_) {
    const Param& param = params_[i];
    if (param.batch == index && param.is_due) params[param.row] = static_cast<int>(i);
  }
  return params;
}

void Table::advance(int index) {
  std::vector<Param*> stepped;
  stepped.reserve(gathered_.size());
  for (const std::size_t i : gathered_) {
    Param& param = params_[i];
    if (param.batch != index || !param.is_due) continue;
    if (param.step != nullptr) *param.step += 1;
    stepped.push_back(&param);
  }
  py::list written;  // where Python is to bump their versions
  const auto bump = [&](PyObject* tensor) {
    if (reader_.bumps_versions()) {
      reader_.bump_version(tensor);
    } else {
      written.append(py::reinterpret_borrow<py::object>(tensor));
    }
  };
  const auto bump_with_local = [&](const py::object& tensor) {
    if (!tensor) return;
    bump(tensor.ptr());
    if (dtensors_.is_dtensor(tensor.ptr())) bump(dtensors_.local(tensor.ptr()));
  };
  for (const Param* param : stepped) {
    bump_with_local(param->object);
    for (std::size_t k = 1; k <= entry_names_.size(); ++k) bump_with_local(param->held[k]);
    if (param->coding < 0) continue;
    const Coding& coding = codings_[static_cast<std::size_t>(param->coding)];
    bump_with_local(coding.exponents);
    bump_with_local(coding.remainders);
  }
  if (!written.empty()) increment_version_(written);
  for (Param* param : stepped) release(*param);
}

void Table::run(const py::list& launches) {
  for (const py::handle item : launches) {
    const auto launch = py::reinterpret_borrow<py::tuple>(item);
    if (!launch[1].is_none()) launch[1]();
    advance(launch[0].cast<int>());
  }
}

int Table::traverse(visitproc visit, void* arg) const {
  for (const Param& param : params_) {
    Py_VISIT(param.object.ptr());
    Py_VISIT(param.state.ptr());
    for (const py::object& held : param.held) Py_VISIT(held.ptr());
  }
  for (const Coding& coding : codings_) {
    Py_VISIT(coding.exponents.ptr());
    Py_VISIT(coding.remainders.ptr());
  }
  for (const auto& entry : expected_state_) Py_VISIT(entry.first.ptr());
  return 0;
}
