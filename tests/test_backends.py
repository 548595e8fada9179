"""Which backend serves what, what the others say, and that all know the same rules."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from helpers import OPTIONS, Snapshot, random_params, set_random_grads
from torch import nn

from adamod_fused import AdaMod, backends, doctor, extras, reference
from adamod_fused.backends import extension
from adamod_fused.backends.base import Status
from adamod_fused.backends.cuda import CudaBackend
from adamod_fused.backends.triton import TritonBackend

ROOT = Path(__file__).resolve().parents[1]
RULES = {reference.AdaMod.name: reference.AdaMod}

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def step_once(param: torch.Tensor, **options) -> None:
    param.grad = torch.ones_like(param)
    AdaMod([param], lr=0.1, **options).step()


def test_available_names_every_backend() -> None:
    status = backends.available()
    assert set(status) == set(backends.NAMES) == {"reference", "cpu", "cuda", "triton"}
    assert status["reference"].available
    assert status["cpu"].available
    for name, entry in status.items():
        assert entry.available or (entry.reason and entry.remedy), name


def test_none_takes_the_cpu_engine_for_tensors_on_the_cpu() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        assert backends.choose(None, torch.zeros(1, dtype=dtype)).name == "cpu"


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_name_that_does_not_work_here_raises_with_the_remedy(name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"{name}.*does not work here: .+ Remedy: .+"):
        step_once(torch.zeros(2), backend=name)


def test_a_name_that_cannot_serve_the_tensor_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaBackend, "status", lambda self: Status(True))
    with pytest.raises(ValueError, match=r"'cuda' cannot serve a torch\.float32 tensor on cpu"):
        step_once(torch.zeros(2), backend="cuda")


def test_falling_back_to_the_reference_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_warned", set())
    missing = Status(False, "not built", "build it")
    monkeypatch.setattr(extension, "core_status", missing)
    with pytest.warns(UserWarning, match=r"slow pure-PyTorch.*cpu: not built; build it"):
        step_once(torch.zeros(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_once(torch.zeros(3))
        step_once(torch.zeros(2), backend="reference")


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_backend_that_does_not_work_here_or_does_not_serve_the_cpu(name: str) -> None:
    params = random_params((3, 4), (5,), (2, 3))
    set_random_grads(params, 0)
    groups = [{"params": params[:1]}, {"params": params[1:], "backend": name}]
    optimizer = AdaMod(groups, **OPTIONS)
    before = Snapshot(optimizer)
    works = backends.available()[name].available
    error, message = (
        (ValueError, f"'{name}' cannot serve a torch.float32 tensor on cpu.*backend=None")
        if works
        else (RuntimeError, f"'{name}' does not work here: .+ Remedy: .+backend=None")
    )
    with pytest.raises(error, match=message):
        optimizer.step()
    before.assert_unchanged()


def test_cpu_backend_does_not_serve_other_devices() -> None:
    param = nn.Parameter(torch.ones(3, device="meta"))
    param.grad = torch.ones(3, device="meta")
    optimizer = AdaMod([param], **OPTIONS, backend="cpu")
    with pytest.raises(ValueError, match=r"'cpu' cannot serve a torch\.float32 tensor on meta"):
        optimizer.step()
    assert not optimizer.state


def test_cpu_backend_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    status = backends.Status(False, "no compiler had been found", "install one")
    monkeypatch.setattr(extension, "core_status", status)
    params = random_params((3, 4), (5,), (2, 3))
    set_random_grads(params, 0)
    optimizer = AdaMod(params, **OPTIONS, backend="cpu")
    with pytest.raises(RuntimeError, match=r"no compiler had been found\. Remedy: install one"):
        optimizer.step()
    assert not optimizer.state
    monkeypatch.setattr(backends, "_warned", set())
    optimizer.param_groups[0]["backend"] = None
    with pytest.warns(UserWarning, match=r"slow pure-PyTorch reference.*no compiler"):
        optimizer.step()
    assert set(optimizer.state) == set(params)


def test_without_the_compiled_part_the_reference_still_serves() -> None:
    """In a process of its own, where the extension modules cannot be imported."""
    script = """
