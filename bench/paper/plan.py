"""Which runs each experiment is made of; a run that several ask for is run once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from .contenders import Contender, adamod
from .settings import Scale

LR = 1e-3  # of every adaptive method, but where the learning rate itself is varied
SGD_LR = 0.1  # the authors' on CIFAR
LRS = (1e-3, 1e-2, 1e-1)
BETA3S = (0.0, 0.9, 0.99, 0.999, 0.9999)

ADAM = Contender("adam", LR)
WARMED = Contender("adam", LR, warmup=True)
RADAM = Contender("radam", LR)
SGDM = Contender("sgdm", SGD_LR)
NO_WARMUP = (ADAM, RADAM, adamod(LR), adamod(LR, 0.9999))


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    contender: Contender
    seed: int

    def key(self, scale: Scale) -> str:
        """Names its file; other settings, another name."""
        settings = repr((scale.tasks[self.task], self.contender, scale.device))
        digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
        return f"{self.task}-{self.contender.rule}-{digest}-{self.seed}"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    task: str
    contender: Contender

    def runs(self, scale: Scale) -> list[Run]:
        return [Run(self.task, self.contender, seed) for seed in scale.seeds]

    def facts(self) -> dict[str, object]:
        return {"task": self.task, **asdict(self.contender)}


def groups(experiment: str, scale: Scale) -> list[Group]:
    """What an experiment compares."""
    first = scale.transformers[0]
    table: dict[str, Iterable[Group]] = {
        "rates": (Group(first, contender) for contender in (ADAM, adamod(LR))),
        "warmup": (
            Group(task, contender)
            for task in scale.transformers
            for contender in (ADAM, WARMED, *NO_WARMUP[1:])
        ),
        "lr": (
            Group("resnet", contender)
            for lr in LRS
            for contender in (Contender("adam", lr), adamod(lr))
        ),
        "depth": (
            Group(task, contender)
            for task in ("resnet", "densenet")
            for contender in (SGDM, ADAM, adamod(LR))
        ),
        "beta3": (Group(first, adamod(LR, beta3)) for beta3 in BETA3S),
        "variants": (
            Group(first, adamod(LR, variant=variant)) for variant in ("paper", "released")
        ),
    }
    return list(table[experiment])


EXPERIMENTS = ("rates", "warmup", "lr", "depth", "beta3", "variants")


def runs(experiments: Iterable[str], scale: Scale) -> list[Run]:
    """All runs of the experiments, each once; all of one seed before those of the next."""
    wanted = {
        run: None
        for experiment in experiments
        for group in groups(experiment, scale)
        for run in group.runs(scale)
    }
    return sorted(wanted, key=lambda run: scale.seeds.index(run.seed))
