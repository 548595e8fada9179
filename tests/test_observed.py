"""A look at a step is the same on every backend, bit for bit: all segments, all that is kept."""

from __future__ import annotations

import math

import pytest
import torch
from cuda_batches import ROWS_BY_VALUE
from watched import STORED, Stored, check_looks, clip_all, expected_looks, looks

from adamod_fused import AdaMod
from adamod_fused.backends.cuda import CudaBackend
from adamod_fused.formats import PLAIN
from adamod_fused.observed import COUNTS, FLOATS, SEGMENT_SIZE

FP32 = Stored(torch.float32, PLAIN)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_kernel_sees_what_the_reference_sees(stored: Stored, kernel) -> None:
    backend, device = kernel
    check_looks(backend, stored, str(device))


def test_what_the_cases_hold() -> None:
    """Parity would prove little of columns that are always the same."""
    matrix = torch.cat([torch.cat([*seen.values()]) for seen, _ in expected_looks(FP32)])
    floats = matrix[:, : len(FLOATS)].contiguous().view(torch.float64)
    counts = matrix[:, len(FLOATS) : len(FLOATS) + len(COUNTS)]
    histograms = matrix[:, len(FLOATS) + len(COUNTS) :]
    assert (counts.sum(0) > 200).all()
    assert ((counts == 0).sum(0) > 5).all()
    assert (histograms.view(-1, 2, 64).sum(0) > 0).sum() > 40
    assert floats.isinf().any()  # extremes of a segment without a finite element
    assert not floats.isnan().any()


def test_float64_on_a_cpu() -> None:
    """Beside the reference, whose square root torch does not round correctly: see rtol.

    It may be off by one unit in the last place, 2^-52; a rate takes that over, and exp_avg_lr and
    the update from the rates. Sums are of numbers of one sign, and squares double what is off: with
    three roundings of a rate's own 2^-49 bounds it all.
    """
    stored = Stored(torch.float64, PLAIN)
    (_, seen), (_, wanted) = (next(looks(name, stored, steps=1)) for name in ("cpu", "reference"))
    assert seen.keys() == wanted.keys()
    for number, segments in wanted.items():
        assert torch.equal(seen[number][:, len(FLOATS) :], segments[:, len(FLOATS) :])
        pair = (
            m[:, : len(FLOATS)].contiguous().view(torch.float64) for m in (seen[number], segments)
        )
        torch.testing.assert_close(*pair, rtol=2.0**-49, atol=0)


@pytest.mark.parametrize("stored", [FP32, STORED[2]], ids=str)
def test_more_rows_than_a_table_by_value_holds(stored: Stored, kernel) -> None:
    backend, device = kernel
    sizes = [(i * 37) % 50 if i % 100 else 16384 + i for i in range(ROWS_BY_VALUE)]
    check_looks(backend, stored, str(device), sizes=tuple(sizes), steps=1)


@pytest.mark.parametrize("stored", [FP32, STORED[4]], ids=str)
def test_gradients_are_seen_as_the_step_uses_them(stored: Stored, kernel) -> None:
    backend, device = kernel
    check_looks(backend, stored, str(device), before_step=clip_all, steps=2)
    optimizer, _ = next(looks(backend, stored, str(device), before_step=clip_all, steps=1))
    norms = [row["grad_norm"] for row in optimizer.bound_stats("group")]
    assert math.hypot(*norms) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("stored", [FP32, STORED[4]], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
def test_a_skipped_step_leaves_the_former_look(
    capturable: bool, stored: Stored, emulated_as_cuda: CudaBackend
) -> None:
    """Whether the host knows that it was skipped, or only the device that counts the steps."""
    found = looks("cuda", stored, steps=4, before_step=skip_some, capturable=capturable)
    steps = [optimizer.bound_stats()[0]["step"] for optimizer, _ in found]
    assert steps == [1, 1, 2, 2]


def skip_some(optimizer: AdaMod) -> None:
    is_skipped = optimizer._tracker._done % 2 == 1
    optimizer.found_inf = torch.tensor(float(is_skipped))
    optimizer.grad_scale = torch.tensor(2.0)


@pytest.mark.parametrize("stored", [FP32, STORED[4]], ids=str)
def test_steps_counted_on_the_device(stored: Stored, emulated_as_cuda: CudaBackend) -> None:
    check_looks("cuda", stored, capturable=True)


@pytest.mark.parametrize("stored", [FP32, STORED[2], STORED[5]], ids=str)
def test_chunks_smaller_and_larger_than_a_segment(
    stored: Stored, tuned_as_cuda: CudaBackend
) -> None:
    assert tuned_as_cuda.chunk_size in (2048, 2 * SEGMENT_SIZE)
    check_looks("cuda", stored)


@pytest.mark.parametrize("threads", [1, 7])
def test_threads_do_not_matter(threads: int, one_thread: None) -> None:
    torch.set_num_threads(threads)
    check_looks("cpu", FP32)
