"""The benchmark's gate: it passes what is right, on every list, and says where what is wrong is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from adamod_fused import AdaMod, codes
from adamod_fused.formats import Formats
from adamod_fused.optimizer import KEYWORDS
from bench import gate
from bench.contestants import CODED, Contestant, contestants, ours
from bench.lists import LISTS, Shape

CPU = torch.device("cpu")
BACKENDS = ["cpu", *(pytest.param(name, marks=pytest.mark.gpu) for name in ("cuda", "triton"))]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

SHAPES: tuple[Shape, ...] = ((3, 5), (0,), (), (1000,), (2, 3, 4, 5))
LAST = len(SHAPES) - 1

WHOLE = 30_000_000
"""Elements of the longest list that is gated whole here; longer ones take seconds and gigabytes."""
SHRUNK = 2048
"""Elements that the tensors of any other may have, ..."""
LONG = 1 << 18
"""... but for the largest: several claims of a CPU's thread (csrc/engine/cpu.cpp: 2^15 or more)."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The reference is hundreds of short operations: on a busy machine its threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shrunk(shape: Shape, most: int) -> Shape:
    """The largest dimension halved until at most ``most`` elements are left: as many dimensions."""
    sizes = list(shape)
    while math.prod(sizes) > most:
        largest = sizes.index(max(sizes))
        sizes[largest] = (sizes[largest] + 1) // 2
    return tuple(sizes)


