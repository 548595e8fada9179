"""The benchmark's contestants: made alike, none imported unasked, none dropped without a reason."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adamod_fused import AdaMod
from adamod_fused.backends.base import Status
from adamod_fused.backends.cuda import CudaBackend
from bench import contestants as bench
from bench.contestants import BASELINE, HYPERPARAMETERS, NAMES, SLOW_START, Contestant

ROOT = Path(__file__).resolve().parents[1]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

QUICK = [name for name in NAMES if name not in SLOW_START]


def found(name: str) -> Contestant:
    return next(contestant for contestant in bench._ALL if contestant.name == name)


@pytest.fixture(scope="module")
def here() -> dict[str, Contestant]:
    """Those that can run on this machine's CPU and start quickly."""
    present, _ = bench.contestants(CPU, QUICK)
    return {contestant.name: contestant for contestant in present}


def trained(
    contestant: Contestant, dtype: torch.dtype, device: torch.device = CPU, scale: float = 1.0
) -> torch.Tensor:
    """A parameter three steps from 0; it is too small for states of 8 bits."""
    generator = torch.Generator().manual_seed(3)
    param = torch.nn.Parameter(torch.zeros(1000, device=device, dtype=dtype))
    optimizer = contestant.make([param])
    for _ in range(3):
        param.grad = (torch.randn(1000, generator=generator) * scale).to(device, dtype)
        optimizer.step()
    return param.detach()


def test_every_peer_of_the_issue_is_here() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert BASELINE in NAMES
    formats = ("", " 16bit", " 8bit", " split 8bit", " stochastic 8bit")
    for name in (
        *(f"adamod_fused {b}{f}" for b in ("cpu", "cuda", "triton") for f in formats),
        *(
            f"torch {o} {kind}"
            for o in ("Adam", "AdamW")
            for kind in ("fused", "foreach", "for-loop")
        ),
        *("pytorch_optimizer AdaMod", "torch_optimizer AdaMod", "optimi Adam"),
        *("bitsandbytes Adam", "bitsandbytes Adam8bit", "torchao AdamW8bit", "flashoptim AdamW"),
        *("apex FusedAdam", "deepspeed CPUAdam"),
    ):
        assert name in NAMES
    assert {c.name for c in bench._ALL if c.ours} == {n for n in NAMES if n.startswith("adamod")}


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_each_is_present_or_absent_with_a_reason(device) -> None:
    present, absent = bench.contestants(device, QUICK)
    assert sorted([*(c.name for c in present), *absent]) == sorted(QUICK)
    for reason in absent.values():
        assert len(reason) > 20
        assert "\n" not in reason


def test_ours_and_torch_are_present_on_a_cpu(here) -> None:
    expected = [n for n in NAMES if n.startswith("torch Adam")]
    assert {"adamod_fused cpu", *expected} <= here.keys()


def test_only_those_asked_for_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(bench, "_why_absent", lambda c, device: asked.append(c.name))
    bench.contestants(CPU, ["torch Adam fused", "optimi Adam"])
    assert asked == ["torch Adam fused", "optimi Adam"]


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    modules = {(c.module or c.package) for c in bench._ALL} - {"torch", "adamod_fused"}
    script = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "import torch; before = set(sys.modules)\n"  # torch itself may import some
        "import bench.contestants, bench.gate, bench.lists\n"
        f"print(*(({modules!r} | {{'triton'}}) & (set(sys.modules) - before)))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


# Absence, and its reasons.


@pytest.mark.parametrize(
    "name", [n for n in QUICK if found(n).package not in ("torch", "adamod_fused")]
)
def test_a_package_that_is_missing_is_named_with_the_remedy(name, monkeypatch) -> None:
    monkeypatch.setattr(bench, "installed", lambda module: False)
    device = CPU if found(name).refuses(CPU, torch.float32) is None else GPU
    present, absent = bench.contestants(device, [name])
    assert present == []
    remedy = "github.com/NVIDIA/apex" if "apex" in name else f"pip install {found(name).package}"
    assert absent[name].startswith("not installed: ")
    assert remedy in absent[name]


