// The module adamod_fused._C: the tensor table and the CPU engine. It knows addresses and integers,
// and of torch only what any Python code could ask.
#include <pybind11/gil_safe_call_once.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../engine/cpu.h"
#include "../engine/float_environment.h"
#include "../engine/huge_pages.h"
#include "../rules/all.h"
#include "coded_states.h"
#include "table.h"

namespace {

// The number of scalars, states and hyperparameters of every rule, for a test that holds Python to
// it.
template <class Rule>
void describe_rule(py::dict& rules) {
  rules[Rule::name] =
      py::make_tuple(sizeof(typename Rule::Scalars) / sizeof(float), Rule::num_states,
                     sizeof(typename Rule::Hyperparameters) / sizeof(double));
}

template <typename T>
std::uintptr_t address_of(const std::vector<T>& array) {
  return reinterpret_cast<std::uintptr_t>(array.data());
}

template <typename T>
py::memoryview view_of(std::vector<T>& array) {
  return py::memoryview::from_memory(array.data(),
                                     static_cast<py::ssize_t>(array.size() * sizeof(T)));
}

void cpu_step(const std::string& rule, const std::string& dtype, Table& table, int index,
              float grad_scale, int threads, const std::string& instruction_set,
              std::uintptr_t observed) {
  const Batch& batch = table.batch(index);
  const void* scalars = dtype == "float64" ? static_cast<const void*>(table.scalars64().data())
                                           : table.scalars().data();
  const py::gil_scoped_release release;
  const cpu::Batch given{batch.rows.data(), static_cast<std::int64_t>(batch.rows.size()),
                         batch.coded.data(), scalars, grad_scale};
  cpu::step(rule, dtype, batch.formats, given, threads, instruction_set);
  if (observed == 0) return;
  cpu::observe(rule, dtype, batch.formats, given, threads, instruction_set,
               reinterpret_cast<Observed*>(observed));
}

double cpu_sum_squares(const std::string& dtype, const GradTable& table, int threads,
                       const std::string& instruction_set) {
  const py::gil_scoped_release release;
  return cpu::sum_squares(dtype, table.rows.data(), static_cast<std::int64_t>(table.rows.size()),
                          table.num_segments, threads, instruction_set);
}

// What tells lists of parameters apart that need tables of their own, as a number: parameters of
// other shapes, layouts, dtypes or devices hardly ever have the same one. None where one is no
// strided tensor, or of a subclass other than torch.nn.Parameter.
class Kinds {
 public:
  Kinds()
      : reader_(true),
        parameter_type_(py::module_::import("torch").attr("nn").attr("Parameter")),
        tensor_type_(py::module_::import("torch").attr("Tensor")) {}

  std::optional<std::uint64_t> of(const py::object& params) const {
    const Items items(params);
    std::uint64_t kind = items.size();
    for (std::size_t i = 0; i < items.size(); ++i) {
      PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(items[i]));
      if (type != tensor_type_.ptr() && type != parameter_type_.ptr()) return std::nullopt;
      if (!reader_.is_strided(items[i])) return std::nullopt;
      kind = kind * 0x100000001b3u + reader_.kind_of(items[i]);
    }
    return kind;
  }

 private:
  TensorReader reader_;
  py::object parameter_type_, tensor_type_;
};

std::optional<std::uint64_t> kind_of_params(const py::object& params) {
  PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<Kinds> kinds;
  return kinds.call_once_and_store_result([] { return Kinds(); }).get_stored().of(params);
}

void cpu_decode(const std::vector<int>& kinds, int num_bytes,
                const std::vector<std::uintptr_t>& codes, std::uintptr_t exponents,
                const std::vector<std::uintptr_t>& values, std::int64_t numel, int threads,
                const std::string& instruction_set) {
  const CodedStates states = coded_states(kinds, num_bytes, codes, exponents, values, numel);
  const py::gil_scoped_release release;
  cpu::decode(states, threads, instruction_set);
}

void cpu_encode(const std::string& dtype, const std::vector<int>& kinds, int num_bytes,
                const std::vector<std::uintptr_t>& codes, std::uintptr_t exponents,
                const std::vector<std::uintptr_t>& values, std::int64_t numel, int threads,
                const std::string& instruction_set) {
  const CodedStates states = coded_states(kinds, num_bytes, codes, exponents, values, numel);
  const py::gil_scoped_release release;
  cpu::encode(dtype, states, threads, instruction_set);
}

