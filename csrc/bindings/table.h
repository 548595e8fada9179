// The tensor table behind an optimizer: what every kernel reads, kept between steps, checked at
// every step.
//
// A stale address is memory corruption, and users swap `.data`, replace state tensors, reload and
// move modules, while allocators hand an old address to a tensor of another size. So a step looks
// at every tensor again (address, shape, strides, dtype, device) and takes nothing for granted; a
// tensor that is not as expected makes `refresh` say so before anything is written.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../engine/formats.h"
#include "../engine/row.h"
#include "dtensor_reader.h"
#include "tensor_reader.h"

namespace py = pybind11;

// Batch indices of parameters that no batch holds; adamod_fused/members.py has the same numbers.
constexpr int by_reference = -1;
constexpr int dormant = -2;  // neither gradient nor state so far

// Tensors of one device and dtype: what one kernel launch serves.
struct Batch {
  std::int64_t chunk_size;
  bool counts_on_device;  // and so scalars are prepared there, one row for each tensor
  Formats formats;
  bool is_coded;  // they are not plain
  std::vector<Row> rows;
  std::vector<Coded> coded;  // where they are not, one for each row
  std::int64_t num_chunks = 0;
  std::vector<Count> counts;  // where on the device, one for each row
  std::vector<Group> groups;  // where counts are on the device
  // After Table::select: the parameters of the rows, and what all rows were before.
  std::optional<std::vector<int>> selected;
  std::vector<Row> all_rows;
  std::vector<Coded> all_coded;
  std::vector<Count> all_counts;
};

// Gradients for a pass over them alone.
struct GradTable {
  std::vector<GradRow> rows;
  std::int64_t num_segments = 0;
};

// The items of a list or tuple, or of anything that can be made one.
class Items {
 public:
  explicit Items(const py::object& items)
      : held_(py::reinterpret_steal<py::object>(PySequence_Fast(items.ptr(), "not a sequence"))) {
    if (!held_) throw py::error_already_set();
  }

  std::size_t size() const {
    return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(held_.ptr()));
  }
  PyObject* operator[](std::size_t i) const { return PySequence_Fast_ITEMS(held_.ptr())[i]; }

 private:
  py::object held_;
};

// How a parameter of a coded batch is stored, and what it has beside its states.
struct Coding {
  bool has_exponents, has_remainders;
  std::int64_t first_index;
  std::uint64_t key;
  py::object exponents, remainders;  // this step's, until the launch is done
};

class Table {
 public:
  // `states`: the names of a rule's states. `num_groups`: of the optimizer's param groups, empty
  // ones too. `fast`: see TensorReader.
  Table(const std::vector<std::string>& states, std::size_t num_groups, bool fast);

  // Adds an empty batch and returns its index. Throws std::invalid_argument as Formats::named.
  int add_batch(std::int64_t chunk_size, bool counts_on_device, const std::string& state_format,
                const std::string& weight_format);

  // Adds a parameter of param group `group`, to be served by batch `batch` or by none, and returns
  // its index. `layout`: the strides that states have and that kernels run in, the
  // parameter's own where it is dense. `coding`: of a parameter in a coded batch. Throws
  // py::value_error for a tensor without plain memory.
  int add_param(py::object param, int group, int batch, const py::object& state_dtype,
                const std::vector<std::int64_t>& layout,
                const std::optional<std::tuple<bool, bool, std::int64_t, std::uint64_t>>& coding);

  // Takes gradients of type `type` for plain tensors, as those of torch.Tensor itself are.
  void trust(const py::type& type);

  // Serves DTensors by their local tensors; see DTensorReader.
  void know_dtensor(const py::type& type, const std::vector<std::string>& sharding) {
    dtensors_.know(type, sharding);
  }

  // Takes down the entries of an optimizer's `state`, in the order in which they stand there.
  void expect_state(const py::dict& state);

  // Fills the batches for one step from an optimizer's `param_groups` and `state`. False where
  // anything differs from what was added: then nothing may be launched.
  bool refresh(const py::list& param_groups, const py::dict& state);

