"""The CUDA engine, run on the host: steps counted and scalars prepared on the device.

The oracle is the step with the scalars that Python prepares, of the same count: its bits.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch
from cuda_batches import DTYPES, HYPERPARAMETERS, Batch, scalars_at
from helpers import assert_same_bits

SIZES = (0, 5, 1, 8193, 0, 300, 20000, 0)
STARTS = (0, 0, 3, 0, 7, 999, 123_456, 2**20)  # counts before the first step

# One param group each; all hyperparameters differ, none is at its default.
GROUPS = [
    {"lr": 3e-3, "weight_decay": 0.1, "beta3": 0.97, "maximize": False},
    {"lr": 0.7e-3, "betas": (0.85, 0.9995), "variant": "released", "eps": 1e-5},
    {"lr": 0.1, "betas": (0.0, 0.5), "beta3": 0.0, "variant": "released", "maximize": False},
]

# struct Group of csrc/engine/row.h; the values in the order of AdaMod::Hyperparameters.
GROUP = np.dtype([("values", "f8", 8), ("addresses", "i8", 8), ("wide", "i8")])
POSITION = {"lr": 0, "beta1": 1, "beta2": 2, "beta3": 3, "eps": 4, "weight_decay": 5}


class Counted(Batch):
    """A batch whose step counts, and what tensors among its hyperparameters, are on the device.

    Args:
        groups: hyperparameters of each group, where they are not HYPERPARAMETERS.
        starts: the count of each row.
    """

    def __init__(self, engine, dtype, sizes, groups, starts, seed=0):
        super().__init__(engine, dtype, sizes, scalar_of_row=list(range(len(sizes))), seed=seed)
        self.groups = [HYPERPARAMETERS | group for group in groups]
        self.steps = torch.tensor(starts, dtype=torch.float32)
        self.expected_steps = list(starts)
        self.group_of_row = [row % len(groups) for row in range(len(sizes))]
        self.tensors_of_groups = {}

    def put(self, group, name, value, dtype):
        """Makes a hyperparameter a tensor, or changes the tensor that it is."""
        tensor = self.tensors_of_groups.setdefault((group, name), torch.empty((), dtype=dtype))
        tensor.fill_(value)
        value = tensor.double().item()
        if name.startswith("beta") and name != "beta3":
            betas = list(self.groups[group]["betas"])
            betas[int(name[-1]) - 1] = value
            self.groups[group]["betas"] = tuple(betas)
        else:
            self.groups[group][name] = value

    def _group(self, index):
        group = self.groups[index]
        values = [group["lr"], *group["betas"]]
        values += [group[name] for name in ("beta3", "eps", "weight_decay")]
        values += [group["maximize"], group["variant"] == "released"]
        addresses = [0] * 8
        wide = 0
        for (owner, name), tensor in self.tensors_of_groups.items():
            if owner == index:
                values[POSITION[name]] = np.nan
                addresses[POSITION[name]] = tensor.data_ptr()
                wide |= (tensor.dtype == torch.float64) << POSITION[name]
        return tuple(values), tuple(addresses), wide

    def enqueue_counted(self, stream=0, control=0):
        self.enqueued.append(self)
        rows = self.rows.copy()
        first = self.steps.data_ptr()
        counts = np.array([[first + 4 * i, g] for i, g in enumerate(self.group_of_row)], np.int64)
        groups = np.array([self._group(i) for i in range(len(self.groups))], GROUP)
        assert groups.itemsize == 17 * 8
        self.engine.step(
            "adamod",
            self.dtype,
            rows.ctypes.data,
            len(rows),
            0,
            0,
            self.num_chunks,
            0,
            stream,
            control=control,
            counts=counts.ctypes.data,
            groups=groups.ctypes.data,
            num_groups=len(groups),
        )
        rows[:] = counts[:] = -1
        groups["values"] = groups["addresses"] = groups["wide"] = -1

    def expect_counted(self, grad_scale=1.0):
        self.expected_steps = [step + 1 for step in self.expected_steps]
        scalars = [
            scalars_at(step, **self.groups[group])
            for step, group in zip(self.expected_steps, self.group_of_row, strict=True)
        ]
        self.expect(scalars, grad_scale)

    def check(self):
        super().check()
        assert self.steps.tolist() == self.expected_steps


def counted(engine, dtype="float32", sizes=SIZES, groups=GROUPS, starts=STARTS):
    return Counted(engine, dtype, sizes, groups, starts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scalars_are_those_of_python(engine, runtime, dtype):
    batch = counted(engine, dtype)
    for _ in range(5):
        batch.new_grads()
        batch.enqueue_counted()
        batch.expect_counted()
        runtime.emulation_synchronize()
        batch.check()


def test_a_step_is_two_launches_and_one_copy(engine, runtime):
    def done():
        return runtime.emulation_launches(), runtime.emulation_copies()

    batch = counted(engine)
    launches, copies = done()
    batch.enqueue_counted()
    assert done() == (launches + 2, copies + 1)


def test_more_rows_than_a_block_has_threads(engine, runtime):
    sizes = [(i * 7) % 5 for i in range(600)]
    batch = counted(engine, sizes=sizes, starts=[i % 11 for i in range(600)])
    for _ in range(2):
        batch.enqueue_counted()
        batch.expect_counted()
    runtime.emulation_synchronize()
    batch.check()


def test_steady_state_neither_allocates_nor_waits(engine, runtime):
    batch = counted(engine)

    def steps(count):
        for _ in range(count):
            batch.enqueue_counted()
            batch.expect_counted()
            runtime.emulation_synchronize()

    steps(9)
    before = runtime.emulation_allocations(), runtime.emulation_waits()
    steps(10)
    assert (runtime.emulation_allocations(), runtime.emulation_waits()) == before
    batch.check()


def test_rows_without_elements_count_too(engine, runtime):
    batch = counted(engine, sizes=(0, 0, 0), starts=(0, 5, 9))
    launches = runtime.emulation_launches()
    batch.enqueue_counted()
    batch.expect_counted()
    runtime.emulation_synchronize()
    batch.check()
    assert batch.steps.tolist() == [1, 6, 10]
    assert runtime.emulation_launches() == launches + 1, "there is nothing to update"


def test_nothing_to_count_launches_nothing(engine, runtime):
    launches = runtime.emulation_launches()
    counted(engine, sizes=(), starts=()).enqueue_counted()
    assert runtime.emulation_launches() == launches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("names", [["lr"], ["beta2"], list(POSITION)], ids=str)
def test_tensors_among_the_hyperparameters_are_read_at_every_step(engine, runtime, dtype, names):
    """A float32 tensor's value is widened, so the step is that of another number than 1e-3."""
    batch = counted(engine)
    other = {torch.float32: torch.float64, torch.float64: torch.float32}[dtype]
    for step in range(4):
        for name in names:
            batch.put(1, name, 0.07 + 0.11 * step, dtype)
        batch.put(2, "lr", 1e-3 * (step + 1), other)
        batch.new_grads()
        batch.enqueue_counted()
        batch.expect_counted()
        runtime.emulation_synchronize()
        batch.check()


