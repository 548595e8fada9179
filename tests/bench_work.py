"""Small work for tests of the benchmark: a list, and a contestant that takes the time told."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from bench.contestants import Contestant
from bench.lists import ParamList
from bench.work import ValuesAndGrads, Work

CPU = torch.device("cpu")
PARAMS = ParamList("two", ((4, 8), (32,)), "made up")


class Optimizer(torch.optim.SGD):
    """Says what it is given, and takes the time it is told."""

    def __init__(self, params: Any, log: list[Any], on_step: Callable[[], None]) -> None:
        super().__init__(params)
        self.log, self.on_step = log, on_step

    def step(self, closure: Any = None) -> None:
        self.log.append([p.grad for group in self.param_groups for p in group["params"]])
        assert not gc.isenabled(), "a pass of Python's garbage collector would be timed"
        self.on_step()


def contestant(
    name: str = "slow", log: list[Any] | None = None, on_step: Callable[[], None] = lambda: None
) -> Contestant:
    seen = [] if log is None else log
    return Contestant(name, "torch", lambda p: Optimizer(p, seen, on_step), lambda *_: None)


def work(made: Contestant, copies: int = 1) -> Work:
    return Work(made, ValuesAndGrads.make(PARAMS.shapes, torch.float32, CPU), copies)
