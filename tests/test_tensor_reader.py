"""The experiment that finds torch's C interface: in any torch, and whoever comes first."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

STEP = """
import threading, time, torch
from adamod_fused import AdaMod
from adamod_fused.backends import extension

def step(_=None):
    param = torch.nn.Parameter(torch.arange(5.0))
    param.grad = torch.ones(5)
    AdaMod([param], backend="cpu", lr=0.5).step()
    return param.detach()
"""

WITHOUT = """
del torch._C._aoti.{name}
moved = step()
print(extension.core.Table([], 0, True).fast, bool((moved != torch.arange(5.0)).all()))
"""

# Whoever looks first hands the GIL on while it does.
TOGETHER = """
empty = torch.empty
def slow(*args, **kwargs):
    time.sleep(0.2)
    return empty(*args, **kwargs)
torch.empty = slow
threads = [threading.Thread(target=step, args=(i,), daemon=True) for i in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(30)
print(any(thread.is_alive() for thread in threads))
"""

IN_MODES = """
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

class Nothing(TorchFunctionMode):
    def __torch_function__(self, *_):
        return None

torch.set_default_dtype(torch.float16)
torch.set_default_device("meta")
with torch.inference_mode(), FakeTensorMode(), Nothing():
    print(extension.core.Table([], 0, True).fast)
"""


# One of torch's C++ functions throws: it does not write to an inference tensor outside that mode.
THROWING = """
empty = torch.empty

class Odd(torch.Tensor):
    _version = 0

    def requires_grad_(self, _=True):
        return self

def make(*args, **kwargs):
    with torch.inference_mode():
        return empty(*args, **kwargs).as_subclass(Odd)

torch.empty = make
print(extension.core.Table([], 0, True).fast)
"""

WITHOUT_THREADS = """
import resource
limits = resource.getrlimit(resource.RLIMIT_AS)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size, limits[1]))
table = extension.core.Table([], 0, True)
resource.setrlimit(resource.RLIMIT_AS, limits)
print(table.fast)
"""


def output_of(script: str) -> str:
    command = [sys.executable, "-c", STEP + script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "name", ["unsafe_alloc_void_ptrs_from_tensors", "alloc_tensors_by_stealing_from_void_ptrs"]
)
def test_a_torch_without_the_interface_is_read_through_methods(name: str) -> None:
    assert hasattr(torch._C._aoti, name)
    assert output_of(WITHOUT.format(name=name)) == "False True"


def test_the_experiment_is_outside_of_all_modes_of_the_first_step() -> None:
    assert output_of(IN_MODES) == "True"


def test_two_threads_may_take_their_first_step_at_once() -> None:
    assert output_of(TOGETHER) == "False"


def test_an_experiment_in_which_torch_throws_finds_nothing() -> None:
    assert output_of(THROWING) == "False"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_a_system_that_starts_no_thread_is_read_through_methods() -> None:
    assert output_of(WITHOUT_THREADS) == "False"