// Makes Table known to Python's garbage collector. The collector may look at an instance before
// its constructor has run. There is no tp_clear: the optimizer's own dictionary breaks each cycle.
void let_collect(PyHeapTypeObject* heap_type) {
  PyTypeObject& type = heap_type->ht_type;
  type.tp_flags |= Py_TPFLAGS_HAVE_GC;
  type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    auto holder = reinterpret_cast<py::detail::instance*>(self)->get_value_and_holder();
    return holder.holder_constructed() ? holder.value_ptr<Table>()->traverse(visit, arg) : 0;
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::class_<Batch>(m, "Batch")
      .def_property_readonly("rows_address", [](const Batch& b) { return address_of(b.rows); })
      .def_property_readonly("rows", [](Batch& b) { return view_of(b.rows); })
      .def_property_readonly("num_rows", [](const Batch& b) { return b.rows.size(); })
      .def_property_readonly("coded_address", [](const Batch& b) { return address_of(b.coded); })
      .def_property_readonly("coded", [](Batch& b) { return view_of(b.coded); })
      .def_readonly("num_chunks", &Batch::num_chunks)
      .def_readonly("counts_on_device", &Batch::counts_on_device)
      .def_readonly("is_coded", &Batch::is_coded)
      .def_property_readonly("state_format", [](const Batch& b) { return b.formats.state_name(); })
      .def_property_readonly("weight_format",
                             [](const Batch& b) { return b.formats.weight_name(); })
      .def_property_readonly("counts_address", [](const Batch& b) { return address_of(b.counts); })
      .def_property_readonly("counts", [](Batch& b) { return view_of(b.counts); })
      .def_property_readonly("groups_address", [](const Batch& b) { return address_of(b.groups); })
      .def_property_readonly("groups", [](Batch& b) { return view_of(b.groups); })
      .def_property_readonly("num_groups", [](const Batch& b) { return b.groups.size(); });

  py::class_<GradTable>(m, "GradTable")
      .def_property_readonly("rows_address", [](const GradTable& t) { return address_of(t.rows); })
      .def_property_readonly("rows", [](GradTable& t) { return view_of(t.rows); })
      .def_property_readonly("num_rows", [](const GradTable& t) { return t.rows.size(); })
      .def_readonly("num_segments", &GradTable::num_segments);

  py::class_<Table>(m, "Table", py::custom_type_setup(let_collect))
      .def(py::init<const std::vector<std::string>&, std::size_t, bool>(), py::arg("states"),
           py::arg("num_groups"), py::arg("fast"))
      .def("add_batch", &Table::add_batch, py::arg("chunk_size"), py::arg("counts_on_device"),
           py::arg("state_format") = "fp32", py::arg("weight_format") = "plain")
      .def("add_param", &Table::add_param, py::arg("param"), py::arg("group"), py::arg("batch"),
           py::arg("state_dtype"), py::arg("layout"), py::arg("coding") = py::none())
      .def("trust", &Table::trust)
      .def("know_dtensor", &Table::know_dtensor)
      .def("expect_state", &Table::expect_state)
      .def("refresh", &Table::refresh)
      .def("load", &Table::load, py::arg("params"), py::arg("grads"), py::arg("states"),
           py::arg("steps"), py::arg("exponents") = py::tuple(),
           py::arg("remainders") = py::tuple())
      .def_property_readonly("may_overlap", &Table::may_overlap)
      .def_property_readonly("num_moves", &Table::num_moves)
      .def("accept_overlap", &Table::accept_overlap)
      .def("clear", &Table::clear)
      .def("forget", &Table::forget)
      .def("staged", &Table::staged)
      .def("stage", &Table::stage)
      .def("select", &Table::select)
      .def("prepare", &Table::prepare)
      .def("set_groups", &Table::set_groups)
      .def("grad_table", &Table::grad_table)
      .def("fingerprint", &Table::fingerprint)
      .def("has_fingerprint", &Table::has_fingerprint)
      .def("param", &Table::param)
      .def("grad", &Table::grad)
      .def("row_params", &Table::row_params)
      .def("advance", &Table::advance)
      .def("run", &Table::run)
      .def("batch", &Table::batch, py::return_value_policy::reference_internal)
      .def_property_readonly("fast", &Table::fast)
      .def_property_readonly("bumps_versions", &Table::bumps_versions)
      .def_property_readonly("scalars_address", [](Table& t) { return address_of(t.scalars()); })
      .def_property_readonly("scalars", [](Table& t) { return view_of(t.scalars()); })
      .def_property_readonly("num_scalars", &Table::num_scalars);

  m.def("kind_of_params", &kind_of_params);

  m.def("cpu_step", &cpu_step, py::arg("rule"), py::arg("dtype"), py::arg("table"),
        py::arg("index"), py::arg("grad_scale"), py::arg("threads"), py::arg("instruction_set"),
        py::arg("observed") = 0);
  m.def("in_float_environment",
        [](const py::function& call, const py::args& arguments, const py::kwargs& keywords) {
          py::object result;
          in_float_environment([&] { result = call(*arguments, **keywords); });
          return result;
        });
  m.def("cpu_sum_squares", &cpu_sum_squares);
  m.def("cpu_decode", &cpu_decode, py::arg("kinds"), py::arg("num_bytes"), py::arg("codes"),
        py::arg("exponents"), py::arg("values"), py::arg("numel"), py::arg("threads"),
        py::arg("instruction_set"));
  m.def("cpu_encode", &cpu_encode, py::arg("dtype"), py::arg("kinds"), py::arg("num_bytes"),
        py::arg("codes"), py::arg("exponents"), py::arg("values"), py::arg("numel"),
        py::arg("threads"), py::arg("instruction_set"));
  m.def("cpu_instruction_sets", &cpu::instruction_sets);
  m.def("prefer_huge_pages", [](std::uintptr_t address, std::size_t bytes) {
    prefer_huge_pages(reinterpret_cast<void*>(address), bytes);
  });
  m.attr("cpu_chunk_size") = cpu::chunk_size;

  py::dict rules;
#define DESCRIBE(Rule) describe_rule<Rule<float>>(rules);
  FOR_EACH_RULE(DESCRIBE)
#undef DESCRIBE
  m.attr("rules") = rules;
}
