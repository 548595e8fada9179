"""The targets: each is read from the right figures of a record, and falls short when it should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_records
import pytest

from bench import __main__, check, record
from bench.record import LeftOut, Record, Result
from bench.targets import (
    CPU,
    CUDA,
    EAGER_ADAMOD,
    IN_8,
    IN_16,
    IN_SPLIT_8,
    PEERS_IN_8,
    TARGETS,
    TRITON,
    Target,
)

ADAM = "torch Adam fused"


def target(device: str, what: str) -> Target:
    (found,) = (t for t in TARGETS if t.device == device and t.what.startswith(what))
    return found


def with_bf16() -> Record:
    """A record of a CPU that meets every target."""
    made = bench_records.record()
    lists = ("gpt2-124m", "resnet50")
    more = [bench_records.result(n, c, "bfloat16") for n in lists for c in (CPU, ADAM)]
    return bench_records.record([*made.results, *more])


def of_gpu() -> Record:
    """A record of a GPU that meets every target."""

    def result(name: str, contestant: str, dtype: str = "float32") -> Result:
        ours = contestant in bench_records.OURS
        changes: dict[str, Any] = {"wall_us": bench_records.spread(100 if ours else 1500)}
        launches = 2 if contestant in coded else 1 if ours else 40
        changes |= {"launches": launches, "share_of_copy": 0.96, "kernel_us": None}
        changes |= {"host_us": bench_records.spread(30)}
        if name.startswith("tensors"):
            changes["wall_us"] = bench_records.spread(20 + float(name.partition("-")[2]))
        return bench_records.result(name, contestant, dtype, **changes)

    coded = [CUDA + IN_8, CUDA + IN_16, CUDA + IN_SPLIT_8]
    names = ("single-1g", "llama-3.2-1b", "gpt2-124m", "small-10000", "size-1e8", "size-1e9")
    results = [
        result(name, contestant)
        for name in (*names, "tensors-1000", "tensors-10000")
        for contestant in (CUDA, TRITON, ADAM)
    ]
    large = ("single-1g", "gpt2-124m")
    results += [result(n, c) for n in large for c in (*coded[:2], *PEERS_IN_8)]
    results.append(result("single-1g", CUDA + IN_SPLIT_8, "bfloat16"))
    return bench_records.record(results, device="cuda")


RECORDS = {"cpu": with_bf16, "cuda": of_gpu}


@pytest.mark.parametrize("device", RECORDS)
def test_a_record_that_meets_them_all(device: str, tmp_path: Path, capsys: Any) -> None:
    record.save(RECORDS[device](), tmp_path / "record.json")
    assert __main__.main(["check", str(tmp_path / "record.json")]) == 0
    shown = capsys.readouterr().out
    expected = [t for t in TARGETS if t.device == device]
    assert shown.count("  met\n") == len(expected)
    assert "SHORT" not in shown
    assert shown.count(f"not measured: no record of a {'CPU' if device == 'cuda' else 'GPU'}") == (
        len(TARGETS) - len(expected)
    )
    assert f"0 of {len(expected)} measured figures fall short" in shown


def changed(made: Record, list_name: str, contestant: str, dtype: str, **changes: Any) -> Record:
    key = (list_name, contestant, dtype)
    results = [
        replace(r, **changes) if (r.list, r.contestant, r.dtype) == key else r for r in made.results
    ]
    assert tuple(results) != made.results
    return replace(made, results=tuple(results))


def spread(median: float) -> dict[str, Any]:
    return {"step_ms": bench_records.spread(median)}


# For each target the least change of a record that makes it fall short, and the figure then.
SHORT: list[tuple[str, str, str, str, dict[str, Any], float]] = [
    ("cpu", "50 M fp32: step / torch", "single-50m", CPU, {"over_adam": 1.291}, 1.291),
    (
        "cpu",
        "50 M fp32: pytorch",
        "single-50m",
        EAGER_ADAMOD,
        {"over_adam": 5.9 / bench_records.SLOWER},
        5.9,
    ),
    ("cpu", "1,000 x 64: torch", "small-1000", CPU, {"over_adam": 1 / 9.9}, 9.9),
    ("cpu", "GPT-2 fp32", "gpt2-124m", CPU, {"over_adam": 1.251}, 1.251),
    ("cpu", "ResNet-50 fp32", "resnet50", CPU, {"over_adam": 1.251}, 1.251),
    ("cpu", "GPT-2 bf16", "gpt2-124m", CPU, {"over_adam": 1.001}, 1.001),
    ("cpu", "ResNet-50 bf16", "resnet50", CPU, {"over_adam": 1.001}, 1.001),
    ("cpu", "cost against size", "size-1e8", CPU, spread(4.0 * 10**1.26), 1.26),
    ("cpu", "cost against tensors", "tensors-10000", CPU, spread(0.2356 * 10**1.54), 1.54),
    ("cuda", "1 G fp32, cuda", "single-1g", CUDA, {"share_of_copy": 0.949}, 0.949),
    ("cuda", "Llama-1B fp32, cuda", "llama-3.2-1b", CUDA, {"share_of_copy": 0.949}, 0.949),
    ("cuda", "1 G fp32, triton", "single-1g", TRITON, {"share_of_copy": 0.929}, 0.929),
    ("cuda", "Llama-1B fp32, triton", "llama-3.2-1b", TRITON, {"share_of_copy": 0.929}, 0.929),
    ("cuda", "GPT-2 fp32", "gpt2-124m", CUDA, {"over_adam": 1.251}, 1.251),
    (
        "cuda",
        "10,000 x 64",
        "small-10000",
        CUDA,
        {"wall_us": bench_records.spread(151)},
        1500 / 151,
    ),
    ("cuda", "launches", "size-1e8", TRITON, {"launches": 2}, 2),
    ("cuda", "coded: launches", "gpt2-124m", CUDA + IN_16, {"launches": 3}, 3),
    ("cpu", "50 M fp32, 16bit", "single-50m", CPU + IN_16, {"over_adam": 0.901}, 0.901),
    ("cpu", "50 M fp32, 8bit", "single-50m", CPU + IN_8, {"over_adam": 0.801}, 0.801),
    ("cpu", "8bit: ", "single-50m", CPU + IN_8, {"state_bytes_per_param": 3.11}, 3.11),
    ("cuda", "8bit: ", "single-1g", CUDA + IN_8, {"state_bytes_per_param": 3.11}, 3.11),
    ("cuda", "1 G fp32, 8bit: step", "single-1g", CUDA + IN_8, {"over_adam": 0.681}, 0.681),
    ("cuda", "1 G fp32, 16bit: step", "single-1g", CUDA + IN_16, {"over_adam": 0.881}, 0.881),
    ("cuda", "1 G fp32, 8bit: share", "single-1g", CUDA + IN_8, {"share_of_copy": 0.899}, 0.899),
    ("cuda", "1 G fp32, 16bit: share", "single-1g", CUDA + IN_16, {"share_of_copy": 0.929}, 0.929),
    # The baseline's in fp32 takes 12 times 400.01 ms.
    ("cuda", "1 G bf16, split", "single-1g", CUDA + IN_SPLIT_8, spread(2885), 0.601),
    *(
        (
            *("cuda", f"GPT-2 and 1 G, fp32: {peer}", name, peer),
            *({"over_adam": 0.99 / bench_records.SLOWER}, 0.99),
        )
        for peer, name in zip(PEERS_IN_8, ("gpt2-124m", "single-1g"), strict=True)
    ),
    ("cuda", "148 tensors", "gpt2-124m", CUDA, {"host_us": bench_records.spread(60.1)}, 60.1),
    ("cuda", "cost against size", "size-1e9", TRITON, spread(40 * 10**1.26), 1.26),
    (
        *("cuda", "cost against tensors", "tensors-10000", CUDA),
        {"wall_us": bench_records.spread(1020 * 10**1.26)},
        1.26,
    ),
]


def test_every_target_can_fall_short() -> None:
    assert {id(target(device, what)) for device, what, *_ in SHORT} == set(map(id, TARGETS))


@pytest.mark.parametrize(
    ("device", "what", "list_name", "contestant", "changes", "figure"),
    SHORT,
    ids=[f"{device}-{what}" for device, what, *_ in SHORT],
)
def test_a_record_that_falls_short(
    device: str,
    what: str,
    list_name: str,
    contestant: str,
    changes: dict[str, Any],
    figure: float,
    tmp_path: Path,
    capsys: Any,
) -> None:
    dtype = "bfloat16" if "bf16" in what else "float32"
    made = changed(RECORDS[device](), list_name, contestant, dtype, **changes)
    record.save(made, tmp_path / "record.json")
    bound = target(device, what)
    assert bound.figure(made) == pytest.approx(figure, rel=2e-3)
    assert check.judge(bound, made).falls_short
    assert __main__.main(["check", str(tmp_path / "record.json")]) == 1
    shown = capsys.readouterr().out.splitlines()
    short = [line for line in shown if line.endswith("SHORT")]
    assert any(bound.what in line for line in short)
    assert shown[-1].startswith(f"{len(short)} of ")
    # Only one figure reads what two targets are about: the step on 50 M elements.
    assert len(short) == (2 if bound.what.startswith("50 M fp32: step") else 1)


@pytest.mark.parametrize("bound", TARGETS, ids=lambda t: f"{t.device}-{t.what}")
def test_the_bound_itself_is_met(bound: Target) -> None:
    assert bound.met(bound.bound)
    assert not bound.met(bound.bound * (1.001 if bound.relation == "<=" else 0.999))
    assert not bound.met(float("nan"))


def lacking(*, keep: Callable[[Result], bool], **changes: Any) -> Record:
    made = bench_records.record()
    return replace(made, results=tuple(filter(keep, made.results)), **changes)


UNMEASURED = [
    (
        lacking(keep=lambda r: r.list != "single-50m"),
        f"the record has no {EAGER_ADAMOD} on single-50m float32",
    ),
    (
        lacking(
            keep=lambda r: r.contestant != EAGER_ADAMOD, absent={EAGER_ADAMOD: "not installed"}
        ),
        f"{EAGER_ADAMOD}: not installed",
    ),
    (
        lacking(
            keep=lambda r: r.list != "single-50m",
            left_out=(LeftOut("single-50m", "all", "float32", "stopped by Ctrl-C"),),
        ),
        f"{EAGER_ADAMOD} on single-50m float32: stopped by Ctrl-C",
    ),
]


@pytest.mark.parametrize(("made", "reason"), UNMEASURED, ids=[reason for _, reason in UNMEASURED])
def test_what_is_not_measured_says_why(made: Record, reason: str) -> None:
    verdict = check.judge(target("cpu", "50 M fp32: pytorch"), made)
    assert str(verdict) == f"not measured: {reason}"
    assert not verdict.falls_short


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quick": True}, "quick"),
        ({"complete": False}, "incomplete"),
        ({"quick": True, "complete": False}, "quick, incomplete"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_quick_or_incomplete_record_meets_nothing_silently(
    changes: dict[str, bool], words: str, tmp_path: Path, capsys: Any
) -> None:
    made = changed(with_bf16(), "gpt2-124m", CPU, "float32", over_adam=1.251)
    record.save(replace(made, **changes), tmp_path / "record.json")
    assert __main__.main(["check", str(tmp_path / "record.json")]) == 1
    shown = capsys.readouterr().out
    measured = sum(t.device == "cpu" for t in TARGETS)
    assert shown.splitlines()[0].endswith(f", {words}")
    assert shown.count(f"  met ({words})\n") == measured - 1
    assert shown.count(f"  SHORT ({words})\n") == 1
    assert "  met\n" not in shown
    assert f"; {measured} are of quick or incomplete records; " in shown


def test_by_default_the_stored_records_are_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    assert __main__.main(["check"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not measured:") == len(TARGETS) + len(check.OTHERS)
    assert shown.endswith(f"; {len(TARGETS) + len(check.OTHERS)} are not measured\n")
    record.save(with_bf16(), tmp_path / "bench-cpu.json")
    record.save(of_gpu(), tmp_path / "bench-cuda-h200.json")
    for other in ("demo.json", "trials-cuda.json"):
        (tmp_path / other).write_text("{}")
    assert __main__.main(["check"]) == 0
    assert capsys.readouterr().out.count("  met\n") == len(TARGETS)


def test_a_file_that_is_no_record_exits_2(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "no.json").write_text("{}")
    for name, message in (("no.json", "schema must be 1"), ("none.json", "No such file")):
        with pytest.raises(SystemExit) as stopped:
            __main__.main(["check", str(tmp_path / name)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