def shrunk_list(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """All tensors, but fewer elements in each; the largest still spans many chunks of a kernel."""
    largest = max(range(len(shapes)), key=lambda i: math.prod(shapes[i]))
    return tuple(shrunk(shape, LONG if i == largest else SHRUNK) for i, shape in enumerate(shapes))


@pytest.mark.parametrize("name", LISTS)
def test_a_shrunk_list_still_has_a_tensor_of_many_chunks(name: str) -> None:
    shapes = LISTS[name].shapes
    found = shrunk_list(shapes)
    assert [len(shape) for shape in found] == [len(shape) for shape in shapes]
    sizes = sorted(map(math.prod, found))
    assert sizes[-1] >= min(LONG // 2, max(map(math.prod, shapes)))
    assert sizes[-2:-1] <= [SHRUNK]
    assert sizes[-1] <= LONG


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", LISTS)
def test_ours_passes_on_every_list(name: str, dtype: torch.dtype, backend: str) -> None:
    """Whole in float32 where that is cheap, else shrunk."""
    shapes = LISTS[name].shapes
    if dtype != torch.float32 or LISTS[name].numel > WHOLE:
        shapes = shrunk_list(shapes)
    device = torch.device("cpu" if backend == "cpu" else "cuda")
    assert gate.differs(ours(backend), shapes, dtype, device) is None


def test_settings_take_both_sides_of_the_bound_and_every_number_stays_finite() -> None:
    """Equality would prove little if min(eta, s) always picked the same side, or were NaN."""
    data = gate.PiecewiseNumbers([(10_000,)], torch.float32, CPU)
    shares = []  # of the elements that the bound holds
    for step in range(1, len(gate.SETTINGS) + 1):
        tensors = gate._reference(data, 0, step)
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        scalars = AdaMod.rule.prepare(step, **gate.SETTINGS[step - 1])
        denom = tensors["exp_avg_sq"].sqrt() * scalars.denom_scale + scalars.eps
        bounded = tensors["exp_avg_lr"] < scalars.step_size / denom
        shares.append(float(bounded.float().mean()))
    assert shares[0] == 1
    assert shares[1] < 0.1
    assert 0.1 < shares[2] < 0.9


def test_no_setting_is_a_default() -> None:
    defaults = AdaMod([torch.zeros(1)]).defaults
    for values in gate.SETTINGS:
        assert values.keys() == defaults.keys() - KEYWORDS.keys()
        for name in values.keys() - {"variant", "maximize"}:  # which have but two values
            assert values[name] != defaults[name], name


@pytest.mark.parametrize("piece", [1, 7, 64, 1000])
def test_pieces_hold_every_element_once_in_order(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PIECE", piece)
    pieces = list(gate.cut(SHAPES))
    sizes = [sum(stop - start for _, start, stop in spans) for spans in pieces]
    assert sizes[:-1] == [piece] * (len(pieces) - 1)
    assert 0 < sizes[-1] <= piece
    elements = [(t, i) for spans in pieces for t, start, stop in spans for i in range(start, stop)]
    assert elements == [(t, i) for t, shape in enumerate(SHAPES) for i in range(math.prod(shape))]


def test_no_piece_has_the_numbers_of_another() -> None:
    data = gate.PiecewiseNumbers([(3 * gate.PIECE,)], torch.float32, CPU)
    firsts = [data.piece(index, step)[:100] for index in range(3) for step in range(4)]
    for i, first in enumerate(firsts):
        for other in firsts[:i]:
            assert (first == other).float().mean() < 0.5  # zeros are in both


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("piece", [100, 1 << 20])
def test_ours_passes_whatever_the_pieces_and_steps(
    piece: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PIECE", piece)
    for dtype in DTYPES:
        assert gate.differs(ours("cpu"), SHAPES, dtype, CPU, steps) is None


Spoil = Callable[[AdaMod], None]
"""Makes a step wrong, after it."""


def broken(spoil: Spoil = lambda optimizer: None, **overrides: object) -> Contestant:
    """Ours, but for some hyperparameters in every step, or for what ``spoil`` does after each."""

    class Broken(AdaMod):
        def step(self, closure=None):
            for group in self.param_groups:
                group.update(overrides)
            super().step(closure)
            with torch.no_grad():
                spoil(self)

    return replace(ours("cpu"), make=partial(Broken, backend="cpu"))


@pytest.mark.parametrize(
    ("overrides", "wrong", "right"),
    [
        ({"beta3": 0.85}, ("param", "exp_avg_lr"), ("exp_avg", "exp_avg_sq")),
        ({"weight_decay": 0.0}, ("param",), ("exp_avg", "exp_avg_sq", "exp_avg_lr")),
        ({"eps": 1e-8}, ("param", "exp_avg_lr"), ("exp_avg", "exp_avg_sq")),
        ({"variant": "paper"}, ("param", "exp_avg_lr"), ("exp_avg", "exp_avg_sq")),
        ({"maximize": False}, ("param", "exp_avg"), ("exp_avg_sq", "exp_avg_lr")),
    ],
    ids=str,
)
def test_a_wrong_rule_is_told_by_what_it_spoils(overrides, wrong, right) -> None:
    for dtype in DTYPES:
        found = gate.differs(broken(**overrides), SHAPES, dtype, CPU)
        for name in wrong:
            assert f"{name} differs in " in found
        for name in right:
            assert f"{name} differs in " not in found


def one_bit(name: str, index: int, element: int) -> Spoil:
    def spoil(optimizer: AdaMod) -> None:
        param = optimizer.param_groups[0]["params"][index]
        if optimizer.state[param]["step"] == 3:
            tensor = param if name == "param" else optimizer.state[param][name]
            tensor.view(-1)[element : element + 1].view(torch.int32).bitwise_xor_(1)

    return spoil


@pytest.mark.parametrize("piece", [100, 1 << 20])
@pytest.mark.parametrize("name", ["param", "exp_avg", "exp_avg_sq", "exp_avg_lr"])
@pytest.mark.parametrize(("index", "element"), [(0, 0), (2, 0), (3, 999), (LAST, 119)])
def test_one_wrong_bit_is_found_and_named(
    name: str, index: int, element: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "PIECE", piece)
    found = gate.differs(broken(one_bit(name, index, element)), SHAPES, torch.float32, CPU)
    assert found == (
        f"{name} differs in 1 of 1,136 elements, first in tensor {index} of shape {SHAPES[index]}, "
        f"element {element}"
    )


def test_the_sign_of_zero_counts() -> None:
    def negate_zeros(optimizer: AdaMod) -> None:
        for state in optimizer.state.values():
            state["exp_avg_sq"][state["exp_avg_sq"] == 0] = -0.0

    found = gate.differs(broken(negate_zeros), SHAPES, torch.float32, CPU, steps=1)
    assert found.startswith("exp_avg_sq differs in ")


def test_states_of_fewer_bits_are_found() -> None:
    def round_states(optimizer: AdaMod) -> None:
        for state in optimizer.state.values():
            state["exp_avg"].copy_(state["exp_avg"].bfloat16())

    assert "exp_avg differs in " in gate.differs(broken(round_states), SHAPES, torch.bfloat16, CPU)


def test_a_tensor_that_was_not_stepped_is_found() -> None:
    def make(params):
        return AdaMod([p for p in params if p.ndim != 4], backend="cpu")

    contestant = replace(ours("cpu"), make=make)
    found = gate.differs(contestant, SHAPES, torch.float32, CPU)
    assert found == "the states count [0.0, 3.0] steps after 3"


FORMATS = pytest.mark.parametrize("formats", CODED, ids=" ".join)

CODED_SHAPES: tuple[Shape, ...] = ((3, 5), (0,), (2, 4096), (41, 100), (100_000,))


@FORMATS
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["gpt2-124m", "moe"])
def test_ours_in_fewer_bytes_passes(name: str, backend: str, formats: Formats) -> None:
    shapes = tuple(shrunk(shape, 5000) for shape in LISTS[name].shapes)[:200]
    device = torch.device("cpu" if backend == "cpu" else "cuda")
    contestant = ours(backend, formats)
    for dtype in DTYPES:
        if contestant.refuses(device, dtype) is None:
            assert gate.differs(contestant, shapes, dtype, device) is None


@FORMATS
@pytest.mark.parametrize("steps", [1, 5])
def test_ours_in_fewer_bytes_passes_whatever_the_steps(
    steps: int, formats: Formats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "CODED_PIECE", 4096)
    contestant = ours("cpu", formats)
    for dtype in DTYPES:
        if contestant.refuses(CPU, dtype) is None:
            assert gate.differs(contestant, CODED_SHAPES, dtype, CPU, steps) is None


def one_bit_of_codes(name: str, index: int, element: int) -> Spoil:
    def spoil(optimizer: AdaMod) -> None:
        param = optimizer.param_groups[0]["params"][index]
        if optimizer.state[param]["step"] == 3:
            tensor = param.view(torch.int16) if name == "param" else optimizer.state[param][name]
            tensor.view(-1)[element : element + 1].bitwise_xor_(1)

    return spoil


@pytest.mark.parametrize(
    ("name", "element"),
    [(n, 99_999) for n in ("param", *AdaMod.rule.states, "param_remainder")]
    + [("block_exponents", 3 * 3124 + state) for state in range(3)],
)
def test_one_wrong_bit_of_what_is_coded_is_found(name: str, element: int) -> None:
    spoil = one_bit_of_codes(name, 4, element)
    contestant = in_formats(Formats("8bit", "split"), spoil)
    found = gate.differs(contestant, CODED_SHAPES, torch.bfloat16, CPU)
    first = 3124 * 32 if name == "block_exponents" else element
    count = 32 if name == "block_exponents" else 1
    assert found == (
        f"{name} differs in {count} of 112,307 elements, first in tensor 4 of shape (100000,), "
        f"element {first:,}"
    )


def in_formats(formats: Formats, spoil: Spoil) -> Contestant:
    """Ours in formats, but for what ``spoil`` does after each step."""

    class Broken(AdaMod):
        def step(self, closure=None):
            super().step(closure)
            with torch.no_grad():
                spoil(self)

    keywords = {"state_format": formats.state, "weight_format": formats.weight}
    made = ours("cpu", formats)
    return replace(made, make=partial(Broken, backend="cpu", **keywords))


def test_random_bits_of_another_tensor_are_found() -> None:
    def swapped(params):
        return AdaMod([*params[:-2], params[-1], params[-2]], backend="cpu", state_format="8bit")

    contestant = replace(ours("cpu", Formats("8bit")), make=swapped)
    found = gate.differs(contestant, CODED_SHAPES, torch.float32, CPU)
    assert "exp_avg differs in " in found
    assert "first in tensor 3 of shape (41, 100), element" in found


@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 1000])
def test_a_sample_is_spread_from_the_first_to_the_last(count: int) -> None:
    found = gate.sample(count)
    assert found == sorted({*found})
    assert len(found) == min(count, gate.SAMPLE)
    assert (found[0], found[-1]) == (0, count - 1)
    gaps = [b - a for a, b in pairwise(found)]
    assert max(gaps, default=1) <= -(-count // (gate.SAMPLE - 1))


def test_coded_pieces_are_of_one_tensor_and_whole_blocks() -> None:
    pieces = list(gate.cut_each(CODED_SHAPES))
    assert [piece[0].tensor for piece in pieces] == [0, 2, 3, 4, 4, 4, 4]
    assert all(len(piece) == 1 and piece[0].start % codes.BLOCK == 0 for piece in pieces)
    assert sum(stop - start for ((_, start, stop),) in pieces) == 112_307


def test_peers_have_no_reference() -> None:
    (peer,), _ = contestants(CPU, ["torch Adam fused"])
    with pytest.raises(ValueError, match="our own backends, got 'torch Adam fused'"):
        gate.differs(peer, SHAPES, torch.float32, CPU)