@pytest.fixture
def made_up_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The source of torch_optimizer for one test; no other test meets it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch_optimizer", raising=False)
    yield tmp_path / "torch_optimizer.py"
    sys.modules.pop("torch_optimizer", None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "AttributeError: module 'torch_optimizer' has no attribute 'AdaMod'"),
        ("def AdaMod(params, **options):\n raise TypeError('two\\nlines')", "TypeError: two lines"),
    ],
)
def test_a_peer_that_fails_is_named_with_its_error(source, reason, made_up_package) -> None:
    made_up_package.write_text(source)
    _, absent = bench.contestants(CPU, ["torch_optimizer AdaMod"])
    assert absent == {"torch_optimizer AdaMod": f"does not work here: {reason}"}


def test_a_peer_that_fails_at_its_first_step_is_named(monkeypatch) -> None:
    def step(self, closure=None):
        raise RuntimeError("made for another torch")

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    _, absent = bench.contestants(CPU, [BASELINE])
    assert absent == {BASELINE: "does not work here: RuntimeError: made for another torch"}


def test_a_backend_that_does_not_work_is_named_with_the_remedy(monkeypatch) -> None:
    status = Status(False, "nvcc had not been found", "install it")
    monkeypatch.setattr(CudaBackend, "status", lambda self: status)
    _, absent = bench.contestants(GPU, ["adamod_fused cuda"])
    assert absent == {"adamod_fused cuda": "nvcc had not been found; install it"}


def test_what_serves_the_other_device_is_absent_for_that_reason() -> None:
    gpu_only = ["adamod_fused cuda", "adamod_fused triton", "flashoptim AdamW", "apex FusedAdam"]
    _, absent = bench.contestants(CPU, gpu_only)
    assert absent == dict.fromkeys(gpu_only, "it steps tensors on cuda, not on cpu")
    cpu_only = ["adamod_fused cpu", "deepspeed CPUAdam"]
    _, absent = bench.contestants(GPU, cpu_only)
    assert absent == dict.fromkeys(cpu_only, "it steps tensors on cpu, not on cuda")


def test_peers_are_tried_in_silence(capfd, made_up_package) -> None:
    source = (
        "import logging, warnings, torch\n"
        "logging.getLogger('peer').error('no CUDA'); warnings.warn('no CUDA')\n"
        "AdaMod = lambda params, beta3, **options: torch.optim.Adam(params, **options)\n"
    )
    made_up_package.write_text(source)
    present, _ = bench.contestants(CPU, ["torch_optimizer AdaMod"])
    assert [contestant.name for contestant in present] == ["torch_optimizer AdaMod"]
    assert capfd.readouterr() == ("", "")


# The same hyperparameters everywhere.


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """What optimizers are called with: none is imported or made."""
    made: list[dict[str, object]] = []

    def fake(module: str) -> types.SimpleNamespace:
        names = ("Adam", "AdamW", "AdaMod", "Adam8bit", "AdamW8bit", "FlashAdamW", "FusedAdam")
        optimizers = (*names, "DeepSpeedCPUAdam")
        call = lambda params, **options: made.append(options)  # noqa: E731 - a line is enough
        return types.SimpleNamespace(**dict.fromkeys(optimizers, call))

    monkeypatch.setattr(bench, "import_module", fake)
    return made


@pytest.mark.parametrize("contestant", [c for c in bench._ALL if not c.ours], ids=lambda c: c.name)
def test_peers_get_the_same_hyperparameters(contestant, calls) -> None:
    contestant.make([torch.nn.Parameter(torch.zeros(1))])
    (options,) = calls
    betas = options.pop("betas")
    assert betas[:2] == HYPERPARAMETERS["betas"]
    assert {name: options[name] for name in ("lr", "eps", "weight_decay")} == {
        name: value for name, value in HYPERPARAMETERS.items() if name != "betas"
    }
    if "AdaMod" in contestant.name:
        assert (*betas[2:], options.get("beta3"))[0] == 0.999