  // Whether what `refresh` took down may share memory with something that the step writes: spans
  // of addresses meet, of tensors that lie with gaps maybe without sharing an element.
  bool may_overlap() const { return may_overlap_; }

  // How often `refresh` has found something elsewhere than before.
  std::int64_t num_moves() const { return num_moves_; }

  // No element is shared, says who has looked at strides: until a tensor moves.
  void accept_overlap() { has_moved_ = false; }

  // Fills the batches for one step from lists of tensors that belong to a caller: a parameter, a
  // gradient, states and a step count for each parameter that a batch serves, in order; exponents
  // and remainders for those of them that have any. The parameters need not be those that were
  // added, only like them. False where a tensor is not like its predecessor, where a parameter is
  // given twice, or where an exponent on the CPU is none that a step writes.
  bool load(const py::object& params, const py::object& grads, const py::tuple& states,
            const py::object& steps, const py::object& exponents, const py::object& remainders);

  // Lets go of this step's tensors, but for the parameters; `forget` lets go of these too, and of
  // the expected state: only `load` goes on from there.
  void clear();
  void forget();

  // Parameters that, or whose gradient, must be copied into the layout before a launch (a DTensor's
  // gradient maybe redistributed too), and the addresses of the copies.
  py::list staged() const;
  void stage(int param, std::uintptr_t param_address, std::uintptr_t grad_address);

  // Leaves a batch with the rows of these of its parameters, whichever it had before.
  void select(int batch, const std::vector<int>& params);

  // Prepares the scalars of this step, a row for each distinct (param group, step to be done).
  // `groups`: the rule's hyperparameters of each param group, numbers; None where no tensor of the
  // group has its step count on the host.
  void prepare(const std::string& rule, const py::list& groups);

  // The same for tensors whose step counts are on a device: numbers, or for those that a tensor
  // holds pairs (address, whether it is a float64 and not a float32).
  void set_groups(int batch, const py::list& groups);

  // The gradients of those of the parameters that are stepped, as one table.
  GradTable grad_table(const std::vector<int>& params) const;

  // Weak references to all gradients of this step and how often each was written, where it counts
  // that, and whether those of a later step are the same. (Addresses would not do: allocators use
  // them again.)
  py::list fingerprint() const;
  bool has_fingerprint(const py::list& fingerprint) const;

  // A parameter, and the gradient that its row was filled with.
  py::object param(int param) const;
  py::object grad(int param) const;

  // The parameters of a batch's rows.
  std::vector<int> row_params(int batch) const;

  // After a batch's launch: its step counts on the host plus one, and autograd learns which
  // tensors changed, parameters and states, of DTensors their local tensors too.
  void advance(int batch);

  // Runs launches, pairs of a batch and a function or None, and advances each batch after its
  // launch. If the functions run no Python code, no signal can end this half-way.
  void run(const py::list& launches);

  // For Python's garbage collector: a parameter may lead back to the optimizer that holds us.
  int traverse(visitproc visit, void* arg) const;

  bool fast() const { return reader_.fast(); }
  bool bumps_versions() const { return reader_.bumps_versions(); }
  Batch& batch(int index) { return batches_.at(static_cast<std::size_t>(index)); }
  std::vector<float>& scalars() { return scalars_; }
  std::vector<double>& scalars64() { return scalars64_; }
  std::int64_t num_scalars() const { return static_cast<std::int64_t>(due_.size()); }

 private:
  // The tensors of one parameter's row beside itself: grad, then as in entry_names_.
  static constexpr std::size_t max_entries = 2 + max_states;
  using Held = std::array<py::object, max_entries>;

  // Where the tensors are that a step of one parameter writes.
  struct Addresses {
    const void *param, *step, *states[max_states], *exponents, *remainders;

    bool operator==(const Addresses& other) const {
      return std::memcmp(this, &other, sizeof(Addresses)) == 0;
    }
  };

