"""README.md: its figures are those of the records and of docs/formats.md, and it stays short."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "bench" / "results"
ROWS = {
    "one tensor of 50 million": "single-50m",
    "GPT-2, 124 million in 148 tensors": "gpt2-124m",
    "ResNet-50": "resnet50",
    "mixture of experts, 3,219 tensors": "moe",
    "1,000 tensors of 64": "small-1000",
}
COLUMNS = ("adamod_fused cpu", "torch Adam foreach", "pytorch_optimizer AdaMod")


def table(heading: str, page: str = README) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    lines = re.search(r"(?:^\|.*\n)+", page.partition(heading)[2], re.MULTILINE).group(0)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in lines.splitlines()[2:]]


def results(record: str) -> dict[tuple[str, str, str], dict]:
    rows = json.loads((RESULTS / record).read_text())["results"]
    return {(row["list"], row["dtype"], row["contestant"]): row for row in rows}


def test_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("cells", table("## Speed"), ids=lambda cells: cells[0])
def test_speed_is_that_of_the_record(cells: list[str]) -> None:
    recorded = results("bench-cpu.json")
    name, *ratios = cells
    found = [recorded[ROWS[name], "float32", column]["over_adam"] for column in COLUMNS]
    assert ratios == [f"{ratio:.2f}" for ratio in found]


def test_bytes_that_move_are_those_of_the_record() -> None:
    recorded = results("bench-cpu.json")
    ours, adam = (
        recorded["single-50m", "float32", name]["bytes_per_param"]
        for name in ("adamod_fused cpu", "torch Adam fused")
    )
    assert f"{ours / adam:.2f} times as many bytes as Adam" in README


def test_quantized_states_cost_what_the_record_says() -> None:
    low, high = re.search(r"takes (\d\.\d) to (\d\.\d) times as long as with fp32", README).groups()
    steps = {
        (dtype, name): row["kernel_us"]
        for (_, dtype, name), row in results("bench-cpu-formats.json").items()
        if name.startswith("adamod_fused cpu")
    }
    ratios = [
        time / steps[dtype, "adamod_fused cpu"]
        for (dtype, name), time in steps.items()
        if name != "adamod_fused cpu"
    ]
    assert (low, high) == (f"{min(ratios):.1f}", f"{max(ratios):.1f}")


@pytest.mark.parametrize("cells", table("## Memory"), ids=lambda cells: " ".join(cells[:2]))
def test_memory_is_that_of_the_page_on_formats(cells: list[str]) -> None:
    """docs/formats.md is held to the code, with one digit more."""
    weights, keywords, states, moved, _ = cells
    names = re.findall(r'"(\w+)"', keywords)
    page = (ROOT / "docs" / "formats.md").read_text()
    (found,) = [
        row
        for row in table("## What to choose", page)
        if row[0] == weights and set(re.findall(r"`(\w+)`", row[1])) == set(names)
    ]
    assert (float(states), float(moved)) == (round(float(found[2]), 1), round(float(found[4]), 1))
