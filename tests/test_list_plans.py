"""What is kept between two steps on lists of a caller: a plan, no tensor, and nothing unchecked."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import OPTIONS, STATES, assert_same_bits, launching, random_params
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from adamod_fused import AdaMod, functional, list_plans, lists
from adamod_fused.backends.cpu import CpuBackend
from adamod_fused.compiled import as_operand

SHAPES = ((3, 4), (), (7,), (0,), (2, 3, 4, 5))
NAMES = ("params", "grads", *STATES, "steps")
coded_operator = torch.ops.adamod_fused.adamod_coded_.default


class Lists(dict[str, list[Tensor]]):
    """The arguments of a functional step, made new, and its twin, which the reference steps."""

    def __init__(self, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> None:
        params = [param.detach() for param in random_params(*shapes, dtype=dtype)]
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        super().__init__(
            params=params,
            grads=[torch.randn_like(param) for param in params],
            **{name: [torch.full_like(p, 0.01, dtype=compute) for p in params] for name in STATES},
            steps=[torch.tensor(3.0) for _ in params],
        )

    def tensors(self) -> list[Tensor]:
        return [tensor for name in NAMES for tensor in self[name]]

    def twin(self) -> Lists:
        twin = Lists()
        twin.update({name: [t.clone() for t in tensors] for name, tensors in self.items()})
        return twin

    def step(self, **options: Any) -> None:
        options = {**OPTIONS, **options}
        betas = options.pop("betas")
        functional.adamod(
            *(self[name] for name in NAMES), beta1=betas[0], beta2=betas[1], **options
        )

    def check_step(self, **options: Any) -> None:
        """One step has the bits of the reference, which keeps no plans."""
        twin = self.twin()
        twin.step(**{**options, "backend": "reference"})
        self.step(**options)
        for i, (a, b) in enumerate(zip(self.tensors(), twin.tensors(), strict=True)):
            assert_same_bits(a, b, f"tensor {i}")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An item for each plan that is made of tensors that a kernel is to step; none is kept yet."""
    made: list[int] = []
    make_table = list_plans.ListPlan._make_table

    def counted(self: Any, *arguments: Any) -> Any:
        made.append(1)
        return make_table(self, *arguments)

    monkeypatch.setattr(list_plans.ListPlan, "_make_table", counted)
    monkeypatch.setattr(lists, "_plans", list_plans.KeptPlans())
    return made


def test_the_same_tensors_are_planned_once(made: list[int]) -> None:
    given = Lists(*SHAPES)
    for _ in range(4):
        given.check_step()
    assert len(made) == 1


def replace_params(given: Lists) -> None:
    given["params"] = [param.clone() for param in given["params"]]


def replace_all(given: Lists) -> None:
    given.update(given.twin())


def swap_data(given: Lists) -> None:
    for tensor in given.tensors():
        tensor.data = tensor.data.clone() + 1


def as_parameters(given: Lists) -> None:
    given["params"] = [torch.nn.Parameter(param) for param in given["params"]]


def new_grads_with_gaps(given: Lists) -> None:
    given["grads"] = [torch.stack([g, g + 1], dim=-1)[..., 0] for g in given["grads"]]


def as_tuples(given: Lists) -> None:
    given.update({name: tuple(tensors) for name, tensors in given.items()})


FITS = [replace_params, replace_all, swap_data, as_parameters, new_grads_with_gaps, as_tuples]


@pytest.mark.parametrize("change", FITS)
def test_a_plan_is_for_any_tensors_like_those_that_it_was_made_of(
    change: Callable[[Lists], None], made: list[int]
) -> None:
    given = Lists(*SHAPES)
    given.check_step()
    change(given)
    given.check_step()
    given.check_step()
    assert len(made) == 1


def shorten(given: Lists) -> None:
    for tensors in given.values():
        tensors.pop()


def transpose(given: Lists) -> None:
    given["params"][0] = given["params"][0].t().contiguous().t()


def states_in_another_layout(given: Lists) -> None:
    given["exp_avg"][0] = given["exp_avg"][0].t().contiguous().t()


def another_shape(given: Lists) -> None:
    for name in NAMES[:-1]:
        given[name][2] = given[name][2].new_full((2, 4), 0.5)


def another_dtype(given: Lists) -> None:
    for name in ("params", "grads"):
        given[name] = [tensor.bfloat16() for tensor in given[name]]


OTHERS = [shorten, transpose, states_in_another_layout, another_shape, another_dtype]


@pytest.mark.parametrize("change", OTHERS)
def test_other_tensors_have_another_plan(change: Callable[[Lists], None], made: list[int]) -> None:
    given = Lists(*SHAPES)
    given.check_step()
    change(given)
    given.check_step(backend="cpu")
    assert len(made) == 2
    given.check_step(backend="cpu")


