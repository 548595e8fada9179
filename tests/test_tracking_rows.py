"""Rows of bound_stats() flattened, and handed out once to whoever writes them."""

from __future__ import annotations

import copy

import pytest
import torch
from bound_rows import FakeAdaMod
from torch import nn

from adamod_fused import AdaMod
from adamod_fused.bound_stats import HISTOGRAM_EDGES
from adamod_fused.tracking import rows

STEPS, EVERY = 5, 2  # tracked: 1, 3, 5


def stepped(steps: int) -> FakeAdaMod:
    optimizer = FakeAdaMod(every=EVERY)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def taken(new: rows.NewRows, optimizer) -> list[dict]:
    with new.of(optimizer) as found:
        return found


def test_scalars_have_a_tag_for_each_column_and_name():
    given = stepped(1).bound_stats()
    flat = rows.scalars(given)
    assert len(flat) == len(given) * len(rows.NUMBERS)
    for row in given:
        for column in rows.NUMBERS:
            assert flat[f"adamod_{column}/{row['name']}"] == row[column]
    assert rows.scalars(stepped(1).bound_stats(by="group")).keys() >= {"adamod_bounded/group_0"}
    assert rows.scalars([]) == {}


def test_histograms_are_between_whole_powers_of_two():
    assert [2.0**edge for edge in rows.LOG2_EDGES] == list(HISTOGRAM_EDGES)
    given = stepped(1).bound_stats()
    flat = rows.histograms(given)
    assert len(flat) == 2 * len(given)
    assert flat["adamod_bounded_rate_hist_log2/b.bias"] == given[1]["bounded_rate_hist"]


@pytest.mark.parametrize("per_tensor", [False, True])
def test_new_rows_come_once(per_tensor):
    optimizer, new, handed_out = FakeAdaMod(every=EVERY), rows.NewRows(per_tensor), []
    assert taken(new, optimizer) == []
    for _ in range(STEPS):
        optimizer.step()
        handed_out += [taken(new, optimizer), taken(new, optimizer)]
    steps = [[row["step"] for row in found] for found in handed_out if found]
    assert steps == [[step] * (1 + per_tensor) for step in (1, 3, 5)]


def test_between_looks_nobody_asks_for_rows():
    optimizer, new, asked = FakeAdaMod(every=EVERY), rows.NewRows(), []
    bound_stats = optimizer.bound_stats
    optimizer.bound_stats = lambda by, after: asked.append(optimizer.steps) or bound_stats(by)
    for _ in range(STEPS):
        optimizer.step()
        taken(new, optimizer)
    assert asked == [1, 3, 5]


def test_a_look_that_found_nothing_hands_nothing_out():
    optimizer, new = FakeAdaMod(), rows.NewRows()
    optimizer.step()
    assert taken(new, optimizer)
    optimizer.bound_looks += 1  # as after a step that a loss scale's overflow skipped
    assert taken(new, optimizer) == []


def test_rows_that_could_not_be_written_come_again():
    optimizer, new = stepped(1), rows.NewRows()
    with pytest.raises(OSError, match="full"), new.of(optimizer) as found:
        raise OSError("full")
    assert taken(new, optimizer) == found != []
    assert taken(new, optimizer) == []


def test_another_optimizer_counts_its_own_looks():
    new = rows.NewRows()
    for optimizer in (stepped(3), stepped(3), stepped(1)):
        assert taken(new, optimizer) == optimizer.bound_stats("group")
        assert taken(new, optimizer) == []


def test_after_a_rollback_the_same_step_is_another():
    param = nn.Parameter(torch.ones(3))
    optimizer, new, found = AdaMod([param], track_bound=2), rows.NewRows(), []
    for step in range(5):
        if step == 2:
            checkpoint = copy.deepcopy(optimizer.state_dict())
        if step == 4:  # the steps 3 and 4 are undone
            optimizer.load_state_dict(checkpoint)
        param.grad = torch.full((3,), step + 1.0)
        optimizer.step()
        found += taken(new, optimizer)
    assert [row["step"] for row in found] == [1, 3, 3]
    assert [row["grad_norm"] for row in found] == pytest.approx([3**0.5, 27**0.5, 75**0.5])


def test_the_count_is_the_largest_of_any_tensor():
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdaMod([early, late])
    assert rows.count_of(optimizer) == 0
    optimizer.state[early]  # an empty entry, as torch's own defaultdict makes
    assert rows.count_of(optimizer) == 0
    for param, steps in ((early, 2), (late, 3)):
        optimizer.zero_grad()
        for _ in range(steps):
            param.grad = torch.ones(2)
            optimizer.step()
        assert rows.count_of(optimizer) == steps


def test_the_optimizer_is_found_within_wrappers():
    class Wrapper:
        def __init__(self, optimizer) -> None:
            self.optimizer = optimizer

    inner = FakeAdaMod()
    assert rows.unwrapped(Wrapper(Wrapper(inner))) is inner
    with pytest.raises(TypeError, match=r"the optimizer is object; train with AdaMod\("):
        rows.unwrapped(Wrapper(object()))


def test_looks_of_adamod_are_counted_on_and_on():
    param = nn.Parameter(torch.ones(3))
    optimizer, new, found = AdaMod([param], track_bound=2), rows.NewRows(), []
    for step in range(6):
        if step == 3:  # in step 4, after as many looks as the new tracker has after its first
            optimizer.track_bound(every=10)
        param.grad = torch.ones(3)
        optimizer.step()
        found.append((optimizer.bound_looks, [row["step"] for row in taken(new, optimizer)]))
    assert found == [(1, [1]), (1, []), (2, [3]), (3, [4]), (3, []), (3, [])]
    optimizer.track_bound(every=0)
    with pytest.raises(RuntimeError, match="the bound is not tracked"):
        taken(rows.NewRows(), optimizer)
