"""The benchmark's figures: drawn from a stored record, with its numbers and nobody left out."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import bench_records
import pytest

from adamod_fused.demo.style import STYLE
from bench import __main__, figures, record, style
from bench.record import Record

pytest.importorskip("matplotlib", reason="the figures are drawn with matplotlib")

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """A record, and where it is stored."""
    path = tmp_path_factory.mktemp("record") / "bench-cpu.json"
    made = bench_records.record()
    record.save(made, path)
    return made, path


def drawn(make: Any, made: Record) -> Any:
    """A figure laid out as in its file."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with mpl.rc_context(STYLE):
        figure = make(made)
        FigureCanvasAgg(figure).draw()
    return figure


@pytest.fixture(scope="module")
def size_axes(stored: tuple[Record, Path]) -> Any:
    (axes,) = drawn(figures.size_figure, stored[0]).axes
    return axes


def test_a_stored_record_is_drawn(stored: tuple[Record, Path], capsys: Any) -> None:
    _, path = stored
    assert __main__.main(["figures", str(path)]) == 0
    names = ["bench-cpu-size.png", "bench-cpu-host.png", "bench-cpu-bandwidth.png"]
    assert [line.rpartition("/")[2] for line in capsys.readouterr().out.splitlines()] == names
    for name in names:
        header = (path.parent / name).read_bytes()[:24]
        width, height = struct.unpack(">II", header[16:24])
        assert header.startswith(PNG)
        assert width == figures.WIDTH * figures.DPI
        assert 800 < height < 1400


def lines_of(axes: Any) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    for line in axes.get_lines():
        if line.get_label() != figures.ROOFLINE and not line.get_label().startswith("_"):
            yield line.get_label(), [*zip(*line.get_data(), strict=True)]


def test_size_lines_are_the_records_steps(size_axes: Any, stored: tuple[Record, Path]) -> None:
    lines = dict(lines_of(size_axes))
    assert sorted(lines) == sorted(bench_records.ON_CPU)
    for name, points in lines.items():
        assert points == [
            (10.0**power, stored[0].find(f"size-1e{power}", name, "float32").step_ms.median / 1e3)
            for power in range(3, 9)
        ]


def test_the_roofline_is_the_bytes_at_the_memorys_speed(size_axes: Any) -> None:
    (line,) = (line for line in size_axes.get_lines() if line.get_label() == figures.ROOFLINE)
    for x, y in zip(*line.get_data(), strict=True):
        assert y == pytest.approx(36 * x / (bench_records.FASTEST_IN_PLACE * 1e9))


def test_host_lines_are_the_records_host_times(stored: tuple[Record, Path]) -> None:
    (axes,) = drawn(figures.host_figure, stored[0]).axes
    lines = dict(lines_of(axes))
    assert sorted(lines) == sorted(bench_records.ON_CPU)
    for name, points in lines.items():
        assert points == [
            (count, stored[0].find(f"tensors-{count}", name, "float32").host_us.median / 1e6)
            for count in (1, 10, 100, 1_000, 10_000)
        ]


def test_bars_are_shares_of_the_memorys_speed(stored: tuple[Record, Path]) -> None:
    made, _ = stored
    panels = drawn(figures.bandwidth_figure, made).axes
    assert [axes.get_title("left") for axes in panels] == ["single-50m", "gpt2-124m", "resnet50"]
    names = [label.get_text() for label in panels[0].get_yticklabels()]
    assert names == list(bench_records.ON_CPU)  # ours on top, then in the order of the contestants
    for axes in panels:
        for bar, name in zip(axes.patches, names, strict=True):
            found = made.find(axes.get_title("left"), name, "float32")
            assert bar.get_width() == pytest.approx(found.GB_per_s / bench_records.FASTEST_IN_PLACE)
            assert bar.get_y() + bar.get_height() / 2 == pytest.approx(names.index(name))
        words = [text.get_text() for text in axes.texts]
        assert words == [f"{bar.get_width():.0%}" for bar in axes.patches]


def test_on_a_gpu_the_limit_is_the_copy(stored: tuple[Record, Path]) -> None:
    on_gpu = replace(stored[0], device="cuda")
    axes = drawn(figures.bandwidth_figure, on_gpu).axes[0]
    found = on_gpu.find("single-50m", "adamod_fused cpu", "float32")
    assert axes.patches[0].get_width() == pytest.approx(found.share_of_copy, rel=1e-4)


