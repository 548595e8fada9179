"""Runs what is not yet finished, in as many processes as there are cores; one file for each run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
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


def folder_of(scale: str, root: Path) -> Path:
    """Where finished runs lie."""
    return root / f"runs-{scale}"


def prepare(root: Path, scale: Scale, line: Callable[[str], None]) -> dict[str, Any]:
    """Gets and builds all data; what a record keeps of it.

    Raises:
        RuntimeError: data is missing, and cannot be downloaded here.
    """
    data = root / "data"
    where, source = fashion.folder(data)
    images = {split: len(fashion.load(where, split).labels) for split in fashion.FILES}
    found = pairs.load(data, line)
    for settings in scale.tasks.values():
        if isinstance(settings, Translation):
            _tokenizer(data, found, settings)
    return {"fashion_mnist": source | {"images": images}, "pairs": found.facts()}


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


def perform(run: Run, scale: Scale, root: Path, target: Path) -> None:
    """One run, and its file, whole or not at all."""
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
    write_json(facts | {"environment": about}, target)


def finished(runs: Iterable[Run], scale: Scale, folder: Path) -> list[dict[str, Any]]:
    """What the finished ones found."""
    paths = [folder / f"{run.key(scale)}.json" for run in runs]
    return [read_json(path) for path in paths if path.exists()]


def perform_all(
    runs: Iterable[Run], scale: Scale, root: Path, folder: Path, console: Console
) -> None:
    """Those that no file tells of yet; the data must have been prepared."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = {run: folder / f"{run.key(scale)}.json" for run in runs}
    left = [run for run, target in targets.items() if not target.exists()]
    # Models of the CPU's scale gain less from a second thread than from a second process.
    cores = len(os.sched_getaffinity(0))
    workers, threads = (cores, 1) if scale.device == "cpu" else (1, cores)
    pool = ProcessPoolExecutor(
        max_workers=workers,
        mp_context=get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(threads,),
    )
    try:
        with console.progress("runs", len(targets)) as advance:
            done = len(targets) - len(left)
            advance(done, "finished before")
            pending = {pool.submit(perform, run, scale, root, targets[run]): run for run in left}
            while pending:
                completed, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in completed:
                    run = pending.pop(future)
                    future.result()
                    done += 1
                    advance(done, f"{run.task}, {run.contender.name}, seed {run.seed}")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
