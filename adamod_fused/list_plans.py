"""Plans for lists of tensors that belong to a caller, kept from one call to the next.

A kept plan holds no tensor. It knows how tensors of some shapes, dtypes and devices are stepped,
and the compiled table looks at every tensor of every call, whatever it saw before. A plan that
turns out not to fit is thrown away.
"""

from __future__ import annotations

import operator
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from . import formats
from .plan import Plan, State

Lists = Sequence[Sequence[Tensor]]

MAX_KINDS = 256
"""Kinds of lists whose plans are kept."""

_FORGOTTEN = torch.empty(0, dtype=torch.float32, device="cpu")


class ListPlan(Plan):
    """A plan that steps lists; one call at a time."""

    def load_state(self, state: State) -> None:
        """Takes down the tensors that the plan was made of."""
        served = [m.param for m in self._members if m.batch >= 0]
        entries = [state[param] for param in served]
        grads = [self._grad_of(param) for param in served]
        own = [[e[name] for e in entries] for name in (*self._rule.states, "step")]
        beside = [[e[n] for e in entries if n in e] for n in (formats.EXPONENTS, formats.REMAINDER)]
        if self._table is not None and not self._load((served, grads, *own), beside):
            # the constructor admitted these very tensors
            raise RuntimeError("tensors changed while they were being stepped")
        self._refresh_reference(state)

    def load(self, lists: Lists, beside: Lists) -> bool:
        """Takes down the tensors of another call, in order; only after ``forget``.

        Args:
            lists: parameters, gradients, the states and the step counts.
            beside: exponents and remainders of the parameters that have any.

        Returns:
            False, with nothing taken down, where they are not like those that the plan was made of.
        """
        # Spans of memory that meet may still interleave: a new plan looks at every element.
        if self._load(lists, beside) and not self._table.may_overlap:
            return True
        self._table.forget()
        return False

    def _load(self, lists: Sequence[Sequence[Tensor | None]], beside: Lists) -> bool:
        params, grads, *states, steps = lists
        loaded: bool = self._table.load(params, grads, tuple(states), steps, *beside)
        return loaded

    def forget(self) -> bool:
        """Lets go of all tensors; False where the plan cannot step others.

        What the reference steps is looked at in Python, which takes as long as to plan it.
        """
        if self._table is None or self._by_reference:
            return False
        self._table.forget()
        if self._members[0].param is not _FORGOTTEN:
            self._members = [member._replace(param=_FORGOTTEN) for member in self._members]
            self._grad_of = operator.attrgetter("grad")
        return True


class KeptPlans:
    """Plans by the kind of lists that they step, the last ones used.

    A call takes a plan out, so that no other call, in another thread or inside this one, has it;
    two calls at a time have two plans. Each operation on the dictionary and on a list of plans is
    one of Python's own, which no other thread interrupts, and there is no lock that a forked
    process could find taken.
    """

    def __init__(self) -> None:
        self._plans: dict[Hashable, list[ListPlan]] = {}

    def take(self, kind: Hashable) -> ListPlan | None:
        """A plan for this kind of lists, to be put back."""
        try:
            return self._plans[kind].pop()
        except LookupError:
            return None

    def put(self, kind: Hashable, plan: ListPlan) -> None:
        """Keeps a plan that has forgotten its tensors."""
        plans = self._plans.pop(kind, [])  # to be the last that goes
        plans.append(plan)
        self._plans[kind] = plans
        for oldest in list(self._plans)[:-MAX_KINDS]:
            self._plans.pop(oldest, None)

    def clear(self) -> None:
        """Forgets all plans."""
        self._plans.clear()
