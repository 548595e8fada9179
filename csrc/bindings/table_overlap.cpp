// Whether tensors of a step share memory with something that the step writes: judged by the spans
// of addresses that they lie in, which are compared anew only where a tensor has moved.
#include <algorithm>

#include "../engine/codes.h"
#include "table.h"

namespace {

const char* address(const void* pointer) { return static_cast<const char*>(pointer); }

}  // namespace

// Whether the storages of what a step of this parameter writes have all its elements. A storage
// that is resized moves, so only new addresses are looked at.
bool Table::storages_hold(const Param& param) const {
  const auto holds = [&](const py::object& tensor, std::int64_t bytes, std::int32_t dtype) {
    return bytes == 0 || !tensor || reader_.is_held(dtensors_.local(tensor.ptr()), bytes, dtype);
  };
  if (!holds(param.object, param.span_bytes, param.dtype)) return false;
  if (!holds(param.held[1], sizeof(float), step_dtype_)) return false;
  const std::int64_t state_bytes = param.numel * reader_.itemsize(param.state_dtype);
  for (std::size_t k = 2; k <= entry_names_.size(); ++k) {
    if (!holds(param.held[k], state_bytes, param.state_dtype)) return false;
  }
  if (param.coding < 0) return true;
  const Coding& coding = codings_[static_cast<std::size_t>(param.coding)];
  return holds(coding.exponents, exponents_bytes(param), exponents_dtype_) &&
         holds(coding.remainders, remainders_bytes(param), remainders_dtype_);
}

// False where a storage is too small.
bool Table::note_addresses(Param& param, const Row& row, const float* step, const Coded* coded) {
  static_assert(max_states == 3, "the next line lists them");
  Addresses now{row.param, step, {row.state[0], row.state[1], row.state[2]}, nullptr, nullptr};
  if (coded != nullptr) {
    now.exponents = coded->exponents;
    now.remainders = coded->remainders;
  }
  if (now == param.written) return true;
  if (!storages_hold(param)) return false;
  param.written = now;
  has_moved_ = true;
  return true;
}

// False where its storage is too small.
bool Table::note_grad(Param& param, PyObject* grad, const TensorView& view, bool is_dense) {
  if ((is_dense && view.data == param.known_grad) || param.numel == 0) return true;
  param.known_grad = nullptr;
  std::int64_t last = 0;
  for (std::int64_t d = 0; d < view.dim; ++d) last += (view.shape[d] - 1) * view.strides[d];
  const std::int64_t bytes = (last + 1) * reader_.itemsize(param.dtype);
  new_grads_.push_back({&param, {view.data, view.data + bytes}, is_dense});
  return reader_.is_held(grad, bytes, param.dtype);
}

// Spans of what a step of this parameter would write, were it due.
void Table::add_spans(const Param& param, const Addresses& at) {
  const auto add = [&](const void* begin, std::int64_t bytes) {
    if (begin != nullptr && bytes > 0) spans_.push_back({address(begin), address(begin) + bytes});
  };
  add(at.param, param.span_bytes);
  add(at.step, sizeof(float));
  for (const void* state : at.states) add(state, param.numel * reader_.itemsize(param.state_dtype));
  add(at.exponents, exponents_bytes(param));
  add(at.remainders, remainders_bytes(param));
}

std::int64_t Table::exponents_bytes(const Param& param) const {
  const std::int64_t blocks = (param.numel + codes::block - 1) / codes::block;
  return blocks * static_cast<std::int64_t>(entry_names_.size() - 1);
}

std::int64_t Table::remainders_bytes(const Param& param) const {
  return param.numel * std::int64_t{sizeof(std::int16_t)};
}

// Where the tensors are of a parameter that is not stepped this time.
Table::Addresses Table::read_addresses(const Param& param) {
  const auto read = [&](PyObject* tensor) -> const void* {
    if (tensor == nullptr || !reader_.is_tensor(tensor)) return nullptr;
    PyObject* const local = dtensors_.local(tensor);
    TensorView view;
    return reader_.is_strided(local) && reader_.read(local, view) ? view.data : nullptr;
  };
  Addresses found{};
  found.param = read(param.object.ptr());
  if (!param.state) return found;
  const auto entry = [&](const py::object& key) {
    PyObject* const value = PyDict_GetItemWithError(param.state.ptr(), key.ptr());
    if (value == nullptr && PyErr_Occurred()) throw py::error_already_set();
    return read(value);
  };
  found.step = entry(entry_names_[0]);
  for (std::size_t k = 1; k < entry_names_.size(); ++k)
    found.states[k - 1] = entry(entry_names_[k]);
  if (param.coding >= 0) {
    const Coding& coding = codings_[static_cast<std::size_t>(param.coding)];
    if (coding.has_exponents) found.exponents = entry(exponents_key_);
    if (coding.has_remainders) found.remainders = entry(remainders_key_);
  }
  return found;
}

bool Table::spans_are_apart() {
  spans_.clear();
  std::vector<bool> is_gathered(params_.size());
  for (const std::size_t index : gathered_) is_gathered[index] = true;
  for (std::size_t i = 0; i < params_.size(); ++i) {
    Param& param = params_[i];
    if (param.batch < 0) continue;
    if (is_gathered[i]) {
      add_spans(param, param.written);
      continue;
    }
    const Addresses at = read_addresses(param);
    // The old place is no longer in spans_: back there, it has moved.
    if (!(at == param.written)) param.written = Addresses{};
    add_spans(param, at);
  }
  std::sort(spans_.begin(), spans_.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  // Merged, for the look-ups of gradients; neighbours too.
  bool are_apart = true;
  std::size_t merged = 0;
  for (std::size_t i = 1; i < spans_.size(); ++i) {
    if (spans_[i].begin < spans_[merged].end) are_apart = false;
    if (spans_[i].begin <= spans_[merged].end) {
      spans_[merged].end = std::max(spans_[merged].end, spans_[i].end);
    } else {
      spans_[++merged] = spans_[i];
    }
  }
  if (!spans_.empty()) spans_.resize(merged + 1);
  return are_apart;
}

void Table::look_for_overlap() {
  may_overlap_ = false;
  bool are_current = has_moved_;
  if (has_moved_) {
    ++num_moves_;
    may_overlap_ = !spans_are_apart();
    has_moved_ = may_overlap_;                   // until `accept_overlap`
    for (const std::size_t index : gathered_) {  // the others are in new_grads_
      Param& param = params_[index];
      const char* const grad = param.known_grad;
      if (grad != nullptr) {
        new_grads_.push_back(
            {&param, {grad, grad + param.numel * reader_.itemsize(param.dtype)}, true});
      }
    }
    for (Param& param : params_) param.known_grad = nullptr;
  }
  const auto is_written = [&](const Span& span) {
    const auto after = std::partition_point(spans_.begin(), spans_.end(),
                                            [&](const Span& s) { return s.begin < span.end; });
    return after != spans_.begin() && std::prev(after)->end > span.begin;
  };
  for (const NewGrad& grad : new_grads_) {
    if (!are_current && is_written(grad.span)) {
      spans_are_apart();  // a parameter that is not stepped may have left this place
      are_current = true;
    }
    if (is_written(grad.span)) {
      may_overlap_ = true;
    } else if (grad.is_dense) {
      grad.param->known_grad = grad.span.begin;
    }
  }
}
