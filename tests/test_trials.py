"""The trials without a GPU: what they declare, that they build, and a run of emulated ones."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from emulation.build import build_emulated_cuda

from adamod_fused.backends import Status
from adamod_fused.backends.cpu import CpuBackend
from adamod_fused.backends.triton import TritonBackend
from adamod_fused.console import PlainConsole
from bench import gate, machine_code
from bench.clocks import CpuClock
from bench.contestants import BASELINE, contestants
from bench.extension import import_extension
from bench.lists import ParamList
from bench.measure import Comparison, Effort
from bench.run import OutOfTime
from bench.trials import __main__ as command
from bench.trials import build
from bench.trials import run as trials_run
from bench.trials.declared import CUDA, DEFAULT, TRITON, UNCHANGED, Trial
from bench.trials.run import Job, TrialsRun
from bench.trials.variants import contestant

TUNING = (machine_code.ENGINE / "cuda_tuning.h").read_text()
MEMBERS = {
    name: json.loads(value)
    for name, value in re.findall(r"^  \w+ (\w+) = (\w+);", TUNING, re.MULTILINE)
}
JOBS = (
    Job(ParamList("small", ((64,),) * 20, "made up"), torch.float32),
    Job(ParamList("large", ((100_000,),), "made up"), torch.bfloat16),
)


@pytest.mark.parametrize("trials", [CUDA, TRITON], ids=["cuda", "triton"])
def test_declarations(trials: tuple[Trial, ...]) -> None:
    names = [trial.name for trial in trials]
    assert len({*names, DEFAULT}) == len(names) + 1
    assert all(trial.prediction.endswith(".") for trial in trials)


def test_cuda_trials_change_what_there_is() -> None:
    assert {name for trial in CUDA for name in trial.changes} == MEMBERS.keys()
    for trial in CUDA:
        for name, to in trial.changes.items():
            assert type(to) is type(MEMBERS[name])
            assert to != MEMBERS[name], f"{trial.name} leaves {name} as it is"


def test_triton_trials_change_what_there_is() -> None:
    pytest.importorskip("triton", reason="the Triton backend needs triton")
    from adamod_fused.triton_kernels import coded, engine

    from bench.trials.variants import TunedTriton

    for trial in TRITON:
        for name, to in trial.changes.items():
            assert to != getattr(engine, name), f"{trial.name} leaves {name} as it is"
    names = {engine: ("CHUNK_SIZE", "BLOCK_SIZE", "OPTIONS"), coded: ("CHUNK_SIZE", "OPTIONS")}
    before = {(module, name): getattr(module, name) for module in names for name in names[module]}
    tuned = TunedTriton(Trial("all", {"CHUNK_SIZE": 64, "BLOCK_SIZE": 32, "NUM_WARPS": 1}, ""))
    assert tuned.chunk_size == 64
    assert TritonBackend().chunk_size == engine.CHUNK_SIZE
    wanted = {"CHUNK_SIZE": 64, "BLOCK_SIZE": 32}
    with tuned._changed():
        for (module, name), old in before.items():
            to = old | {"num_warps": 1} if name == "OPTIONS" else wanted[name]
            assert getattr(module, name) == to
        assert coded.block_size(torch.float32, "8bit") == 32 * 16  # 16 bytes a thread still
    assert {(module, name): getattr(module, name) for module, name in before} == before


@pytest.mark.build
def test_builds(tmp_path: Path) -> None:
    """The default, all changes at once, and one that the compiler refuses."""
    trials = (UNCHANGED, CUDA[-1], Trial("wrong", {"no_such_member": 1}, ""))
    try:
        built = build.build(trials, "90", tmp_path, jobs=2)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert "no_such_member" in str(built.pop("wrong"))
    default, tuned = built.values()
    assert (default.module.chunk_size, tuned.module.chunk_size) == (8192, 4096)
    assert default.module.architectures() == tuned.module.architectures() == [90]
    assert len(default.registers) == len(tuned.registers) == 6
    assert default.registers != tuned.registers


@pytest.fixture(scope="module")
def tuned_module(tmp_path_factory):
    """The engine for the host with what `small and wide` changes."""
    trial = CUDA[-1]
    path = build_emulated_cuda(tmp_path_factory.mktemp("trial"), tuning=build.tuning(trial))
    return import_extension(path)


def start(path: Path, seconds: float = 60) -> TrialsRun:
    clock = CpuClock()
    (baseline,), _ = contestants(clock.device, [BASELINE])
    return TrialsRun(clock, baseline, PlainConsole(), seconds, JOBS, path)


def test_a_run(emulated_cuda, tuned_module, tmp_path, monkeypatch, capsys) -> None:
    """The default, one that is as good, and one whose bits are wrong."""
    emulated = type(emulated_cuda)

    class Wrong(emulated):
        def launcher(self, *arguments):
            launch = super().launcher(*arguments)
            return lambda: (launch(), launch())

    monkeypatch.setattr("bench.trials.run.EFFORT", Effort(seconds=0.1, rounds=2))
    monkeypatch.setattr("bench.trials.run.GATE_SHAPES", (((1,), (9_000,)), ((3,),) * 600))
    run = start(tmp_path / "record.json")
    candidates = [
        (UNCHANGED, emulated_cuda),
        (CUDA[-1], emulated(tuned_module)),
        (Trial("wrong", {"groups": 2}, "It fails."), Wrong(emulated_cuda._module)),
    ]
    run.measure([(run.take("cuda", trial), backend) for trial, backend in candidates])
    run.findings.save(None)
    run.findings.print(PlainConsole(), [str(job) for job in JOBS])

    assert run.red
    record = json.loads((tmp_path / "record.json").read_text())
    default, good, wrong = record["variants"]
    jobs = {str(job) for job in JOBS}
    assert default["timings"].keys() == good["timings"].keys() == jobs
    assert {timing["over_default"] for timing in default["timings"].values()} == {1.0}
    assert all(timing["over_default"] > 0 for timing in good["timings"].values())
    assert (good["changes"], good["prediction"]) == (CUDA[-1].changes, CUDA[-1].prediction)
    assert wrong["timings"] == {}
    assert wrong["left_out"].startswith("red gate, bfloat16: ")
    assert record["stopped"] is None
    assert record["copy_GB_per_s"]["median"] > 0
    printed = capsys.readouterr().out
    assert "cuda, wrong: red gate, bfloat16: " in printed
    assert re.search(r"^cuda +small and wide +\d+\.\d+ +\d+\.\d+$", printed, re.MULTILINE)


@pytest.fixture
def command_on_the_cpu(emulated_cuda, tuned_module, monkeypatch):
    """The command with emulated engines for those it would build, and without Triton."""
    modules = {DEFAULT: emulated_cuda._module, CUDA[-1].name: tuned_module}
    built = {
        trial.name: build.Built(modules[trial.name], {"Float32 by Value": 57})
        if trial.name in modules
        else "the compiler's words"
        for trial in (UNCHANGED, *CUDA)
    }
    clock = CpuClock()
    (baseline,), _ = contestants(clock.device, [BASELINE])
    # The command's torch alone sees a GPU: the optimizers would ask torch's own for its stream.
    gpu = SimpleNamespace(
        is_available=lambda: True, current_device=lambda: 0, get_device_capability=lambda _: (9, 0)
    )
    monkeypatch.setattr(command, "torch", SimpleNamespace(cuda=gpu, device=torch.device))
    monkeypatch.setattr(command, "TrialClock", lambda device: clock)
    monkeypatch.setattr(command, "contestants", lambda *_: ([baseline], {}))
    monkeypatch.setattr(command, "CudaBackend", type(emulated_cuda))
    monkeypatch.setattr(command, "JOBS", JOBS)
    monkeypatch.setattr(build, "build", lambda trials, arch, folder: built)
    monkeypatch.setattr(TritonBackend, "status", lambda _: Status(False, "no Triton", "get it"))
    monkeypatch.setattr("bench.trials.run.EFFORT", Effort(seconds=0.1, rounds=2))
    monkeypatch.setattr("bench.trials.run.GATE_SHAPES", (((9_000,),),))


def test_the_command(command_on_the_cpu, tmp_path, capsys) -> None:
    assert command.main(["--out", str(tmp_path), "--commit", "abc"]) == 1
    record = json.loads((tmp_path / "trials-cuda.json").read_text())
    assert record["stopped"] is None
    assert record["commit"] == "abc"
    variants = {(variant["backend"], variant["name"]): variant for variant in record["variants"]}
    assert len(variants) == 2 + len(CUDA) + len(TRITON)
    assert variants["cuda", DEFAULT]["registers"] == {"Float32 by Value": 57}
    timed = {key for key, variant in variants.items() if variant["timings"]}
    assert timed == {("cuda", DEFAULT), ("cuda", CUDA[-1].name)}
    assert variants["cuda", CUDA[0].name]["left_out"] == "not built: the compiler's words"
    assert variants["triton", DEFAULT]["left_out"] == "no Triton; get it"
    assert "all trials ended" in capsys.readouterr().out


def test_the_command_stops_in_time(command_on_the_cpu, tmp_path, capsys) -> None:
    command.main(["--out", str(tmp_path), "--minutes", "0.001"])
    record = json.loads((tmp_path / "trials-cuda.json").read_text())
    assert record["stopped"] == "--minutes 0.001 were over"


@pytest.mark.parametrize("last", [1, 2, 3])
def test_a_run_that_is_killed_loses_no_more_than_a_round(
    last, emulated_cuda, tmp_path, monkeypatch
) -> None:
    rounds = itertools.count(1)
    round_ = Comparison.round

    def killed_after_last(self) -> None:
        if next(rounds) > last:
            raise SystemExit  # as far as the record goes, a SIGKILL
        round_(self)

    monkeypatch.setattr(Comparison, "round", killed_after_last)
    monkeypatch.setattr("bench.trials.run.EFFORT", Effort(seconds=1e-9, rounds=2))
    monkeypatch.setattr("bench.trials.run.GATE_SHAPES", (((9_000,),),))
    run = start(tmp_path / "record.json")
    with pytest.raises(SystemExit):
        run.measure([(run.take("cuda", UNCHANGED), emulated_cuda)])
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["stopped"] == "it was killed, or is still running"
    (variant,) = record["variants"]
    steps = [timing["step_ms"]["n"] for timing in variant["timings"].values()]
    assert steps == [[1], [2], [2, 1]][last - 1]


def test_a_run_stops_in_time(emulated_cuda, tmp_path) -> None:
    run = start(tmp_path / "record.json", seconds=0)
    with pytest.raises(OutOfTime):
        run.measure([(run.take("cuda", UNCHANGED), emulated_cuda)])


def test_jobs_are_in_fewer_bytes_too() -> None:
    names = [str(job) for job in trials_run.JOBS]
    assert len({*names}) == len(names)
    assert {"single-1g float32 8bit", "gpt2-124m bfloat16 split 8bit"} < {*names}


@pytest.mark.parametrize(("dtype", "formats"), [job[1:] for job in trials_run.JOBS], ids=str)
def test_a_trial_is_gated_and_timed_in_the_formats_of_its_job(dtype, formats) -> None:
    """The CPU's engine in place of a GPU's: which formats reach it."""
    seen = []

    class Backend(CpuBackend):
        def launcher(self, *arguments):
            batch = arguments[1].batch(arguments[2])
            seen.append((arguments[4], (batch.state_format, batch.weight_format)))
            return super().launcher(*arguments)

    found = contestant("default", Backend(), formats)
    assert gate.differs(found, ((1,), (300,)), dtype, torch.device("cpu")) is None
    assert {*seen} == {(dtype, formats)}  # tensors of any size


def test_without_a_gpu_there_is_one_clear_line(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit) as stopped:
        command.main([])
    assert stopped.value.code == 2
    assert "the trials need a GPU" in capsys.readouterr().err


def test_the_list_of_trials_needs_no_gpu(capsys) -> None:
    assert command.main(["--list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "streaming" in printed


def test_the_notes_list_every_trial() -> None:
    notes = (machine_code.ROOT / "bench" / "NOTES.md").read_text()
    listed = re.findall(r"^\| (cuda|triton) \| ([^|]+) \|", notes, re.MULTILINE)
    declared = [("cuda", trial.name) for trial in CUDA]
    assert listed == declared + [("triton", trial.name) for trial in TRITON]
