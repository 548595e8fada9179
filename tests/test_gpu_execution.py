"""How a real GPU runs a step: on which stream, in how many launches, in a captured graph."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from cases import GROUPS
from helpers import assert_same_bits
from torch.profiler import ProfilerActivity, profile
from twins import GPU, Twins, on_each_backend, tensors

from adamod_fused.formats import STATE_FORMATS

pytestmark = pytest.mark.gpu

# GPU cycles: a fifth of a second at 2 GHz, far longer than the host needs to queue some steps.
LONG = 400_000_000

# Rows of the table: few, which the CUDA backend hands over by value, and more than it can so.
on_each_table = pytest.mark.parametrize("count", [7, 700])


def make_twins(
    backend: str, count: int, dtype: torch.dtype = torch.float32, seed: int = 1
) -> Twins:
    sizes = [(1, 5, 4096, 30_001)[i % 4] if i < 100 else 33 for i in range(count)]
    return Twins(backend, tensors(sizes, dtype, seed), seed=seed)


def warm_up(twins: Twins) -> None:
    """Eleven steps: compiles what is compiled, and leaves room for ten steps in flight."""
    twins.step()
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    for _ in range(10):
        twins.optimizer.step()
        twins.twin_optimizer.step()
    torch.cuda.synchronize()


@on_each_backend
@on_each_table
def test_a_step_runs_on_the_current_stream(backend: str, count: int) -> None:
    twins = make_twins(backend, count)
    warm_up(twins)
    twins.new_grads()
    arriving = [param.grad for param in twins.params]
    for param in twins.params:
        param.grad = torch.full_like(param, torch.nan)
    torch.cuda.synchronize()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG)
        torch._foreach_copy_([param.grad for param in twins.params], arriving)
        twins.optimizer.step()  # a step that does not wait for its turn sees NaN
        after = [param.detach().clone() for param in twins.params]
    twins.twin_optimizer.step()
    stream.synchronize()
    for i, (param, twin) in enumerate(zip(after, twins.twins, strict=True)):
        assert_same_bits(param, twin, f"parameter {i}, copied on the stream")
    twins.check()


@on_each_backend
@on_each_table
def test_two_optimizers_on_two_streams(backend: str, count: int) -> None:
    steps = 6
    both = [make_twins(backend, count, seed=seed) for seed in (1, 2)]
    streams = [torch.cuda.Stream() for _ in both]
    for twins in both:
        warm_up(twins)
    queued = []
    for twins in both:
        queued.append([])
        for _ in range(steps):
            twins.new_grads()
            twins.twin_optimizer.step()
            queued[-1].append([param.grad for param in twins.params])
    torch.cuda.synchronize()

    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LONG)  # so that the steps of both stand in line together
    for step in range(steps):
        for twins, stream, grads in zip(both, streams, queued, strict=True):
            for param, grad in zip(twins.params, grads[step], strict=True):
                param.grad = grad
            with torch.cuda.stream(stream):
                twins.optimizer.step()
    for stream in streams:
        stream.synchronize()
    for i, twins in enumerate(both):
        twins.check(f"of optimizer {i}")


@on_each_backend
@on_each_table
def test_a_step_does_not_wait(backend: str, count: int) -> None:
    twins = make_twins(backend, count)
    warm_up(twins)
    twins.new_grads()
    torch.cuda.synchronize()
    reached = torch.cuda.Event()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")  # torch's own waits raise; ours are seen by the sleep
    try:
        torch.cuda._sleep(LONG)
        reached.record()
        for _ in range(3):
            twins.optimizer.step()
        has_waited = reached.query()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert not has_waited
    for _ in range(3):
        twins.twin_optimizer.step()
    twins.check()


def allocations(backend: str) -> dict[str, int]:
    stats = torch.cuda.memory_stats()
    counts = {name: stats[name] for name in ("num_device_alloc", "reserved_bytes.all.current")}
    if backend == "cuda":  # the Triton backend takes its table from torch's cache at every step
        counts["allocation"] = stats["allocation.all.allocated"]
        counts["taken from the driver"] = -torch.cuda.mem_get_info()[0]
    if hasattr(torch.cuda, "host_memory_stats"):  # torch >= 2.8
        counts["num_host_alloc"] = torch.cuda.host_memory_stats().get("num_host_alloc", 0)
    return counts


@on_each_backend
@on_each_table
def test_steady_state_allocates_nothing(backend: str, count: int) -> None:
    twins = make_twins(backend, count)
    warm_up(twins)
    twins.new_grads()
    twins.optimizer.step()
    torch.cuda.synchronize()
    before = allocations(backend)
    for _ in range(8):
        twins.optimizer.step()
    torch.cuda.synchronize()
    assert allocations(backend) == before


Work = Callable[[], object]


@pytest.fixture(scope="session")
def device_work(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Work], Counter[str]]:
    """Counts what a function has the GPU do: "kernel", "gpu_memcpy" and "gpu_memset"."""
    trace = tmp_path_factory.mktemp("profile") / "trace.json"

    def count(work: Work) -> Counter[str]:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            work()
            torch.cuda.synchronize()
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
        kinds = ("kernel", "gpu_memcpy", "gpu_memset")
        return Counter(event["cat"] for event in events if event.get("cat") in kinds)

    probe = torch.zeros(1, device=GPU)
    if count(lambda: probe.add_(1)) != Counter(kernel=1):
        pytest.skip("torch.profiler (CUPTI) does not show the one kernel of a probe here")
    return count


def gpt2_shapes() -> list[tuple[int, ...]]:
    """The 148 parameters of GPT-2, each side an eighth."""
    width = 96
    norm = [(width,)] * 2
    attention = [(3 * width, width), (3 * width,), (width, width), (width,)]
    feed_forward = [(4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    block = [*norm, *attention, *norm, *feed_forward]
    return [(6282, width), (128, width), *block * 12, *norm]


@on_each_backend
@pytest.mark.parametrize("state_format", STATE_FORMATS)
def test_one_launch_for_a_model(state_format: str, backend: str, device_work) -> None:
    values = tensors(gpt2_shapes(), torch.float32, seed=3)
    assert len(values) == 148
    formats = {"state_format": state_format, "min_coded_numel": 0}
    twins = Twins(backend, values, groups=[group | formats for group in GROUPS])
    twins.step()
    twins.new_grads()
    copies = {"cuda": {}, "triton": {"gpu_memcpy": 1}}  # of the table, to the device
    assert device_work(twins.optimizer.step) == Counter(kernel=1, **copies[backend])
    twins.twin_optimizer.step()
    twins.check()


@on_each_backend
def test_one_launch_for_ten_thousand_tensors(backend: str, device_work) -> None:
    twins = Twins(backend, tensors([64] * 10_000, torch.float32, seed=4))
    twins.step()
    twins.new_grads()
    assert device_work(twins.optimizer.step) == Counter(kernel=1, gpu_memcpy=1)
    twins.twin_optimizer.step()
    twins.check()
