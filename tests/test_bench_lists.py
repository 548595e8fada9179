"""The benchmark's parameter lists: every count and size of the models that they write down."""

from __future__ import annotations

import math

import pytest

from bench.lists import LISTS, olmoe, size_sweep, tensor_sweep

# Tensors and elements. The models' are those of torchvision 0.28 and transformers 5.23, whose
# parameters have these very shapes in this order; compared once by hand.
KNOWN = {
    "gpt2-124m": (148, 124_439_808),
    "resnet50": (161, 25_557_032),
    "densenet121": (364, 7_978_856),
    "llama-3.2-1b": (146, 1_235_814_400),
    "moe": (3_219, 27_158_656),
    "small-1000": (1_000, 64_000),
    "small-10000": (10_000, 640_000),
    "single-50m": (1, 50_000_000),
    "single-1g": (1, 1_000_000_000),
}


def test_counts() -> None:
    assert {name: (entry.tensors, entry.numel) for name, entry in LISTS.items()} == KNOWN


@pytest.mark.parametrize("entry", LISTS.values(), ids=LISTS)
def test_lists_are_of_positive_sizes_and_name_their_source(entry) -> None:
    assert entry.name in LISTS
    assert all(isinstance(size, int) and size > 0 for shape in entry.shapes for size in shape)
    assert len(entry.source) > 20
    assert entry.devices
    assert set(entry.devices) <= {"cpu", "cuda"}


def test_what_only_a_gpu_holds_is_measured_only_there() -> None:
    assert all(e.devices == ("cuda",) for e in LISTS.values() if e.numel > 500_000_000)
    assert LISTS["single-50m"].devices == ("cpu",)


@pytest.mark.parametrize(
    ("name", "position", "shapes"),
    [
        ("gpt2-124m", 0, ((50257, 768), (1024, 768), (768,), (768,), (768, 2304), (2304,))),
        ("gpt2-124m", -4, ((3072, 768), (768,), (768,), (768,))),
        ("resnet50", 0, ((64, 3, 7, 7), (64,), (64,), (64, 64, 1, 1))),
        ("resnet50", 12, ((256, 64, 1, 1), (256,), (256,), (64, 256, 1, 1))),
        ("resnet50", -2, ((1000, 2048), (1000,))),
        ("densenet121", 0, ((64, 3, 7, 7), (64,), (64,), (64,), (64,), (128, 64, 1, 1))),
        ("densenet121", -4, ((1024,), (1024,), (1000, 1024), (1000,))),
        ("llama-3.2-1b", 0, ((128256, 2048), (2048, 2048), (512, 2048), (512, 2048))),
        ("llama-3.2-1b", -3, ((2048,), (2048,), (2048,))),
        ("moe", 5, ((128,), (128,), (64, 128), (64, 128), (64, 128), (128, 64))),
    ],
)
def test_shapes_stand_where_the_model_has_them(name, position, shapes) -> None:
    listed = LISTS[name].shapes
    start = position % len(listed)
    assert listed[start : start + len(shapes)] == shapes


def test_the_mixture_of_experts_is_the_published_one_but_for_its_widths() -> None:
    published = list(olmoe(50304, width=2048, hidden=1024))
    assert sum(map(math.prod, published)) == 6_919_161_856  # "7B"
    assert list(map(len, published)) == list(map(len, LISTS["moe"].shapes))
    for shape, scaled in zip(published, LISTS["moe"].shapes, strict=True):
        for size, smaller in zip(shape, scaled, strict=True):
            assert size in (smaller, 16 * smaller)
    assert published.count((1024, 2048)) == 2 * 16 * 64  # gate and up of every expert


def test_sweeps() -> None:
    sizes = size_sweep(10**9)
    assert [entry.numel for entry in sizes] == [10**power for power in range(3, 10)]
    assert [entry.name for entry in sizes] == [f"size-1e{power}" for power in range(3, 10)]
    assert {entry.tensors for entry in sizes} == {1}
    assert [entry.numel for entry in size_sweep(99_999)] == [1_000, 10_000]
    counts = tensor_sweep()
    assert [entry.tensors for entry in counts] == [1, 10, 100, 1_000, 10_000]
    assert [entry.name for entry in counts] == [f"tensors-{entry.tensors}" for entry in counts]
    assert {entry.numel // entry.tensors for entry in counts} == {64}
    assert not LISTS.keys() & {entry.name for entry in (*sizes, *counts)}
