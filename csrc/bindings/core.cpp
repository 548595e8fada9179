// The module adamod_fused._C: the tensor table and the CPU engine. It knows addresses and integers,
// and of torch only what any Python code could ask.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../engine/cpu.h"
#include "../engine/huge_pages.h"
#include "../rules/all.h"
#include "table.h"

namespace {

// The number of scalars and of states of every rule, for a test that holds Python to it.
template <class Rule>
void describe_rule(py::dict& rules) {
  rules[Rule::name] =
      py::make_tuple(sizeof(typename Rule::Scalars) / sizeof(float), Rule::num_states);
}

void cpu_step(const std::string& rule, const std::string& dtype, Table& table, int index,
              int threads, const std::string& instruction_set) {
  const Batch& batch = table.batch(index);
  const void* scalars = dtype == "float64" ? static_cast<const void*>(table.scalars64().data())
                                           : table.scalars().data();
  const py::gil_scoped_release release;
  cpu::step(rule, dtype, batch.rows.data(), static_cast<std::int64_t>(batch.rows.size()), scalars,
            threads, instruction_set);
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
      .def_property_readonly(
          "rows_address",
          [](const Batch& b) { return reinterpret_cast<std::uintptr_t>(b.rows.data()); })
      .def_property_readonly("rows",
                             [](Batch& b) {
                               const auto size = b.rows.size() * sizeof(Row);
                               return py::memoryview::from_memory(b.rows.data(),
                                                                  static_cast<py::ssize_t>(size));
                             })
      .def_property_readonly("num_rows", [](const Batch& b) { return b.rows.size(); })
      .def_readonly("num_chunks", &Batch::num_chunks);

  py::class_<Table>(m, "Table", py::custom_type_setup(let_collect))
      .def(py::init<const std::vector<std::string>&, std::size_t, bool>(), py::arg("states"),
           py::arg("num_groups"), py::arg("fast"))
      .def("add_batch", &Table::add_batch)
      .def("add_param", &Table::add_param)
      .def("trust", &Table::trust)
      .def("know_dtensor", &Table::know_dtensor)
      .def("expect_state", &Table::expect_state)
      .def("refresh", &Table::refresh)
      .def("put", &Table::put)
      .def("clear", &Table::clear)
      .def("staged", &Table::staged)
      .def("stage", &Table::stage)
      .def("due", &Table::due)
      .def("set_scalars", &Table::set_scalars)
      .def("grad", &Table::grad)
      .def("advance", &Table::advance)
      .def("batch", &Table::batch, py::return_value_policy::reference_internal)
      .def_property_readonly("fast", &Table::fast)
      .def_property_readonly(
          "scalars_address",
          [](Table& t) { return reinterpret_cast<std::uintptr_t>(t.scalars().data()); })
      .def_property_readonly("scalars",
                             [](Table& t) {
                               const auto size = t.scalars().size() * sizeof(float);
                               return py::memoryview::from_memory(t.scalars().data(),
                                                                  static_cast<py::ssize_t>(size));
                             })
      .def_property_readonly("num_scalars", &Table::num_scalars);

  m.def("cpu_step", &cpu_step);
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
