"""What a run of the benchmark measures: the order, and who is left out of which list."""

from __future__ import annotations

import math

import pytest
import torch

from adamod_fused.formats import DEFAULTS
from bench import plan
from bench.contestants import Contestant, named
from bench.lists import LISTS

CPU = torch.device("cpu")
FP32, BF16 = torch.float32, torch.bfloat16


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_matters_most_comes_first(device: str) -> None:
    jobs = plan.jobs(device, [FP32, BF16])
    assert len(set(jobs)) == len(jobs)
    names = [job.params.name for job in jobs]
    first = plan.FIRST[device]
    assert jobs[:4] == [plan.Job(LISTS[name], FP32) for name in first]
    sweeps = [job for job in jobs if job.params.name.startswith(("size-", "tensors-"))]
    assert jobs[4 : 4 + len(sweeps)] == sweeps
    assert jobs[4 + len(sweeps) :][:4] == [plan.Job(LISTS[name], BF16) for name in first]
    assert {job.dtype for job in sweeps} == {FP32}
    largest = {"cpu": "size-1e8", "cuda": "size-1e9"}[device]
    assert [job.params.name for job in sweeps][:-5][-1] == largest
    for name, params in LISTS.items():
        assert names.count(name) == (2 if device in params.devices else 0)


def test_ours_in_fewer_bytes_are_measured_where_that_tells_something() -> None:
    coded, plain = named("adamod_fused cpu 8bit"), named("adamod_fused cpu")
    for device in ("cpu", "cuda"):
        fit = {
            job.params.name
            for job in plan.jobs(device, [FP32])
            if plan.unfit(coded, job, CPU) is None
        }
        assert {"gpt2-124m", "moe"} <= fit <= {*plan.CODED_LISTS}
        assert fit & {"single-50m", "single-1g"}
        assert sum(LISTS[name].numel for name in fit) > 30e6
    small = plan.Job(LISTS["small-1000"], FP32)
    assert "single-50m" in plan.unfit(coded, small, CPU)
    assert plan.unfit(coded, small, CPU, patient=True) is None
    assert plan.unfit(plain, small, CPU) is None
    quick = [job.params.name for job in plan.jobs("cpu", [FP32], quick=True)]
    assert {*quick} & {*plan.CODED_LISTS} == {"resnet50"}


def test_small_tensors_of_the_measured_lists_are_coded() -> None:
    numels = sorted(math.prod(shape) for shape in LISTS["moe"].shapes)
    assert numels[len(numels) // 10] >= DEFAULTS["min_coded_numel"]


def test_what_launches_for_every_tensor_gets_few_tensors_on_a_gpu() -> None:
    slow = Contestant("", "", lambda _: None, lambda *_: None, one_by_one=True)
    few, many = (plan.Job(LISTS[name], FP32) for name in ("gpt2-124m", "small-10000"))
    assert plan.unfit(slow, few, torch.device("cuda")) is None
    assert "each of 10,000 tensors" in plan.unfit(slow, many, torch.device("cuda"))
    assert plan.unfit(slow, many, CPU) is None


def test_contestants_that_compile_for_each_shape_get_few_shapes() -> None:
    slow = Contestant(
        "", "", lambda _: None, lambda *_: None, slow_start="it compiles", slow_for_each_shape=True
    )
    fit = plan.Job(LISTS["small-1000"], FP32)
    unfit = plan.Job(LISTS["resnet50"], FP32)
    assert plan.unfit(slow, fit, CPU) is None
    assert plan.unfit(slow, unfit, CPU) == "it compiles; the list has 28 shapes"
    assert plan.unfit(slow, unfit, CPU, patient=True) is None
