"""Processes that tests run real process groups on: started once, since importing torch takes long.

A function that `Ranks.run` runs stands at the top of its module, asserts for itself, and is run by
every rank at once. A rank that fails, or is late, ends all of them; the next run starts new ones.
"""

from __future__ import annotations

import datetime
import faulthandler
import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import distributed

SECONDS = 120  # for one run; the longest takes about 5, the first waits for torch's import too
GRACE = 5  # for the other ranks once one has failed: they may have the better message
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


def serve(rank: int, pipe: Connection) -> None:
    """What a process does: runs what is sent, in a process group of its own, until closed."""
    torch.set_num_threads(1)
    # Once torch has destroyed a group, Python's last reference to it joins the group's threads. In
    # torch 2.6 it holds the interpreter's lock meanwhile, and a thread that lets go of its last
    # tensor waits for that lock for ever: so no reference here is the last.
    kept: list[Any] = []
    while True:
        try:
            function, world_size, device, store, args = pipe.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(SECONDS - GRACE)  # to stderr: where a late rank stands
        try:
            if device == "cuda":
                torch.cuda.set_device(rank)
            distributed.init_process_group(
                BACKENDS[device],
                init_method=store,
                rank=rank,
                world_size=world_size,
                timeout=datetime.timedelta(seconds=SECONDS),
            )
            function(device, *args)
            kept += distributed.distributed_c10d._world.pg_map
            distributed.destroy_process_group()
            pipe.send(None)
        except BaseException:  # noqa: BLE001 - the parent process raises it
            pipe.send(traceback.format_exc())
            return
        faulthandler.cancel_dump_traceback_later()


class Ranks:
    """As many processes as any run so far asked for."""

    def __init__(self) -> None:
        self._processes: list[Any] = []
        self._pipes: list[Connection] = []

    def run(
        self, function: Callable[..., None], world_size: int, device: str, folder: Path, *args: Any
    ) -> None:
        """Runs ``function(device, *args)`` on ranks 0 to ``world_size`` - 1; raises what it did."""
        while len(self._processes) < world_size:
            self._start(len(self._processes))
        pipes = self._pipes[:world_size]
        store = folder / f"store-{time.monotonic_ns()}"
        for pipe in pipes:
            pipe.send((function, world_size, device, store.as_uri(), args))

        errors: dict[int, str] = {}
        deadline = time.monotonic() + SECONDS
        pending = set(pipes)
        while pending and (ready := wait(pending, max(0, deadline - time.monotonic()))):
            for pipe in ready:
                pending.remove(pipe)
                rank = pipes.index(pipe)
                try:
                    error = pipe.recv()
                except EOFError:
                    error = f"it ended with exit code {self._processes[rank].exitcode}"
                if error is not None:
                    errors[rank] = error
                    deadline = min(deadline, time.monotonic() + GRACE)
        late = sorted(pipes.index(pipe) for pipe in pending)
        if errors or late:
            self.close()
            told = "\n".join(f"rank {rank}: {error}" for rank, error in sorted(errors.items()))
            raise AssertionError(f"of {world_size} ranks, {late} did not finish\n{told}")

    def _start(self, rank: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(rank, theirs), daemon=True)
        process.start()
        theirs.close()
        self._processes.append(process)
        self._pipes.append(ours)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []
