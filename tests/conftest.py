"""What all tests share: the report on GPUs, the backends and kernels under test."""

from __future__ import annotations

import ctypes
import functools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cuda_batches import Batch
from emulation.build import build_emulated_cuda
from helpers import OPTIONS
from native_codes import NativeCodes
from torch import Tensor

import adamod_fused.optimizer
from adamod_fused import backends
from adamod_fused.backends import extension
from adamod_fused.backends.cpu import CpuBackend
from adamod_fused.backends.cuda import CudaBackend
from adamod_fused.plan import Plan

# For `import bench`; last, so that the package under test may be one installed elsewhere.
sys.path.append(str(Path(__file__).resolve().parents[1]))


def pytest_report_header() -> str:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, GPU: {gpu}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no GPU here: torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """Both that every machine has: the CPU engine and the pure-PyTorch reference."""
    return request.param


@pytest.fixture(params=["fp32", "16bit", "8bit"])
def state_format(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The format of all states, small ones too, of optimizers made with ``OPTIONS``."""
    monkeypatch.setitem(OPTIONS, "state_format", request.param)
    monkeypatch.setitem(OPTIONS, "min_coded_numel", 0)
    return request.param


@pytest.fixture(params=["fast", "slow"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors read through torch's C interface, or through Python methods as where it does not fit.

    It fits in every torch that is supported: where it does not, that is to be seen here.
    """
    fast = request.param == "fast"
    assert extension.core.Table([], 0, fast).fast == fast
    monkeypatch.setattr(adamod_fused.optimizer, "Plan", functools.partial(Plan, fast=fast))


class EmulatedCudaBackend(CudaBackend):
    """The CUDA backend on tensors of the CPU: its engine compiled for the host."""

    def status(self) -> backends.Status:
        return backends.Status(True)

    def refuses(self, device: torch.device, dtype: torch.dtype) -> str | None:
        return super().refuses(torch.device("cuda", 0), dtype)

    def launcher(self, rule, table, index, device, dtype, control=None, observed=None) -> Callable:
        return self.launcher_on(rule, table, index, 0, dtype, control, 0, observed)

    def sum_squares(self, grads, device, dtype) -> Tensor:
        return self.launch_sum_squares(grads, device, dtype, 0, 0)

    def decode(self, kinds, coded, exponents, values) -> None:
        self.launch_decode(kinds, coded, exponents, values, 0, 0)

    def encode(self, kinds, values, coded, exponents) -> None:
        self.launch_encode(kinds, values, coded, exponents, 0, 0)


@pytest.fixture(scope="session")
def built_emulation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension module ``_cuda``, its engine compiled for the host."""
    return build_emulated_cuda(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def emulated_cuda(built_emulation: Path) -> EmulatedCudaBackend:
    from bench.extension import import_extension

    return EmulatedCudaBackend(import_extension(built_emulation))


@pytest.fixture(scope="session")
def emulated(
    built_emulation: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModuleType, ctypes.CDLL]:
    """The module and, as ``runtime``, the stand-in runtime inside it.

    From a copy of the file, and so with a queue and buffers that no other test has used.
    """
    from bench.extension import import_extension

    path = Path(shutil.copy(built_emulation, tmp_path_factory.mktemp("emulated_alone")))
    return import_extension(path), ctypes.CDLL(str(path))


# Every member of csrc/engine/cuda_tuning.h, changed in one of these.
TUNINGS = {
    "small": """t.block_threads = 128; t.chunk_size = 2048; t.groups = 2; t.persistent = true;
        t.streaming_loads = true; t.max_table_bytes = 1792""",
    "large": """t.block_threads = 512; t.chunk_size = 32768; t.groups = 4; t.min_blocks = 1;
        t.group_by_widest = true; t.streaming_stores = true""",
}


@pytest.fixture(scope="session", params=TUNINGS)
def tuned(request, tmp_path_factory):
    """The same, each with other constants in csrc/engine/cuda_tuning.h."""
    tuning = " ".join(TUNINGS[request.param].split())
    from bench.extension import import_extension

    path = build_emulated_cuda(tmp_path_factory.mktemp("tuned_cuda"), tuning=tuning)
    return import_extension(path), ctypes.CDLL(str(path))


@pytest.fixture
def engine(emulated):
    return emulated[0]


@pytest.fixture
def runtime(emulated):
    runtime = emulated[1]
    runtime.emulation_set_lazy(True)
    yield runtime
    runtime.emulation_end_capture()
    runtime.emulation_synchronize()
    runtime.emulation_set_lazy(False)
    Batch.enqueued.clear()
    runtime.emulation_set_machine(13000, 2, 90)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine several would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def little_effort(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """The benchmark with as few steps and as little memory as it can do with."""
    from bench import plan, roofline, run
    from bench.measure import Effort

    monkeypatch.setattr(plan, "EFFORT", {"cpu": Effort(seconds=1e-9, rounds=2)})
    monkeypatch.setattr(roofline, "LARGEST", {"cpu": 1 << 20})
    monkeypatch.setattr(run, "SECONDS_TO_FINISH", 0)


@pytest.fixture
def emulated_as_cuda(
    emulated_cuda: EmulatedCudaBackend, monkeypatch: pytest.MonkeyPatch
) -> EmulatedCudaBackend:
    """The backend of the name "cuda" is the emulated one, for tensors of the CPU."""
    monkeypatch.setitem(backends._BACKENDS, "cuda", emulated_cuda)
    return emulated_cuda


@pytest.fixture
def tuned_as_cuda(tuned, monkeypatch: pytest.MonkeyPatch) -> EmulatedCudaBackend:
    """The same with other constants."""
    monkeypatch.setitem(backends._BACKENDS, "cuda", EmulatedCudaBackend(tuned[0]))
    return backends._BACKENDS["cuda"]


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """torch.compile as in a new process, before the test and after it."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# A kernel is a backend, its device and, on the CPU, the instruction set it is held to.
CPU_KERNELS = [f"cpu-{isa}" for isa in extension.core.cpu_instruction_sets()]
GPU_KERNELS = [pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "triton")]


@pytest.fixture(params=[*CPU_KERNELS, "cuda-emulated", *GPU_KERNELS])
def kernel(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, torch.device]:
    """The name of a backend to ask for and the device to test it on."""
    name, _, variant = request.param.partition("-")
    if name == "cpu":
        backend = CpuBackend()
        backend.instruction_set = variant
        monkeypatch.setitem(backends._BACKENDS, "cpu", backend)
    elif variant == "emulated":
        request.getfixturevalue("emulated_as_cuda")
    device = torch.device("cpu" if variant else "cuda")
    return name, device


@pytest.fixture(scope="session")
def native_codes(tmp_path_factory: pytest.TempPathFactory) -> NativeCodes:
    return NativeCodes(tmp_path_factory.mktemp("codes"))
