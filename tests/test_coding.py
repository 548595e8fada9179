"""States from codes to values and back, by any backend: the bits of codes.py, memory, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from coded_values import KINDS, KINDS_OF_RULES, encoded, room_for, values_of
from helpers import assert_same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adamod_fused import _C as core
from adamod_fused import AdaMod, backends, codes, coding
from adamod_fused.backends.base import addresses_of
from adamod_fused.codes import Values
from adamod_fused.formats import EXPONENTS

SIZES = (0, 1, 31, 32, 33, 511, 512, 513, 33_333)  # and what two threads share

each_set = pytest.mark.parametrize("isa", core.cpu_instruction_sets())
each_width = pytest.mark.parametrize("num_bytes", [1, 2])
each_backend = pytest.mark.parametrize("backend", ["engine", "oracle"])


@each_width
@pytest.mark.parametrize("kinds", KINDS_OF_RULES, ids=str)
def test_the_engine_has_the_oracles_bits(num_bytes: int, kinds: tuple[Values, ...]) -> None:
    for numel in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            values = [values_of(kind, numel, k).to(dtype) for k, kind in enumerate(kinds)]
            wanted, wanted_exponents = encoded(kinds, num_bytes, [v.float() for v in values])
            wanted_values = codes.decode(kinds, wanted, wanted_exponents)
            for isa in core.cpu_instruction_sets():
                what = f"of {numel} with {isa}"
                coded = [torch.full_like(c, 85) for c in wanted]
                exponents = torch.zeros_like(wanted_exponents)
                states = addresses_of(kinds, coded, exponents, values)
                core.cpu_encode(str(dtype)[6:], *states, 2, isa)
                assert_same_bits(exponents, wanted_exponents, f"exponents {what}")
                found = room_for(coded, offset=numel % 3)
                core.cpu_decode(*addresses_of(kinds, coded, exponents, found), 2, isa)
                for k in range(len(kinds)):
                    assert_same_bits(coded[k], wanted[k], f"codes {k} {what}")
                    assert_same_bits(found[k].float(), wanted_values[k], f"values {k} {what}")


@each_set
@each_width
def test_every_code_under_every_exponent(isa: str, num_bytes: int) -> None:
    """What no encoder made, too: the bytes of an overwritten state."""
    numel = 256 * codes.BLOCK * (1 if num_bytes == 1 else 8)
    generator = torch.Generator().manual_seed(num_bytes)
    coded = [
        torch.randint(1 << 8 * num_bytes, (numel,), generator=generator).to(
            codes.CODE_DTYPES[num_bytes]
        )
        for _ in KINDS
    ]
    exponents = torch.arange(numel // codes.BLOCK).unsqueeze(1).expand(-1, 3) % 256
    exponents = exponents.to(torch.uint8).contiguous()
    found = room_for(coded)
    core.cpu_decode(*addresses_of(KINDS, coded, exponents, found), 1, isa)
    for k, wanted in enumerate(codes.decode(KINDS, coded, exponents)):
        upper = wanted if num_bytes == 2 else (wanted.view(torch.int32) >> 16).to(torch.int16)
        got = found[k] if num_bytes == 2 else found[k].view(torch.int16)
        assert_same_bits(got, upper, f"values {k}")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Leaves the engine or the oracle alone to serve."""

    def only(backend: str) -> None:
        if backend == "oracle":
            monkeypatch.setattr(backends, "coder", lambda tensor: None)
        else:
            assert backends.coder(torch.zeros(1)) is not None
            monkeypatch.setattr(codes, "encode", lambda *_: pytest.fail("the oracle encoded"))
            monkeypatch.setattr(codes, "decode", lambda *_: pytest.fail("the oracle decoded"))

    return only


