"""The benchmark's record: it comes back as it was written, and what is wrong in it is named."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import bench_records
import pytest

from adamod_fused.console import PlainConsole
from bench import fits, report
from bench.record import Record, Spread, load, save, validate


@pytest.fixture(scope="module")
def record() -> Record:
    return bench_records.record()


def as_json(record: Record) -> Any:
    return json.loads(json.dumps(asdict(record)))


def test_a_record_comes_back_as_it_was_written(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save(record, path)
    assert load(path) == record
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_every_result_has_a_line(record: Record, tmp_path: Path) -> None:
    save(record, tmp_path / "record.json")
    lines = (tmp_path / "record.json").read_text().splitlines()
    for result in asdict(record)["results"]:
        assert sum(json.dumps(result) in line for line in lines) == 1


def test_what_json_cannot_hold_leaves_the_old_record(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    save(record, path)
    worse = replace(record, machine={"load": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save(worse, path)
    assert load(path) == record


def test_an_interrupted_save_leaves_the_old_record(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    save(record, path)

    def interrupted(*_: Path) -> None:  # the new record is written, and not yet in its place
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(replace(record, complete=False), path)
    assert load(path) == record
    assert list(tmp_path.iterdir()) == [path]


def test_the_fields_are_those_that_readers_of_records_know(record: Record) -> None:
    data = as_json(record)
    assert set(data) == {
        *("schema", "complete", "quick", "date", "commit", "device", "machine", "versions"),
        *("copy_GB_per_s", "in_place_GB_per_s", "absent", "left_out", "lists", "results", "fits"),
    }
    assert set(data["results"][0]) == {
        *("list", "contestant", "dtype", "step_ms", "wall_us", "host_us", "host_us_per_tensor"),
        *("kernel_us", "bytes_per_param", "GB_per_s", "share_of_copy", "over_adam"),
        *("state_bytes_per_param", "peak_bytes", "launches", "host_in_step", "in_cache"),
    }
    assert set(data["fits"][0]) == {
        *("contestant", "dtype", "against", "slope_ns", "intercept_us", "r_squared", "points"),
    }
    assert set(data["left_out"][0]) == {"list", "contestant", "dtype", "reason"}
    assert set(data["results"][0]["step_ms"]) == {"median", "q1", "q3", "min", "max", "n"}


def test_records_may_be_older_than_fields_with_a_default(record: Record) -> None:
    data = as_json(record)
    for result in data["results"]:
        del result["host_in_step"], result["in_cache"]
    assert validate(data) == record


def without(name: str) -> Callable[[Any], None]:
    return lambda data: data.pop(name)


def at(*path: Any, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


WRONG = [
    (at("schema", value=2), "schema must be 1, got 2"),
    (without("schema"), "schema must be 1, got None"),
    (without("fits"), "record: 'fits' is missing"),
    (at("speed", value=1), "record: 'speed' is not known"),
    (at("device", value="tpu"), "device must be one of cpu, cuda, got 'tpu'"),
    (at("complete", value=1), "record.complete must be true or false, got 1"),
    (at("date", value=None), "record.date must be text, got None"),
    (at("commit", value=7), "record.commit must be text or null, got 7"),
    (
        at("machine", "cores", value=[2]),
        r"record.machine\['cores'\] must be text or a whole .*\[2\]",
    ),
    (at("machine", value=[]), r"record.machine must be an object, got \[\]"),
    (at("copy_GB_per_s", value=50), "record.copy_GB_per_s must be an object, got 50"),
    (at("results", value={}), r"record.results must be a list, got \{\}"),
    (at("results", 1, value=3), r"record.results\[1\] must be an object, got 3"),
    (at("results", 1, "GB_per_s", value="90"), r"results\[1\].GB_per_s must be a finite .* '90'"),
    (at("results", 1, "GB_per_s", value=float("inf")), r"results\[1\].GB_per_s .* got inf"),
    (at("results", 1, "in_cache", value=1), r"results\[1\].in_cache must be true .* got 1"),
    (at("results", 1, "launches", value=1.5), r"results\[1\].launches must be a whole .* got 1.5"),
    (at("results", 1, "step_ms", value=None), r"results\[1\].step_ms must be an object, got None"),
    (
        at("results", 1, "step_ms", "n", value=True),
        r"results\[1\].step_ms.n must be a whole .*True",
    ),
    (
        at("results", 1, "step_ms", "n", value=0),
        r"results\[1\].step_ms: n must be at least 1, got 0",
    ),
    (at("results", 1, "step_ms", "q1", value=1e9), r"results\[1\].step_ms: min <= q1 <= median"),
    (at("results", 1, "list", value="gpt5"), "results are of list 'gpt5', which lists lacks"),
    (at("results", 1, "contestant", value="adamod_fused cpu"), "two results of small-1000, adamod"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_named(record: Record, spoil: Callable[[Any], None], message: str) -> None:
    data = as_json(record)
    assert validate(copy.deepcopy(data)) == record
    spoil(data)
    with pytest.raises(ValueError, match=message):
        validate(data)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', "\x00", "no JSON"])
def test_a_file_that_is_no_record_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json: "):
        load(path)


def test_committed_records_are_valid() -> None:
    folder = Path(__file__).resolve().parent.parent / "bench" / "results"
    for path in folder.glob("bench-*.json"):
        assert load(path).device in path.name


def test_a_spread_has_the_quartiles_of_its_values() -> None:
    values = [float(value) for value in range(101)]
    random.Random(1).shuffle(values)
    assert Spread.of(values) == Spread(50, 25, 75, 0, 100, 101)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75, 1, 2, 2)
    assert Spread.of([3.14159265]) == Spread(3.14159, 3.14159, 3.14159, 3.14159, 3.14159, 1)


SIZES = (1e3, 1e4, 1e5, 1e6, 1e7, 1e8)


def test_a_fit_recovers_a_planted_line() -> None:
    slope, intercept, r_squared = fits.line([(x, 12.5 + 3e-4 * x) for x in SIZES])
    assert slope == pytest.approx(3e-4, rel=1e-9)
    assert intercept == pytest.approx(12.5, rel=1e-9)
    assert r_squared == pytest.approx(1)


def test_the_largest_list_alone_does_not_decide_the_intercept() -> None:
    points = [(x, 12.5 + 3e-4 * x) for x in SIZES]
    points[-1] = (1e8, points[-1][1] * 1.1)  # an absolute error of 3 ms, 240 times the intercept
    assert fits.line(points).intercept == pytest.approx(12.5, rel=0.02)
    assert fits.line(points).r_squared < 0.999


def test_records_hold_the_fits_of_their_sweeps(record: Record) -> None:
    ours = {fit.against: fit for fit in record.fits if fit.contestant == "adamod_fused cpu"}
    assert ours["elements"].slope_ns == pytest.approx(bench_records.NS_PER_ELEMENT, rel=1e-3)
    assert ours["elements"].intercept_us == pytest.approx(10.2, rel=1e-3)
    assert ours["elements"].points == len(bench_records.SIZES)
    per_tensor_ns = 1e3 * bench_records.US_PER_TENSOR + 64 * bench_records.NS_PER_ELEMENT
    assert ours["tensors"].slope_ns == pytest.approx(per_tensor_ns, rel=1e-3)
    assert ours["tensors"].intercept_us == pytest.approx(bench_records.US_PER_STEP, rel=1e-3)


def test_two_points_are_no_fit() -> None:
    results = [bench_records.result(name, "adamod_fused cpu") for name in ("size-1e3", "size-1e4")]
    assert bench_records.record(results).fits == ()


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_the_exponent_is_that_of_the_end(power: float) -> None:
    points = [(x, max(100, x**power)) for x in SIZES]
    assert fits.exponent(points) == pytest.approx(power)


def test_on_a_gpu_tensors_cost_what_host_and_device_take_together() -> None:
    result = bench_records.result("tensors-10", "adamod_fused cuda")
    with_wall = replace(result, wall_us=bench_records.spread(77.0))
    assert fits.cost_us(with_wall, "tensors") == 77.0
    assert fits.cost_us(with_wall, "elements") == result.step_ms.median * 1e3
    assert fits.cost_us(result, "tensors") == result.step_ms.median * 1e3


def test_what_a_step_holds_or_finds_in_the_cache_is_shown(capsys: pytest.CaptureFixture) -> None:
    foreach = bench_records.result("small-10000", "torch Adam foreach")
    made = bench_records.result("small-10000", "adamod_fused cuda", in_cache=True)
    both = replace(foreach, host_in_step=True, in_cache=True)
    report.print_record(PlainConsole(), bench_records.record([made, both], device="cuda"))
    shown = capsys.readouterr().out
    assert re.search(r"^torch Adam foreach .*  host in step, in cache$", shown, re.MULTILINE)
    assert re.search(r"^adamod_fused cuda .*  in cache$", shown, re.MULTILINE)
    report.print_record(PlainConsole(), bench_records.record([replace(made, in_cache=False)]))
    assert "notes" not in capsys.readouterr().out
