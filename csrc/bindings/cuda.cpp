// The extension module adamod_fused._cuda: addresses and integers in, no torch type, no CUDA
// header.
#include "../engine/cuda.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "coded_states.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, module) {
  module.doc() =
      "The CUDA engine of adamod_fused. Addresses are integers, as data_ptr() gives them.";
  module.attr("chunk_size") = cuda_engine::chunk_size();
  module.attr("cudart_version") = cuda_engine::runtime_version();

  module.def(
      "step",
      [](const std::string& rule, const std::string& dtype, std::uintptr_t rows,
         std::int64_t num_rows, std::uintptr_t scalars, std::int64_t num_scalars,
         std::int64_t num_chunks, int device, std::uintptr_t stream, std::uintptr_t control,
         std::uintptr_t counts, std::uintptr_t groups, std::int64_t num_groups,
         std::uintptr_t coded, const std::string& state_format, const std::string& weight_format,
         std::uintptr_t observed) {
        const cuda_engine::Batch batch{reinterpret_cast<const Row*>(rows),
                                       num_rows,
                                       reinterpret_cast<const void*>(scalars),
                                       num_scalars,
                                       num_chunks,
                                       reinterpret_cast<const Control*>(control),
                                       reinterpret_cast<const Count*>(counts),
                                       reinterpret_cast<const Group*>(groups),
                                       num_groups,
                                       reinterpret_cast<const Coded*>(coded),
                                       state_format,
                                       weight_format,
                                       reinterpret_cast<Observed*>(observed)};
        cuda_engine::step(rule, dtype, batch, device, reinterpret_cast<void*>(stream));
      },
      py::arg("rule"), py::arg("dtype"), py::arg("rows"), py::arg("num_rows"), py::arg("scalars"),
      py::arg("num_scalars"), py::arg("num_chunks"), py::arg("device"), py::arg("stream"),
      py::arg("control") = 0, py::arg("counts") = 0, py::arg("groups") = 0,
      py::arg("num_groups") = 0, py::arg("coded") = 0, py::arg("state_format") = "fp32",
      py::arg("weight_format") = "plain", py::arg("observed") = 0,
      py::call_guard<py::gil_scoped_release>(),
      "Enqueue one step of all rows on a stream of a device: one launch.\n\n"
      "rows and scalars are host addresses of Row and of float32 scalar rows (csrc/engine/row.h\n"
      "and the rule's Scalars); both may change as soon as this returns. num_chunks is the sum of\n"
      "ceil(numel / chunk_size) over the rows. control is the address of a Control on the device,\n"
      "0 for none, read when the step runs.\n\n"
      "With counts, one Count a row, and groups, host addresses too, scalars is not read: a "
      "second\n"
      "launch counts the step and prepares the scalars on the device; Row::scalars is then the\n"
      "row's own index.\n\n"
      "With a state_format (16bit or 8bit) or, of bfloat16, a weight_format (split or "
      "stochastic),\n"
      "coded is the host address of a Coded for each row.\n\n"
      "observed is the address on the device of zeroed slots of Observed "
      "(csrc/engine/observed.h),\n"
      "which one launch more fills from the states that the step left.\n\n"
      "Raises ValueError for a rule, dtype (float32, bfloat16 or float16), format or size that is\n"
      "not served, RuntimeError with CUDA's name and text for an error that CUDA reports.");

  module.def(
      "sum_squares",
      [](const std::string& dtype, std::uintptr_t rows, std::int64_t num_rows,
         std::int64_t num_segments, std::uintptr_t partials, std::uintptr_t out, int device,
         std::uintptr_t stream) {
        const cuda_engine::Grads grads{reinterpret_cast<const GradRow*>(rows), num_rows,
                                       num_segments};
        cuda_engine::sum_squares(dtype, grads, reinterpret_cast<double*>(partials),
                                 reinterpret_cast<double*>(out), device,
                                 reinterpret_cast<void*>(stream));
      },
      py::arg("dtype"), py::arg("rows"), py::arg("num_rows"), py::arg("num_segments"),
      py::arg("partials"), py::arg("out"), py::arg("device"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>(),
      "Enqueue the sum of squares of all rows on a stream of a device: two launches.\n\n"
      "rows is the host address of GradRow, which may change as soon as this returns. partials "
      "and\n"
      "out are addresses on the device: one double a segment as workspace, one for the result.\n"
      "num_segments is the sum of ceil(numel / segment_size) over the rows. Raises as step().");

  module.def(
      "decode",
      [](const std::vector<int>& kinds, int num_bytes, const std::vector<std::uintptr_t>& codes,
         std::uintptr_t exponents, const std::vector<std::uintptr_t>& values, std::int64_t numel,
         int device, std::uintptr_t stream) {
        cuda_engine::decode(coded_states(kinds, num_bytes, codes, exponents, values, numel), device,
                            reinterpret_cast<void*>(stream));
      },
      py::arg("kinds"), py::arg("num_bytes"), py::arg("codes"), py::arg("exponents"),
      py::arg("values"), py::arg("numel"), py::arg("device"), py::arg("stream"),
      py::call_guard<py::gil_scoped_release>(),
      "Enqueue the conversion of a parameter's states from codes to values: one launch.\n\n"
      "kinds numbers the values of each state (csrc/rules/values.h). codes, exponents and values\n"
      "are addresses on the device. The values are float32 for codes of 2 bytes, bfloat16 for\n"
      "codes of 1. Raises as step().");

  module.def(
      "encode",
      [](const std::string& dtype, const std::vector<int>& kinds, int num_bytes,
         const std::vector<std::uintptr_t>& codes, std::uintptr_t exponents,
         const std::vector<std::uintptr_t>& values, std::int64_t numel, int device,
         std::uintptr_t stream) {
        cuda_engine::encode(dtype, coded_states(kinds, num_bytes, codes, exponents, values, numel),
                            device, reinterpret_cast<void*>(stream));
      },
      py::arg("dtype"), py::arg("kinds"), py::arg("num_bytes"), py::arg("codes"),
      py::arg("exponents"), py::arg("values"), py::arg("numel"), py::arg("device"),
      py::arg("stream"), py::call_guard<py::gil_scoped_release>(),
      "Enqueue the conversion of values of dtype, float32 or bfloat16, to codes and exponents,\n"
      "rounded to the nearest: one launch. Otherwise as decode().");

  module.def("architectures", &cuda_engine::architectures,
             "The compute capabilities compiled for, as sm_ numbers.");
  module.def("why_unusable", &cuda_engine::why_unusable, py::arg("device") = 0,
             "Why step() cannot run on this device, or None if it can. Creates no context.");
}
