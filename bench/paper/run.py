"""Runs what is not yet finished, in as many processes as there are cores; one file for each run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from adamod_fused.console import Console

from ..machine import date
from . import classification, fashion, pairs, tokens, translation
from .files import read_json, write_json
from .plan import Run
from .record import environment, facts_of
from .settings import Scale, Translation

CACHE = Path(".paper")


@dataclass(frozen=True)
class Kept:
    """Finished runs of a scale, a file each; one of other data than the present is none."""

    scale: Scale
    folder: Path
    digests: dict[str, str]
    """Of the data of each task."""

    @classmethod
    def of(cls, name: str, scale: Scale, root: Path) -> Kept:
        """Those under ``root``, where the data must have been prepared."""
        where, _ = fashion.folder(root / "data")
        images, texts = fashion.digest(where), pairs.kept(root / "data").digest()
        digests = {
            task: texts if isinstance(settings, Translation) else images
            for task, settings in scale.tasks.items()
        }
        return cls(scale, root / f"runs-{name}", digests)

    def path(self, run: Run) -> Path:
        return self.folder / f"{run.key(self.scale)}.json"

    def save(self, run: Run, facts: dict[str, Any]) -> None:
        write_json(facts | {"data": self.digests[run.task]}, self.path(run))

    def find(self, run: Run) -> dict[str, Any] | None:
        """What ``save`` was given."""
        path = self.path(run)
        facts: dict[str, Any] = read_json(path) if path.exists() else {}
        return facts if facts.pop("data", None) == self.digests[run.task] else None

    def finished(self, runs: Iterable[Run]) -> list[dict[str, Any]]:
        return [found for found in map(self.find, runs) if found]


def prepare(root: Path, scale: Scale, line: Callable[[str], None]) -> dict[str, Any]:
    """Gets and builds all data; what a record keeps of it.

    Raises:
        RuntimeError: data is missing, and cannot be downloaded here.
    """
    data = root / "data"
    where, source = fashion.folder(data)
    images = {split: len(fashion.load(where, split).labels) for split in fashion.FILES}
    found = pairs.load(data, line)
    used = {
        task: _translation_data(data, settings).facts()
        for task, settings in scale.tasks.items()
        if isinstance(settings, Translation)
    }
    return {"fashion_mnist": source | {"images": images}, "pairs": found.facts(), "used": used}


def _tokenizer(data: Path, found: pairs.Pairs, settings: Translation) -> Any:
    name = f"tokens-{settings.vocabulary}-{found.sha256('training')[:10]}.json"
    return tokens.tokenizer(found.splits["training"], settings.vocabulary, data / name)


@cache
def _translation_data(data: Path, settings: Translation) -> translation.TranslationData:
    found = pairs.kept(data)
    learnt = _tokenizer(data, found, settings)
    return translation.TranslationData.of(found.splits, learnt, settings)


@cache
def _images(data: Path) -> dict[str, fashion.Images]:
    where, _ = fashion.folder(data)
    return {split: fashion.load(where, split) for split in fashion.FILES}


def perform(run: Run, kept: Kept, root: Path) -> float:
    """One run, and its file, whole or not at all; the seconds it took."""
    scale = kept.scale
    about = environment(scale.device)
    started = time.perf_counter()
    settings = scale.tasks[run.task]
    how = (run.contender, run.seed)
    if isinstance(settings, Translation):
        shared = _translation_data(root / "data", settings)
        found = translation.train(settings, *how, shared, scale.device)
    else:
        found = classification.train(settings, *how, _images(root / "data"), scale.device)
    seconds = round(time.perf_counter() - started, 1)
    facts = {"key": run.key(scale), **facts_of(run), "date": date(), "seconds": seconds, **found}
    kept.save(run, facts | {"environment": about})
    return seconds


def perform_all(runs: Iterable[Run], kept: Kept, root: Path, console: Console) -> None:
    """Those that are not finished yet; the data must have been prepared."""
    every = list(runs)
    left = [run for run in every if kept.find(run) is None]
    outdated = sum(kept.path(run).exists() for run in left)
    if outdated:
        console.line(f"finished runs that are of other data, and run again: {outdated}")
    kept.folder.mkdir(parents=True, exist_ok=True)
    pool = _pool(kept.scale.device)
    try:
        with console.progress("runs", len(every), reports=len(every)) as advance:
            done = len(every) - len(left)
            advance(done, "finished before")
            pending = {pool.submit(perform, run, kept, root): run for run in left}
            while pending:
                completed, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in completed:
                    run, seconds = pending.pop(future), future.result()
                    done += 1
                    who = f"{run.task}, {run.contender.name}, seed {run.seed}"
                    advance(done, f"{who}: {seconds:.1f} s")
    except BaseException:
        console.line("stopping: what still runs is finished first")
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(device: str) -> ProcessPoolExecutor:
    # Models of the CPU's scale gain less from a second thread than from a second process.
    cores = len(os.sched_getaffinity(0))
    workers, threads = (cores, 1) if device == "cpu" else (1, cores)
    return ProcessPoolExecutor(
        max_workers=workers,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(threads,),
    )