def test_a_step_that_skips_does_not_count(engine, runtime):
    batch = counted(engine)
    told = torch.tensor([0.5, 0.0])
    for skip in (0.0, 1.0, 0.0, 1.0, 1.0, 0.0):
        told[1] = skip
        batch.new_grads()
        batch.enqueue_counted(control=told.data_ptr())
        if not skip:
            batch.expect_counted(0.5)
        runtime.emulation_synchronize()
        batch.check()


def test_replays_are_steps_of_their_own(engine, runtime):
    """Each counts, and reads gradients, lr and what it is told as they are at its time."""
    stream = 7
    batch, other = counted(engine), counted(engine, sizes=(3,) * 20, starts=(0,) * 20)
    told = torch.tensor([1.0, 0.0])
    batch.put(0, "lr", 1e-3, torch.float32)
    batch.put(1, "lr", 1e-3, torch.float64)
    runtime.emulation_begin_capture(ctypes.c_void_p(stream))
    batch.enqueue_counted(stream, told.data_ptr())
    runtime.emulation_end_capture()
    assert batch.steps.tolist() == list(STARTS), "in a capture nothing runs"
    for replay in range(1, 7):
        for _ in range(9):  # these may take any slot, but not the graph's
            other.enqueue_counted()
            other.expect_counted()
        batch.put(0, "lr", 1e-3 * replay, torch.float32)
        batch.put(1, "lr", 0.1 / replay, torch.float64)
        told.copy_(torch.tensor([1.0 / replay, float(replay == 4)]))
        batch.new_grads()
        runtime.emulation_replay(ctypes.c_void_p(stream))
        if replay != 4:
            batch.expect_counted(told[0].clone())
        runtime.emulation_synchronize()
        batch.check()
    other.check()


def test_both_ways_give_the_same_bits(engine, runtime):
    """Scalars from the host, by value; and from the device."""
    here, there = Batch(engine, "bfloat16", SIZES), counted(engine, "bfloat16", groups=[{}])
    there.steps.zero_()
    for step in range(1, 6):
        here.new_grads()
        there.new_grads()
        here.enqueue([scalars_at(step)])
        there.enqueue_counted()
        runtime.emulation_synchronize()
        for mine, others in zip(here.tensors, there.tensors, strict=True):
            for a, b in zip(mine, others, strict=True):
                assert_same_bits(a.tensor, b.tensor, f"after step {step}")