@each_backend
@each_width
@pytest.mark.parametrize(
    "dtypes",
    [(torch.float32,) * 3, (torch.float64,) * 3, (torch.float16, torch.bfloat16, torch.float32)],
    ids=["float32", "float64", "mixed"],
)
def test_slices_and_dtypes_make_no_difference(
    backend: str,
    num_bytes: int,
    dtypes: tuple[torch.dtype, ...],
    serve: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numel = 1000
    values = [
        values_of(kind, numel, k).to(dtype)
        for k, (kind, dtype) in enumerate(zip(KINDS, dtypes, strict=True))
    ]
    expected, expected_exponents = encoded(KINDS, num_bytes, [v.float() for v in values])
    expected_values = codes.decode(KINDS, expected, expected_exponents)
    finite = [bool(v.isfinite().all()) for v in expected_values]
    serve(backend)
    monkeypatch.setattr(coding, "SLICE", 64)
    monkeypatch.setattr(coding, "LONG_SLICE", 96)
    coded, exponents = [torch.empty_like(c) for c in expected], torch.empty_like(expected_exponents)
    coding.encode(KINDS, values, coded, exponents)
    assert_same_bits(exponents, expected_exponents, "exponents")
    for got, wanted in zip(coded, expected, strict=True):
        assert_same_bits(got, wanted, "codes")
    found = room_for(coded)
    coding.decode(KINDS, coded, exponents, found)
    for got, value in zip(found, expected_values, strict=True):
        torch.testing.assert_close(got.float(), value, rtol=0, atol=0, equal_nan=True)
    assert [flag.item() for flag in coding.are_finite(KINDS, coded, exponents)] == finite


@each_backend
@pytest.mark.parametrize("state_format", ["8bit", "16bit"])
def test_a_state_dict_goes_out_and_comes_back(
    state_format: str, backend: str, serve: Callable[[str], None]
) -> None:
    torch.manual_seed(5)
    optimizer = stepped(state_format)
    (entries,) = optimizer.state.values()
    before = {name: value.clone() for name, value in entries.items()}
    serve(backend)
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    (entries,) = optimizer.state.values()
    values = optimizer.state_dict()["state"][0]
    for name in AdaMod.rule.states:
        assert_same_bits(values[name], saved["state"][0][name], name)
        assert entries[name].dtype == before[name].dtype


def stepped(state_format: str) -> AdaMod:
    param = torch.nn.Parameter(torch.randn(70, 65))
    optimizer = AdaMod([param], state_format=state_format)
    for _ in range(3):
        param.grad = torch.randn(70, 65)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("state_format", ["8bit", "16bit"])
@pytest.mark.parametrize("name", AdaMod.rule.states)
def test_check_finite_names_the_state(state_format: str, name: str) -> None:
    optimizer = stepped(state_format)
    optimizer.check_finite()
    saved = optimizer.state_dict()
    saved["state"][0][name][69, 64] = torch.inf
    optimizer.load_state_dict(saved)
    with pytest.raises(FloatingPointError, match=rf"{name} of .* holds inf or NaN$"):
        optimizer.check_finite()


def test_a_code_that_is_none_of_inf_can_still_be_rounded_to_it() -> None:
    """The largest exponents: a block's largest code may stand for inf without being its code."""
    x = torch.full((32,), torch.finfo(torch.float32).max)
    coded, exponents = encoded((Values.OF_BOTH_SIGNS,), 1, [x])
    assert coded[0][0] < 62  # the code of inf
    flags = coding.are_finite((Values.OF_BOTH_SIGNS,), coded, exponents)
    values = codes.decode((Values.OF_BOTH_SIGNS,), coded, exponents)
    assert flags[0] == values[0].isfinite().all()
    assert not flags[0]


def test_what_lies_elsewhere_stays_with_the_oracle() -> None:
    assert backends.coder(torch.zeros(1, device="meta")) is None


def bad_states() -> dict[str, tuple[Any, ...]]:
    coded, exponents = encoded(KINDS, 1, [torch.ones(40)] * 3)
    values = room_for(coded)
    short = coded[0][:8]
    return {
        "codes of another length": ([short, *coded[1:]], exponents, values),
        "values of another length": (coded, exponents, [*values[:2], values[2][:39]]),
        "too few codes": (coded[:2], exponents, values),
        "too few values": (coded, exponents, values[:2]),
        "codes of two dtypes": ([coded[0].to(torch.int16), *coded[1:]], exponents, values),
        "too few exponents": (coded, exponents[:1], values),
        "exponents of another dtype": (coded, exponents.to(torch.int32), values),
        "exponents with gaps": (coded, exponents.repeat(1, 2)[:, ::2], values),
        "values with gaps": (coded, exponents, [*values[:2], values[2].repeat(2)[::2]]),
        "another device": (coded, exponents, [*values[:2], values[2].to("meta")]),
    }


@pytest.mark.parametrize("case", bad_states())
def test_bad_states_are_refused_before_memory_is_touched(case: str) -> None:
    coded, exponents, values = bad_states()[case]
    with pytest.raises(ValueError, match="as many elements each"):
        coding.decode(KINDS, coded, exponents, values)
    with pytest.raises(ValueError, match="as many elements each"):
        coding.encode(KINDS, values, coded, exponents)


def test_values_of_another_dtype_than_the_codes_have() -> None:
    coded, exponents = encoded(KINDS, 1, [torch.ones(40)] * 3)
    with pytest.raises(ValueError, match=r"codes of torch.uint8 become torch.bfloat16"):
        coding.decode(KINDS, coded, exponents, [c.float() for c in coded])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kinds": [1, 1, 2]}, "the first state has no state before it"),
        ({"kinds": [0, 1, 3]}, "there is no kind of values 3"),
        ({"kinds": [0, 1, 2, 0]}, "at most 3 states; got 4 kinds, 3 codes and 3 values"),
        ({"kinds": [], "codes": [], "values": []}, "a parameter has 1 to 3 states, got 0"),
        ({"num_bytes": 4}, "a code takes 1 or 2 bytes, got 4"),
        ({"instruction_set": "mmx"}, "does not run instruction set mmx"),
    ],
)
def test_the_engine_refuses_what_there_is_not(changed: dict[str, Any], message: str) -> None:
    states = {"kinds": [0, 1, 2], "num_bytes": 1, "codes": [0] * 3, "values": [0] * 3}
    others = {"exponents": 0, "numel": 0, "threads": 1, "instruction_set": "baseline"}
    given = {**states, **others, **changed}
    for call in (core.cpu_decode, lambda **given: core.cpu_encode("float32", **given)):
        with pytest.raises(ValueError, match=message):
            call(**given)
    with pytest.raises(ValueError, match="float32 or bfloat16, got float64"):
        core.cpu_encode("float64", **states, **others)