@pytest.mark.parametrize(
    ("name", "state_format", "weight_format"),
    [
        ("adamod_fused cpu", "fp32", "plain"),
        ("adamod_fused cuda 16bit", "16bit", "plain"),
        ("adamod_fused triton split 8bit", "8bit", "split"),
        ("adamod_fused cpu stochastic 8bit", "8bit", "stochastic"),
    ],
)
def test_names_of_ours_say_their_formats(name, state_format, weight_format) -> None:
    contestant = bench.named(name)
    assert contestant.formats == (state_format, weight_format)
    params = [torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))]
    (group,) = contestant.make(params).param_groups
    formats = {"state_format": state_format, "weight_format": weight_format}
    assert HYPERPARAMETERS.items() | {"beta3": 0.999}.items() <= group.items()
    assert formats.items() <= group.items()
    assert group["min_coded_numel"] == 4096  # as a user has it
    (group,) = contestant.twin.make(params).param_groups
    assert formats.items() <= group.items()
    assert group["min_coded_numel"] == (4096 if state_format == "fp32" else 0)


def test_ours_in_split_weights_are_tried_in_the_dtype_that_they_serve() -> None:
    names = ["adamod_fused cpu split 8bit", "adamod_fused cpu stochastic 8bit"]
    present, absent = bench.contestants(CPU, names)
    assert ([c.name for c in present], absent) == (names, {})
    for contestant in present:
        assert contestant.refuses(CPU, torch.bfloat16) is None
        reason = contestant.refuses(CPU, torch.float32)
        assert reason.endswith("is torch.float32")  # and no remedy that is none here


def test_ours_have_the_same_hyperparameters() -> None:
    for name in ("cpu", "cuda", "triton"):
        (group,) = bench.ours(name).make([torch.nn.Parameter(torch.zeros(1))]).param_groups
        assert HYPERPARAMETERS.items() <= group.items()
        assert (group["beta3"], group["backend"]) == (0.999, name)


def test_flashoptim_takes_its_error_correction_where_it_allows_it(calls) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        bench.make_flashoptim([torch.nn.Parameter(torch.zeros(1, dtype=dtype))])
    full, half = calls
    assert full.pop("master_weight_bits") is None
    assert full == half


def test_adams_step_alike_and_adamods_as_the_released_form(here) -> None:
    expected = trained(here[BASELINE], torch.float32)
    released = Contestant(
        "released", "adamod_fused", lambda p: AdaMod(p, variant="released"), lambda *_: None
    )
    for name, contestant in here.items():
        if not contestant.ours:
            wanted = trained(released, torch.float32) if "AdaMod" in name else expected
            torch.testing.assert_close(
                trained(contestant, torch.float32), wanted, atol=1e-6, rtol=0, msg=name
            )


# What each serves.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_refused_is_stepped_and_stays_finite(dtype, here) -> None:
    for name, contestant in here.items():
        if contestant.refuses(CPU, dtype) is None:
            end = trained(contestant, dtype)
            assert end.isfinite().all(), name
            assert end.any(), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_not_refused_is_stepped_and_stays_finite_on_a_gpu(dtype) -> None:
    present, absent = bench.contestants(GPU, QUICK)
    assert {"adamod_fused cuda", BASELINE} <= {c.name for c in present}, absent
    for contestant in present:
        if contestant.refuses(GPU, dtype) is None:
            end = trained(contestant, dtype, GPU)
            assert end.isfinite().all(), contestant.name
            assert end.any(), contestant.name


def test_float16_is_refused_only_where_it_fails(here) -> None:
    peers = {name: contestant for name, contestant in here.items() if not contestant.ours}
    refused = {n: c for n, c in peers.items() if c.refuses(CPU, torch.float16) is not None}
    assert {"torch Adam foreach", "torch AdamW for-loop"} <= refused.keys()
    for name, contestant in refused.items():
        assert "inf and NaN" in contestant.refuses(CPU, torch.float16)
        assert not trained(contestant, torch.float16, scale=1e-2).isfinite().all(), name


@pytest.mark.parametrize("contestant", [c for c in bench._ALL if not c.ours], ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_peer_serves_float32_and_bfloat16_somewhere(contestant, dtype) -> None:
    assert None in [contestant.refuses(device, dtype) for device in (CPU, GPU)]


def test_ours_refuses_what_its_backend_does() -> None:
    cpu = found("adamod_fused cpu")
    assert [cpu.refuses(CPU, dtype) for dtype in DTYPES] == [None] * len(DTYPES)
    assert "does not serve torch.int32" in cpu.refuses(CPU, torch.int32)