@pytest.mark.parametrize("make", figures.FIGURES.values(), ids=figures.FIGURES)
def test_figures_say_what_where_and_when(make: Any, stored: tuple[Record, Path]) -> None:
    figure = drawn(make, stored[0])
    footer = figure.get_supxlabel()
    for word in ("a processor", "threads: 2", "torch 2.13.0", "2026-01-02", "0123456789"):
        assert word in footer
    assert "float32" in figure.get_suptitle() or "Host time" in figure.get_suptitle()
    axes = figure.axes[0]
    ticks = [label.get_text() for label in (*axes.get_yticklabels(), *axes.get_xticklabels())]
    assert any("s" in tick or "%" in tick for tick in ticks)  # seconds, or shares


def test_lines_are_named_where_they_end(size_axes: Any) -> None:
    renderer = size_axes.figure.canvas.get_renderer()
    labels = [text for text in size_axes.texts if text.get_text() in bench_records.ON_CPU]
    assert len(labels) == len(bench_records.ON_CPU)
    # Of the text alone: that of an annotation holds the line that leads to it.
    boxes = [super(type(t), t).get_window_extent(renderer) for t in labels]
    height, width = size_axes.figure.bbox.height, size_axes.figure.bbox.width
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert box.x0 >= size_axes.bbox.x1
        assert box.x1 <= width
        assert 0 <= box.y0 < box.y1 <= height


def test_ours_stands_out(size_axes: Any) -> None:
    by_name = {line.get_label(): line for line in size_axes.get_lines()}
    ours = by_name["adamod_fused cpu"]
    others = [by_name[name] for name in bench_records.ON_CPU if name not in bench_records.OURS]
    assert all(ours.get_linewidth() > 1.5 * line.get_linewidth() for line in others)
    assert all(ours.get_zorder() > line.get_zorder() for line in others)


def test_no_two_contestants_look_alike() -> None:
    assert set(style.LOOKS) == set(bench_records.NAMES)
    # Those of cpu and cuda, never in one figure, share theirs.
    apart = [name for name in bench_records.NAMES if not name.startswith("adamod_fused cpu")]
    assert len({style.look(name) for name in apart}) == len(apart)
    assert style.look("a newcomer") == style.UNKNOWN


def test_what_a_record_lacks_is_not_drawn(stored: tuple[Record, Path], tmp_path: Path) -> None:
    made, _ = stored
    no_sweeps = [r for r in made.results if not r.list.startswith(("size", "tensors"))]
    paths = figures.draw(bench_records.record(no_sweeps), tmp_path)
    assert [path.name for path in paths] == ["bench-cpu-bandwidth.png"]
    assert figures.draw(bench_records.record([]), tmp_path) == []
    one_size = [r for r in made.results if r.list == "size-1e3"]
    assert figures.size_figure(bench_records.record(one_size)) is None
    unmeasured = replace(made, copy_GB_per_s=None, in_place_GB_per_s=None)
    assert figures.bandwidth_figure(unmeasured) is None
    assert figures.ROOFLINE not in [
        line.get_label() for line in figures.size_figure(unmeasured).axes[0].get_lines()
    ]


@pytest.mark.parametrize("seed", range(20))
def test_labels_are_spread_out_no_further_than_needed(seed: int) -> None:
    numbers = random.Random(seed)
    wanted = [numbers.uniform(0, 1) ** 3 for _ in range(15)]
    gap = 0.05
    places = style.spread_out(wanted, gap)
    assert all(0 <= place <= 1 for place in places)
    ranked = sorted(places)
    assert all(b - a >= gap * (1 - 1e-6) for a, b in pairwise(ranked))
    order = sorted(range(15), key=wanted.__getitem__)
    assert order == sorted(range(15), key=places.__getitem__)
    assert style.spread_out([0.1, 0.5, 0.9], gap) == [0.1, 0.5, 0.9]
    assert style.spread_out([0.5, 0.5], gap) == pytest.approx([0.475, 0.525])
    assert style.spread_out([1.0, 1.0], gap) == pytest.approx([0.95, 1.0])
