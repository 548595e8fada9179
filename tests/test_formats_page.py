"""docs/formats.md: its numbers are those of the code, and its example runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from adamod_fused import AdaMod, codes
from adamod_fused.formats import DEFAULTS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "formats.md").read_text()


def rows(after: str) -> list[list[str]]:
    """The cells of the first table behind a heading, but for its own head."""
    table = re.search(r"(?:^\|.*\n)+", PAGE.partition(after)[2], re.MULTILINE).group(0)
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


SCRIPT, EDITS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("state_format", ["8bit", "16bit", "fp32"])
def test_the_examples_run(state_format: str) -> None:
    names: dict[str, Any] = {}
    exec(SCRIPT.replace('"8bit"', f'"{state_format}"'), names)
    optimizer, model = names["optimizer"], names["model"]
    model(torch.ones(2, 1024, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    dtype = {"8bit": torch.uint8, "16bit": torch.int16, "fp32": torch.float32}[state_format]
    assert optimizer.state[model.weight]["exp_avg"].dtype == dtype
    assert optimizer.state[model.bias]["exp_avg"].dtype == torch.float32  # it is small

    exec(EDITS, names)
    assert optimizer.param_groups[0]["params"] == [model.weight, model.bias]
    assert model.weight.shape == (768, 1024)
    saved = optimizer.state_dict()["state"][0]
    assert not saved["exp_avg"].any()
    assert not saved["exp_avg_sq"][:12].any()
    assert saved["exp_avg_sq"][12:].all()
    assert saved["exp_avg_lr"].all()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert optimizer.state[model.weight]["exp_avg"].shape == (768, 1024)


@pytest.mark.parametrize("cells", rows("## What to choose"), ids=lambda cells: " ".join(cells[:2]))
def test_bytes_of_a_parameter(cells: list[str]) -> None:
    weights, named, *figures = cells
    itemsize = {"fp32": 4, "bf16": 2}[weights]
    keywords = {
        "weight_format" if name in ("split", "stochastic") else "state_format": name
        for name in re.findall(r"`(\w+)`", named)
    }
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    param = torch.nn.Parameter(torch.zeros(DEFAULTS["min_coded_numel"], dtype=dtype))
    param.grad = torch.ones_like(param)
    optimizer = AdaMod([param], **keywords)
    optimizer.step()
    entries = [t for name, t in optimizer.state[param].items() if name != "step"]
    states = sum(tensor.nbytes for tensor in entries) / len(param)
    expected = (states, itemsize + states, 3 * itemsize + 2 * states)
    assert [float(figure) for figure in figures] == [round(number, 2) for number in expected]


def test_codes_are_as_the_table_says() -> None:
    table = rows("## Codes of states")
    assert [cells[0].strip("`") for cells in table] == [*AdaMod.rule.states]
    for cells, values in zip(table, AdaMod.rule.values, strict=True):
        for num_bytes, (bits, fraction, octaves) in ((1, cells[1:4]), (2, cells[4:7])):
            code = codes.Code(values, num_bytes)
            assert bits == f"{code.bits}{', one is the sign' if code.is_signed else ''}"
            assert int(fraction) == 23 - code.shift
            assert octaves == f"{code.top / 2 ** int(fraction):.1f}"
        smallest = values is codes.Values.SAFE_TOO_SMALL
        assert cells[7] == f"the block's {'smallest' if smallest else 'largest'}"


def test_out_of_range_is_as_told() -> None:
    """The smallest and the largest of a block, which lie too far apart for one byte."""
    block = torch.full((codes.BLOCK,), 1.0)
    block[0] = 2.0**-20
    random = [torch.full((codes.BLOCK,), 1 << 31)] * 3
    coded, exponents = codes.encode(AdaMod.rule.values, 1, [block] * 3, random)
    exp_avg, exp_avg_sq, exp_avg_lr = codes.decode(AdaMod.rule.values, coded, exponents)
    assert exp_avg[0] == 0
    assert 2.0**-20 < exp_avg_sq[0] <= 2.0**-7
    assert exp_avg_lr[0] == 2.0**-20
    assert 2.0**-5 < exp_avg_lr[1] < 2.0**-4
    assert exp_avg_sq[1] == exp_avg[1] == 1


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_alone(wrong: float) -> None:
    param = torch.nn.Parameter(torch.zeros(8192))
    optimizer = AdaMod([param], state_format="8bit")
    twin = torch.nn.Parameter(torch.zeros(8192))
    clean = AdaMod([twin], state_format="8bit")
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        param.grad = torch.randn(8192, generator=generator)
        twin.grad = param.grad.clone()
        param.grad[5] = wrong
        optimizer.step()
        clean.step()
    others = torch.arange(8192) != 5
    assert param[5].isnan()
    # But for the exponent, in which that element has no say and its twin has.
    assert torch.equal(param[32:], twin[32:])
    assert param[others].isfinite().all()
    torch.testing.assert_close(param[others], twin[others], rtol=0.2, atol=1e-6)


RECORD = json.loads((ROOT / "bench" / "results" / "numerics.json").read_text())


@pytest.mark.parametrize("cells", rows("## What averages keep"), ids=lambda cells: cells[0])
def test_averages_are_those_of_the_record(cells: list[str]) -> None:
    storage, *figures = cells
    expected = []
    for state in ("exp_avg_sq", "exp_avg_lr"):
        found = [
            quantiles
            for step, beta, gradients, name, quantiles, _ in RECORD["drifts"][storage]
            if step in (RECORD["steps"], 2 * RECORD["steps"])
            and name == state
            and (state, beta, gradients) != ("exp_avg_lr", 0.9999, "sparse")
        ]
        assert len(found) in (10, 12)
        low, medians, high = zip(*found, strict=True)
        expected += [f"{min(low):.2f}", f"{min(medians):.2f} to {max(medians):.2f}"]
        expected += [f"{max(high):.2f}"]
    assert figures == expected


def test_what_is_said_of_the_record() -> None:
    rows_of = RECORD["drifts"]["AdaMod 8bit"]

    def out_of_range(row: list) -> bool:
        return row[1:4] == [0.9999, "sparse", "exp_avg_lr"]

    kept = [row[4][1] for row in rows_of if out_of_range(row)]
    assert f"a factor of up to {round(1 / min(kept), -2):,.0f}" in PAGE
    ends = (RECORD["steps"], 2 * RECORD["steps"])
    ended = [row for row in rows_of if row[0] in ends and not out_of_range(row)]
    medians = {
        state: [row[4][1] for row in ended if row[3] == state] for state in AdaMod.rule.states[1:]
    }
    low = 1 - min(medians["exp_avg_sq"])
    high = max(medians["exp_avg_lr"]) - 1
    assert f"{low:.1%} low for `exp_avg_sq` and {high:.1%} high".replace("%", " %") in PAGE
    training = RECORD["training"].values()
    for name, told in (("16bit", "p = 0.86 and\n  0.89"), ("8bit", "0.83 and 0.82")):
        numbers = [f"{task['p'][name]:.2f}" for task in training]
        assert numbers == re.findall(r"0\.\d\d", told)
        assert told in PAGE