  struct Span {
    const char *begin, *end;
  };

  struct Param {
    py::object object;
    bool inherits_grad;  // `grad` is torch.Tensor's own attribute
    int group, batch;
    std::int32_t dtype, state_dtype, device_type, device_index;
    std::int32_t coding = -1;  // where in codings_: few have one, and a step reads all of this
    std::int64_t numel, num_chunks, dim;
    std::int64_t span_bytes;           // from its first element to behind its last
    std::size_t sizes;                 // where in sizes_ its shape, strides and layout stand
    Addresses written{};               // when it was last stepped
    const char* known_grad = nullptr;  // a gradient without gaps that shares nothing, or null
    // This step's:
    py::object state;       // its entry in the optimizer's state, until `held` is full
    Held held;              // grad, step and states, until the launch is done
    bool is_due = false;    // its row is complete
    float* step = nullptr;  // null: on a device
    std::size_t row = 0;
    bool is_staged = false;
  };

  struct NewGrad {
    Param* param;
    Span span;
    bool is_dense;
  };

  const std::int64_t* shape(const Param& param) const { return sizes_.data() + param.sizes; }
  const std::int64_t* strides(const Param& param) const { return shape(param) + param.dim; }
  const std::int64_t* layout(const Param& param) const { return strides(param) + param.dim; }

  bool take_down(const py::list& param_groups, const py::dict& state);
  py::object grad_of(const Param& param) const;
  py::object version_of(const py::object& grad) const;
  bool gather_entries(Param& param);
  bool gather_coded(const Param& param, Coding& coding) const;
  bool gather_lists(const std::vector<Items>& lists, const Items& exponents,
                    const Items& remainders);
  bool all_strided() const;
  bool fill_gathered();
  bool exponents_are_sound() const;
  bool are_distinct() const;
  void prefetch_objects(std::size_t turn) const;
  void prefetch(const Param& param) const;
  bool is_trusted(PyObject* tensor) const;
  bool fill(Param& param);
  bool fill_coded(const Param& param, Coded& coded);
  void release(Param& param);
  bool note_addresses(Param& param, const Row& row, const float* step, const Coded* coded);
  bool note_grad(Param& param, PyObject* grad, const TensorView& view, bool is_dense);
  bool storages_hold(const Param& param) const;
  std::int64_t exponents_bytes(const Param& param) const;
  std::int64_t remainders_bytes(const Param& param) const;
  void add_spans(const Param& param, const Addresses& at);
  Addresses read_addresses(const Param& param);
  bool spans_are_apart();
  void look_for_overlap();
  std::int64_t scalars_row(int group, std::int64_t step);

  TensorReader reader_;
  DTensorReader dtensors_;
  std::vector<py::type> trusted_types_;
  std::vector<py::object> entry_names_;  // step, then the states; interned
  py::object params_key_, grad_key_, version_key_;
  py::object exponents_key_, remainders_key_;
  py::object grad_descriptor_, increment_version_;
  std::int32_t step_dtype_, exponents_dtype_, remainders_dtype_;
  std::vector<Param> params_;
  std::vector<Coding> codings_;
  std::vector<std::int64_t> sizes_;  // of all, in one place: a step reads them all
  std::vector<std::size_t> group_sizes_;
  std::vector<std::pair<py::object, int>> expected_state_;  // key, index of the parameter or -1
  std::vector<std::size_t> gathered_;                       // indices of this step's parameters
  std::vector<Batch> batches_;
  std::vector<NewGrad> new_grads_;  // of this step, whose addresses are not known
  std::vector<Span> spans_;         // all that steps write, merged and in order
  bool has_moved_ = false;          // something in spans_ is elsewhere now
  bool may_overlap_ = false;
  std::int64_t num_moves_ = 0;
  std::vector<std::pair<int, std::int64_t>> due_;
  std::map<std::pair<int, std::int64_t>, std::int64_t> scalars_rows_;  // index into due_
  std::vector<float> scalars_;
  std::vector<double> scalars64_;
};