@pytest.mark.parametrize("state_format", ["8bit", "16bit"])
def test_memory_beside_the_result_is_little(state_format: str) -> None:
    """No copy of all values on the way: what is taken is what stays."""
    numel = 1 << 21
    param = torch.nn.Parameter(torch.randn(numel))
    optimizer = AdaMod([param], state_format=state_format)
    param.grad = torch.randn(numel)
    optimizer.step()
    with Allocations() as allocations:
        saved = optimizer.state_dict()
    entries = saved["state"][0]
    result = sum(entries[name].nbytes for name in AdaMod.rule.states)
    assert 1 <= allocations.bytes / result < 1.01
    with Allocations() as allocations:
        optimizer.load_state_dict(saved)
    (entries,) = optimizer.state.values()
    result = sum(entries[name].nbytes for name in (*AdaMod.rule.states, EXPONENTS))
    assert 1 <= allocations.bytes / result < 1.01


class Allocations(TorchDispatchMode):
    """Keeps all tensors that operators make: no more can have been in use at once."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self._made[tensor.untyped_storage().data_ptr()] = tensor
        return result

    @property
    def bytes(self) -> int:
        """Those of masks aside, which checks make and free one after another."""
        made = (tensor for tensor in self._made.values() if tensor.dtype is not torch.bool)
        return sum(tensor.untyped_storage().nbytes() for tensor in made)
