"""The command line: `python -m bench.trials [--minutes M] [--out FOLDER] [--list]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from adamod_fused.backends.cuda import CudaBackend
from adamod_fused.backends.triton import TritonBackend
from adamod_fused.console import Console, open_console

from .. import machine
from ..contestants import BASELINE, contestants
from ..cuda_clock import CudaClock
from ..run import OutOfTime
from ..work import Work
from . import build
from .declared import CUDA, TRITON, UNCHANGED, Trial
from .run import JOBS, TrialsRun
from .variants import TunedTriton

SECONDS_TO_FINISH = 5  # of --minutes


class TrialClock(CudaClock):
    """Without what takes long and tells nothing of a trial.

    One set of tensors is enough: a large list's passes through the cache whatever is in it, and of
    a list of small tensors all the sets that there is time for would fit in it. The record says
    where they do (``in_cache``).
    """

    def copies(self, set_bytes: int, tensors: int) -> int:
        return 1

    def peak_bytes(self, work: Work) -> int | None:
        return None

    def launches(self, work: Work) -> int | None:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, 1 where a variant failed, 2 for bad input, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="bench.trials", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder to write to")
    parser.add_argument("--minutes", type=float, default=3, help="after which to stop")
    parser.add_argument("--commit", help="of these sources, where there is no repository")
    parser.add_argument("--list", action="store_true", help="print the trials; needs no GPU")
    options = parser.parse_args(arguments)
    console = open_console()
    if options.list:
        show(console)
        return 0
    if not torch.cuda.is_available():
        parser.error("the trials need a GPU, and torch sees none: --list prints what they are")
    device = torch.device("cuda", torch.cuda.current_device())
    present, absent = contestants(device, [BASELINE])
    if not present:
        parser.error(f"{BASELINE}, with which all is compared, {absent[BASELINE]}")
    options.out.mkdir(parents=True, exist_ok=True)

    seconds = 60 * options.minutes - SECONDS_TO_FINISH
    path = options.out / "trials-cuda.json"
    run = TrialsRun(TrialClock(device), present[0], console, seconds, JOBS, path)
    run.findings.facts["commit"] = options.commit or machine.commit()
    stopped: str | None = "it broke off"
    interrupted = False
    try:
        cuda_trials(run, device)
        triton_trials(run)
        stopped = None
    except OutOfTime:
        stopped = f"--minutes {options.minutes:g} were over"
    except KeyboardInterrupt:
        interrupted, stopped = True, "stopped by Ctrl-C"
    finally:
        run.findings.save(stopped)
        run.findings.print(console, [str(job) for job in run.jobs])
        console.line(f"{stopped or 'all trials ended'}; record: {path}")
    return 130 if interrupted else int(run.red)


def cuda_trials(run: TrialsRun, device: torch.device) -> None:
    variants = [run.take("cuda", trial) for trial in (UNCHANGED, *CUDA)]
    arch = "{}{}".format(*torch.cuda.get_device_capability(device))
    candidates = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            built = build.build((UNCHANGED, *CUDA), arch, Path(folder))
        except (FileNotFoundError, RuntimeError) as error:
            built = {variant.name: str(error) for variant in variants}
        for variant in variants:
            found = built[variant.name]
            if isinstance(found, str):
                run.fail(variant, f"not built: {found}")
            else:
                variant.registers = found.registers
                candidates.append((variant, CudaBackend(found.module)))
        run.measure(candidates)


def triton_trials(run: TrialsRun) -> None:
    variants = [(run.take("triton", trial), trial) for trial in (UNCHANGED, *TRITON)]
    status = TritonBackend().status()
    if status.available:
        run.measure([(variant, TunedTriton(trial)) for variant, trial in variants])
    else:
        for variant, _ in variants:
            run.fail(variant, f"{status.reason}; {status.remedy}")


def show(console: Console) -> None:
    for backend, trials in (("cuda", CUDA), ("triton", TRITON)):
        console.table(
            ("backend", "trial", "changes", "prediction"),
            [(backend, trial.name, changes(trial), trial.prediction) for trial in trials],
        )


def changes(trial: Trial) -> str:
    return ", ".join(f"{name} = {str(to).lower()}" for name, to in trial.changes.items())


if __name__ == "__main__":
    sys.exit(main())
