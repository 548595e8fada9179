"""The record: what all finished runs of a scale found, and what they were made with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..machine import commit, machine, versions
from ..record import RESULTS, save_json
from .contenders import Contender
from .plan import EXPERIMENTS, Group, Run, groups
from .settings import SCALES, Scale

SCHEMA = 1
PACKAGES = ("numpy", "polib", "sacrebleu", "scipy", "tokenizers")


def path_of(scale: str, folder: Path = RESULTS) -> Path:
    return folder / f"paper-{scale}.json"


@cache
def environment(device: str) -> dict[str, Any]:
    """What runs of one session share; asked for once, before the sources can change."""
    facts = machine(torch.device(device))
    del facts["load"]  # mostly of the other process
    return {"commit": commit(), "machine": facts, "versions": versions(PACKAGES)}


def gather(
    name: str, scale: Scale, found: Iterable[dict[str, Any]], data: dict[str, Any]
) -> dict[str, Any]:
    """A record of finished runs, each as ``run.py`` leaves it.

    Every run knows the machine it ran on; the record has the distinct ones. Of learning rates it
    has those that the experiment about them shows.
    """
    kept = [group.facts() for group in groups("rates", scale)]
    results = sorted(found, key=lambda result: result["key"])
    environments: list[dict[str, Any]] = []
    for result in results:
        if result["environment"] not in environments:
            environments.append(result["environment"])
    return {
        "schema": SCHEMA,
        "scale": name,
        "settings": settings_of(scale),
        "transformers": list(scale.transformers),
        "seeds": list(scale.seeds),
        "data": data,
        "environments": environments,
        "runs": [
            {
                key: value
                for key, value in result.items()
                if key != "rates" or {"task": result["task"], **result["contender"]} in kept
            }
            | {"environment": environments.index(result["environment"])}
            for result in results
        ],
    }


@dataclass(frozen=True)
class Record:
    """A record, with its runs found by what they compare."""

    data: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Record:
        """Reads a record.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds no record of this schema, or one of other settings.
        """
        data = json.loads(path.read_text())
        if data.get("schema") != SCHEMA:
            raise ValueError(f"{path}: schema must be {SCHEMA}, got {data.get('schema')!r}")
        found = cls(data)
        if data["settings"] != json.loads(json.dumps(settings_of(found.scale))):
            raise ValueError(
                f"{path}: its runs had other settings than bench/paper/settings.py has now; run "
                f"`make paper SCALE={data['scale']}` again, or report with the commit that the "
                "record names"
            )
        return found

    def save(self, path: Path) -> None:
        save_json(self.data, path)

    @property
    def scale(self) -> Scale:
        return SCALES[self.data["scale"]]

    def runs(self, group: Group) -> list[dict[str, Any]]:
        """Those of all seeds, in the order of the seeds."""
        wanted = group.facts()
        found = {
            run["seed"]: run
            for run in self.data["runs"]
            if {"task": run["task"], **run["contender"]} == wanted
        }
        return [found[seed] for seed in self.data["seeds"] if seed in found]

    def finals(self, group: Group, measure: str) -> list[float]:
        """A measure at the end, of each seed."""
        return [run["final"][measure] for run in self.runs(group)]

    def has(self, experiment: str) -> bool:
        """Whether all seeds of all its groups are there."""
        return all(
            len(self.runs(group)) == len(self.data["seeds"])
            for group in groups(experiment, self.scale)
        )

    def experiments(self) -> list[str]:
        return [experiment for experiment in EXPERIMENTS if self.has(experiment)]


def settings_of(scale: Scale) -> dict[str, Any]:
    return {task: asdict(settings) for task, settings in scale.tasks.items()}


def facts_of(run: Run) -> dict[str, Any]:
    """How a result names its run."""
    contender: Contender = run.contender
    return {"task": run.task, "contender": asdict(contender), "seed": run.seed}
