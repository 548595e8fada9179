// How the table takes down tensors that belong to a caller: what `Table::load` does. Of a caller's
// tensors nothing is known from the step before, so what a plan's constructor checks once for an
// optimizer's tensors is checked here at every step.
#include <algorithm>
#include <cstring>

#include "../engine/codes.h"
#include "table.h"

bool Table::load(const py::object& params, const py::object& grads, const py::tuple& states,
                 const py::object& steps, const py::object& exponents,
                 const py::object& remainders) {
  clear();
  try {
    std::vector<Items> lists{Items(params), Items(grads), Items(steps)};
    for (const py::handle state : states) {
      lists.emplace_back(py::reinterpret_borrow<py::object>(state));
    }
    if (gather_lists(lists, Items(exponents), Items(remainders)) && all_strided() &&
        fill_gathered() && exponents_are_sound() && are_distinct()) {
      return true;
    }
  } catch (...) {
    forget();
    throw;
  }
  forget();
  return false;
}

void Table::forget() {
  clear();
  expected_state_.clear();
  for (Param& param : params_) param.object = py::object();
}

// `lists`: parameters, gradients, step counts, then the states.
bool Table::gather_lists(const std::vector<Items>& lists, const Items& exponents,
                         const Items& remainders) {
  if (lists.size() != entry_names_.size() + 2) return false;
  const std::size_t size = lists[0].size();
  for (const Items& list : lists) {
    if (list.size() != size) return false;
  }
  std::size_t next = 0, next_exponents = 0, next_remainders = 0;
  const auto take = [](bool is_wanted, const Items& items, std::size_t& at, py::object& held) {
    if (!is_wanted) return true;
    if (at == items.size()) return false;
    held = py::reinterpret_borrow<py::object>(items[at++]);
    return true;
  };
  for (std::size_t i = 0; i < params_.size(); ++i) {
    Param& param = params_[i];
    if (param.batch < 0) continue;
    if (next == size) return false;
    gathered_.push_back(i);
    param.object = py::reinterpret_borrow<py::object>(lists[0][next]);
    for (std::size_t k = 1; k < lists.size(); ++k) {
      param.held[k - 1] = py::reinterpret_borrow<py::object>(lists[k][next]);
    }
    ++next;
    if (param.coding < 0) continue;
    Coding& coding = codings_[static_cast<std::size_t>(param.coding)];
    if (!take(coding.has_exponents, exponents, next_exponents, coding.exponents) ||
        !take(coding.has_remainders, remainders, next_remainders, coding.remainders)) {
      return false;
    }
  }
  return next == size && next_exponents == exponents.size() && next_remainders == remainders.size();
}

// Before any is read: see TensorReader::is_strided.
bool Table::all_strided() const {
  const auto is_strided = [&](const py::object& object) {
    return !object || (reader_.is_tensor(object.ptr()) && reader_.is_strided(object.ptr()));
  };
  for (const std::size_t index : gathered_) {
    const Param& param = params_[index];
    if (!is_strided(param.object)) return false;
    if (!std::all_of(param.held.begin(), param.held.end(), is_strided)) return false;
  }
  return std::all_of(codings_.begin(), codings_.end(), [&](const Coding& coding) {
    return is_strided(coding.exponents) && is_strided(coding.remainders);
  });
}

// As adamod_fused/coded_states.py looks at them. Those on a device would have to be waited for.
bool Table::exponents_are_sound() const {
  const std::int64_t num_states = static_cast<std::int64_t>(entry_names_.size()) - 1;
  for (const std::size_t index : gathered_) {
    const Param& param = params_[index];
    if (param.coding < 0 || param.device_type != reader_.cpu()) continue;
    const Batch& batch = batches_[static_cast<std::size_t>(param.batch)];
    const std::uint8_t* const exponents = batch.coded[param.row].exponents;
    if (exponents == nullptr) continue;
    const std::int64_t blocks = (param.numel + codes::block - 1) / codes::block;
    const auto count = static_cast<std::size_t>(blocks * num_states);
    if (std::memchr(exponents, 0, count) != nullptr) return false;
    if (std::memchr(exponents, 255, count) != nullptr) return false;
  }
  return true;
}

// Whether no parameter is given twice.
bool Table::are_distinct() const {
  std::vector<PyObject*> objects;
  objects.reserve(gathered_.size());
  for (const std::size_t index : gathered_) objects.push_back(params_[index].object.ptr());
  std::sort(objects.begin(), objects.end());
  return std::adjacent_find(objects.begin(), objects.end()) == objects.end();
}