@pytest.mark.parametrize(
    "options", [{"lr": 0.5}, {"variant": "released"}, {"maximize": True}, {"weight_decay": 0.0}]
)
def test_hyperparameters_belong_to_a_call(options: dict[str, Any], made: list[int]) -> None:
    given = Lists(*SHAPES)
    given.check_step()
    given.check_step(**options)
    given.check_step()
    assert len(made) == 1


def test_another_backend_is_another_plan(made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    given = Lists(*SHAPES)
    given.check_step()
    given.check_step(backend="cpu")
    assert len(made) == 2
    runs: list[int] = []
    counted = launching(lambda *_: runs.append(1))
    monkeypatch.setattr(CpuBackend, "launcher", counted)
    given.step(backend="reference")
    assert not runs
    with pytest.raises(RuntimeError, match="backend 'cuda' does not work here"):
        given.step(backend="cuda")


@pytest.mark.parametrize("backend", [["cpu"], {}, 1, "tpu"], ids=repr)
def test_a_bad_backend_is_refused_whatever_was_planned(backend: Any, made: list[int]) -> None:
    given = Lists(*SHAPES)
    for _ in range(2):
        with pytest.raises(ValueError, match="backend must be one of"):
            given.step(backend=backend)
        given.check_step()
    assert len(made) == 1


def test_a_keyword_that_equals_a_good_one_is_refused(made: list[int]) -> None:
    given = Lists(*SHAPES)
    tensors = [given[name] for name in NAMES]
    values = {**OPTIONS, "variant": "paper", "maximize": False}
    lists.step(AdaMod.rule, tensors, values, "cpu", fused=True)
    with pytest.raises(TypeError, match="fused must be None, True or False, got 1"):
        lists.step(AdaMod.rule, tensors, values, "cpu", fused=1)  # type: ignore[arg-type]
    assert len(made) == 1


def test_plans_of_lists_that_differ_in_shapes_are_kept_at_a_time(made: list[int]) -> None:
    several = [Lists((n,)) for n in range(1, 6)]
    for given in several * 3:
        given.check_step()
    assert len(made) == len(several)


def test_no_tensor_is_kept_alive(made: list[int]) -> None:
    """None needs the garbage collector either."""
    for _ in range(2):
        given = Lists(*SHAPES)
        for _ in range(2):
            given.step()
        references = [weakref.ref(tensor) for tensor in given.tensors()]
        del given
        assert [reference() for reference in references] == [None] * len(references)
    assert len(made) == 1


def test_no_tensor_is_kept_alive_by_a_step_that_failed(
    made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Lists(*SHAPES)
    given.step()

    def fail(*_: Any) -> None:
        raise RuntimeError("the launch failed")

    with monkeypatch.context() as patch:
        patch.setattr(CpuBackend, "launcher", launching(fail))
        for _ in range(2):  # with a kept plan, and with a new one
            with pytest.raises(RuntimeError, match="the launch failed"):
                given.step()
    given.check_step()
    references = [weakref.ref(tensor) for tensor in given.tensors()]
    del given
    assert [reference() for reference in references] == [None] * len(references)


def test_as_many_plans_as_are_said_are_kept() -> None:
    kept = list_plans.KeptPlans()
    plans = [object() for _ in range(list_plans.MAX_KINDS + 3)]
    for kind, plan in enumerate(plans):
        kept.put(kind, plan)  # type: ignore[arg-type]
        assert kept.take(0) is plans[0]  # is used all the time
        kept.put(0, plans[0])  # type: ignore[arg-type]
    assert [kept.take(kind) for kind in range(1, 4)] == [None] * 3
    assert kept.take(4) is plans[4]
    assert kept.take(4) is None  # as long as a call has it


# What may not be stepped is refused whatever was seen before.


def twice(given: Lists, name: str) -> None:
    given[name][4] = given[name][0]


ERRORS: list[tuple[str, Callable[[Lists], None], str]] = [
    ("a parameter twice", lambda g: twice(g, "params"), "params holds a tensor twice"),
    (
        "an empty one twice",
        lambda g: g["params"].__setitem__(1, g["params"][3]),
        "params holds a tensor twice",
    ),
    (
        "memory shared by parameters",
        lambda g: g["params"].__setitem__(2, g["params"][4].view(-1)[5:12]),
        "share memory",
    ),
    (
        "memory shared by states",
        lambda g: g["exp_avg"].__setitem__(2, g["exp_avg_lr"][2]),
        "exp_avg of .* and exp_avg_lr of .* share memory",
    ),
    ("a step count twice", lambda g: twice(g, "steps"), "step of .* and step of .* share memory"),
    ("a sparse gradient", lambda g: g["grads"].__setitem__(0, g["grads"][0].to_sparse()), "sparse"),
    ("a sparse state", lambda g: g["exp_avg"].__setitem__(0, torch.ones(3, 4).to_sparse()), "spar"),
    ("no tensor", lambda g: g["exp_avg"].__setitem__(0, 0.5), r"exp_avgs\[0\] must be a tensor"),
    ("one too few", lambda g: g["exp_avg"].pop(), "exp_avgs has 4 tensors, params 5"),
    ("one too many", lambda g: g["grads"].append(torch.ones(())), "grads has 6 tensors, params 5"),
    ("a step too far", lambda g: g["steps"][0].fill_(2.0**25), "step of parameter 0"),
    ("half a state", lambda g: g["exp_avg"].__setitem__(0, torch.ones(3, 4).half()), "float16"),
    (
        "negated",
        lambda g: g["params"].__setitem__(0, torch._neg_view(g["params"][0])),
        "lazily negated",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), [pytest.param(*e[1:], id=e[0]) for e in ERRORS])
def test_errors_are_those_of_a_first_step(
    spoil: Callable[[Lists], None], message: str, made: list[int]
) -> None:
    given = Lists((3, 4), (0,), (7,), (0,), (3, 4))
    given.check_step()
    spoil(given)
    tensors = [t for t in given.tensors() if isinstance(t, Tensor) and t.layout is torch.strided]
    tensors = [tensor for tensor in tensors if not tensor.is_neg()]
    before = [tensor.clone() for tensor in tensors]
    for _ in range(2):
        with pytest.raises((TypeError, ValueError, RuntimeError), match=message):
            given.step()
    for tensor, old in zip(tensors, before, strict=True):
        assert_same_bits(tensor, old)


def test_real_tensors_are_refused_in_fake_tensor_mode(made: list[int]) -> None:
    given = Lists(*SHAPES)
    given.check_step()
    with FakeTensorMode(), pytest.raises(RuntimeError, match="FakeTensorMode is on"):
        given.step()
    given.check_step()


@pytest.mark.parametrize("name", ["params", "exp_avg", "steps"])
def test_inference_tensors_are_refused(name: str, made: list[int]) -> None:
    given = Lists(*SHAPES)
    given.check_step()
    with torch.inference_mode():
        given[name][2] = given[name][2].clone()
    with pytest.raises(RuntimeError, match="is an inference tensor"):
        given.step()


def test_a_storage_that_shrank_is_refused(made: list[int]) -> None:
    given = Lists((6,), (6,))
    given.check_step()
    given["exp_avg"][1].untyped_storage().resize_(16)
    with pytest.raises(ValueError, match=r"exp_avg of parameter 1 .* a storage of 16 bytes"):
        given.step()


def test_views_that_interleave_are_stepped(made: list[int]) -> None:
    given = Lists((8,), (8,))
    given.check_step()
    columns = torch.stack(given["params"], dim=1)
    given["params"] = [columns[:, 0], columns[:, 1]]
    for _ in range(2):
        given.check_step()
    given["params"][1] = columns[:, 0].detach()
    with pytest.raises(ValueError, match="share memory"):
        given.step()


def test_memory_is_looked_at_where_addresses_change(made: list[int]) -> None:
    """The tensors are the same, what they lie in is not: then it is, and then again is not."""
    given = Lists((6,), (6,))
    for _ in range(2):
        given.check_step()
        own = given["exp_avg"][1].data
        given["exp_avg"][1].data = given["exp_avg"][0].data[:]
        with pytest.raises(ValueError, match="share memory"):
            given.step()
        given["exp_avg"][1].data = own
    given.check_step()


# All formats.


def coded_arguments(formats: tuple[str, str], backend: str | None = None) -> dict[str, Any]:
    params = [p.detach() for p in random_params((7, 5), (3, 40), dtype=torch.bfloat16)]
    dtype = {"fp32": torch.float32, "16bit": torch.int16, "8bit": torch.uint8}[formats[0]]
    exponents = [torch.full(((p.numel() + 31) // 32, 3), 100, dtype=torch.uint8) for p in params]
    return {
        "params": params,
        "grads": [torch.randn_like(param) for param in params],
        **{f"{n}s": [torch.zeros_like(p, dtype=dtype) for p in params] for n in STATES},
        "state_steps": [torch.tensor(3.0) for _ in params],
        "block_exponents": exponents if formats[0] != "fp32" else [],
        "param_remainders": [torch.zeros_like(p, dtype=torch.int16) for p in params]
        if formats[1] == "split"
        else [],
        **{name: as_operand(value) for name, value in OPTIONS.items()},
        "state_format": formats[0],
        "weight_format": formats[1],
        "min_coded_numel": 0,
        "backend": backend,
    }


def copied(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [t.clone() if isinstance(t, Tensor) else t for t in value]
        if isinstance(value, list)
        else value
        for name, value in arguments.items()
    }


def check_coded_step(arguments: dict[str, Any]) -> None:
    twin = copied(arguments)
    coded_operator(**(twin | {"backend": "reference"}))
    coded_operator(**arguments)
    for name in ("params", "state_steps", "block_exponents", "param_remainders"):
        for a, b in zip(arguments[name], twin[name], strict=True):
            assert_same_bits(a, b, name)


@pytest.mark.parametrize("formats", [("8bit", "split"), ("16bit", "plain"), ("fp32", "stochastic")])
def test_all_formats(formats: tuple[str, str], made: list[int]) -> None:
    arguments = coded_arguments(formats)
    for _ in range(2):
        check_coded_step(arguments)
    check_coded_step(copied(arguments))
    assert len(made) == 1
    check_coded_step(arguments | {"ordinals": [5, 3]})
    check_coded_step(arguments | {"seed": 9})
    check_coded_step(arguments)
    assert len(made) == 3


@pytest.mark.parametrize("exponent", [0, 255])
def test_exponents_are_looked_at_in_every_call(exponent: int, made: list[int]) -> None:
    arguments = coded_arguments(("8bit", "split"))
    check_coded_step(arguments)
    arguments["block_exponents"][1][2, 1] = exponent
    before = copied(arguments)
    with pytest.raises(ValueError, match=f"of parameter 1 of group 0 is {exponent} for"):
        coded_operator(**arguments)
    for name in ("params", "state_steps", "block_exponents", "param_remainders"):
        for a, b in zip(arguments[name], before[name], strict=True):
            assert_same_bits(a, b, name)


# More than one call at a time.


def test_a_call_inside_a_call_has_its_own_plan(
    made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    outer, inner = Lists(*SHAPES), Lists(*SHAPES)
    outer.step()
    twins = [given.twin() for given in (outer, inner)]
    calls = itertools.count()

    def launch_after_another(launch: Callable[[], None], *_: Any) -> None:
        if next(calls) == 0:
            inner.step()
        launch()

    with monkeypatch.context() as patch:
        patch.setattr(CpuBackend, "launcher", launching(launch_after_another))
        outer.step()
    for twin in twins:
        twin.step(backend="reference")
    for given, twin in zip((outer, inner), twins, strict=True):
        for a, b in zip(given.tensors(), twin.tensors(), strict=True):
            assert_same_bits(a, b)
    assert len(made) == 2
    for _ in range(2):
        outer.step()
    assert len(made) == 2


def test_several_threads_at_once() -> None:
    """On lists of one kind, and of several."""
    several = [Lists((20_000,), (3, n % 2 + 1)) for n in range(4)]
    twins = [given.twin() for given in several]

    def train(given: Lists) -> None:
        for _ in range(20):
            given.step(backend="cpu")

    threads = [threading.Thread(target=train, args=(given,)) for given in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for given, twin in zip(several, twins, strict=True):
        train(twin)
        for a, b in zip(given.tensors(), twin.tensors(), strict=True):
            assert_same_bits(a, b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another thread was inside a step when it was forked."""
    given, busy = Lists((5,)), Lists((5,))
    given.step()
    launcher, statuses = CpuBackend.launcher, []

    def launch_while_forked(launch: Callable[[], None], *_: Any) -> None:
        monkeypatch.setattr(CpuBackend, "launcher", launcher)
        child = os.fork()
        if child == 0:
            for _ in range(2):
                given.step()
            os._exit(0 if given["steps"][0] == 6 else 1)
        timer = threading.Timer(30, os.kill, (child, 9))
        timer.start()
        statuses.append(os.waitpid(child, 0)[1])
        timer.cancel()
        launch()

    monkeypatch.setattr(CpuBackend, "launcher", launching(launch_while_forked))
    busy.step()
    assert statuses == [0]


@pytest.mark.usefixtures("nothing_compiled")  # or dynamo may have compiled too often
def test_a_step_that_is_compiled_plans_once(made: list[int]) -> None:
    optimizer = AdaMod(random_params(*SHAPES), **OPTIONS, backend="cpu")
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    optimizer.step()
    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        step()
    assert len(made) == 1
    assert {int(entries["step"]) for entries in optimizer.state.values()} == {4}