import sys, warnings
sys.modules["adamod_fused._C"] = sys.modules["adamod_fused._cuda"] = None
warnings.simplefilter("ignore")
import torch
from adamod_fused import AdaMod, backends
assert not any(s.available for n, s in backends.available().items() if n != "reference")
params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2))]
optimizer = AdaMod(params, lr=0.1)
for missing in (0, 1, None):
    for i, p in enumerate(params):
        p.grad = None if i == missing else torch.ones_like(p)
    optimizer.step()
assert [float(optimizer.state[p]["step"]) for p in params] == [2.0, 2.0]
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


@pytest.fixture
def another_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Has the package triton come from a distribution of any name and version, or from none."""

    def install(version: str, distribution: str | None) -> None:
        def version_of(name: str) -> str:
            if name != distribution:
                raise PackageNotFoundError(name)
            return version

        found = {"triton": [distribution]} if distribution else {}
        monkeypatch.setattr(importlib.metadata, "version", version_of)
        monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: found)
        extras.version_of.cache_clear()

    monkeypatch.setattr(extras, "find_spec", lambda _: object())
    monkeypatch.setattr("adamod_fused.backends.triton._interpreted", lambda: True)
    yield install
    extras.version_of.cache_clear()


@pytest.mark.parametrize("distribution", ["triton", "pytorch-triton-rocm", None])
@pytest.mark.parametrize("version", ["3.2.0+git1a2b", "3.5rc1"])
def test_a_triton_from_any_distribution(
    version: str, distribution: str | None, another_triton: Callable[..., None]
) -> None:
    another_triton(version, distribution)
    assert TritonBackend().status() == Status(True)
    assert doctor.versions()["triton"] == (version if distribution else "of unknown version")


def test_a_triton_that_is_too_old(another_triton: Callable[..., None]) -> None:
    another_triton("3.1.0", "pytorch-triton-rocm")
    assert "Triton 3.1.0 is too old" in TritonBackend().status().reason


def test_importing_the_package_does_not_import_triton() -> None:
    script = "import sys, adamod_fused; assert 'triton' not in sys.modules"
    # torch itself may import triton: only what we add counts.
    baseline = "import sys, torch; assert 'triton' not in sys.modules"
    if subprocess.run([sys.executable, "-c", baseline], cwd=ROOT, check=False).returncode:
        pytest.skip("this torch imports triton by itself")
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_a_part_that_was_not_built_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    module, status = extension._load("_not_built", "build it")
    assert module is None
    assert status == Status(False, status.reason, "build it")
    assert "_not_built" in status.reason
    monkeypatch.setattr(extension, "cuda_status", status)
    assert CudaBackend(module=None).status() == status


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_csrc_and_python_agree_on_a_rule(rule) -> None:
    scalars, states, hyperparameters = extension.core.rules[rule.name]
    assert (scalars, states) == (len(rule.Scalars._fields), len(rule.states))
    header = (ROOT / "csrc" / "rules" / f"{rule.name}.h").read_text()

    def members(struct: str, kind: str) -> list[str]:
        body = re.search(rf"struct {struct} \{{(.*?)\n  \}};", header, re.DOTALL)[1]
        declared = re.findall(rf"\b{kind} ([\w, ]+);", re.sub(r"//.*", "", body))
        return [name.strip() for line in declared for name in line.split(",")]

    assert tuple(members("Scalars", "T")) == rule.Scalars._fields
    assert len(members("Hyperparameters", "double")) == hyperparameters


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_triton_reads_a_rules_scalars_in_their_order(rule) -> None:
    source = (ROOT / "triton_kernels" / "rules.py").read_text()
    function = re.search(rf"def {rule.name}\(.*?\n    return", source, re.DOTALL)[0]
    loads = re.findall(r"(\w+) = tl\.load\(\w+ \+ (\d+)\)", function)
    *read, decay, last = rule.Scalars._fields
    assert (decay, last) == ("weight_decay_rate", "step")  # which the engine reads for every rule
    assert loads == [(name, str(i)) for i, name in enumerate(read)]
