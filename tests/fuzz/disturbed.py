"""What test_disturbed.py runs in a process of its own: steps among threads, signals and forks.

``python disturbed.py SEED SECONDS SCENARIO...`` ends with 0 where all went well. Each takes that
long.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from budget import check_clear
from helpers import OPTIONS, assert_same_training, params_of, random_params, set_random_grads

from adamod_fused import AdaMod

SHAPES = ((3, 4), (40_000,), (), (257,), (9, 500))
BUSY = "step() was called while"


def make(dtype: torch.dtype = torch.float32, state_format: str = "fp32") -> AdaMod:
    params = random_params(*SHAPES, dtype=dtype)
    return AdaMod(params, **OPTIONS, state_format=state_format, min_coded_numel=0)


def one_step(optimizer: AdaMod, seed: int) -> None:
    set_random_grads(params_of(optimizer), seed)
    optimizer.step()


def in_threads(work: Callable[[int], None], count: int) -> None:
    errors: list[Exception] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except Exception as error:  # noqa: BLE001 (raised again by the thread that waits)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def own_optimizers(random_: random.Random, end: float) -> None:
    """Each thread has its own: none disturbs another."""
    while time.monotonic() < end:
        kinds = [random_.choice(["fp32", "16bit", "8bit"]) for _ in range(3)]
        threads, steps = random_.randint(1, 3), random_.randint(1, 5)
        torch.set_num_threads(threads)
        made = [make(state_format=kind) for kind in kinds]

        def work(number: int, made: list[AdaMod] = made, steps: int = steps) -> None:
            for step in range(steps):
                one_step(made[number], step)

        in_threads(work, len(made))
        for kind, optimizer in zip(kinds, made, strict=True):
            alone = make(state_format=kind)
            for step in range(steps):
                one_step(alone, step)
            assert_same_training(optimizer, alone)


def one_optimizer(random_: random.Random, end: float) -> None:
    """Threads step the same one: each step is whole, or is refused."""
    while time.monotonic() < end:
        torch.set_num_threads(random_.randint(1, 2))
        shared, alone = make(), make()
        set_random_grads(params_of(shared), 1)
        set_random_grads(params_of(alone), 1)
        done = []

        def work(
            _: int,
            shared: AdaMod = shared,
            done: list[int] = done,
            tries: int = random_.randint(1, 9),
        ) -> None:
            for _ in range(tries):
                try:
                    shared.step()
                    done.append(1)
                except RuntimeError as error:
                    if not str(error).startswith(BUSY):
                        raise

        in_threads(work, 2)
        for _ in done:
            alone.step()
        assert_same_training(shared, alone)


def step_and_clip(random_: random.Random, end: float) -> None:
    """A thread clips while another steps: each says so, or does what it does alone."""
    while time.monotonic() < end:
        shared = make()
        set_random_grads(params_of(shared), 1)

        def work(number: int, shared: AdaMod = shared) -> None:
            for _ in range(20):
                try:
                    if number:
                        shared.clip_grad_norm_(1.0)
                    else:
                        shared.step()
                except RuntimeError as error:
                    check_clear(error)

        in_threads(work, 2)
        shared.check_finite()
        shared.zero_grad()
        one_step(shared, 2)


def interrupted(random_: random.Random, end: float) -> None:
    """Ctrl-C at any time: a step is done or not done, and the next one works."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while time.monotonic() < end:
        torch.set_num_threads(random_.randint(1, 2))
        kind = random_.choice(["fp32", "16bit", "8bit"])
        optimizer = make(state_format=kind)
        alone = [make(state_format=kind)]
        timer = random_.uniform(0.0, 0.002)
        one_step(optimizer, 0)
        one_step(alone[0], 0)
        set_random_grads(params_of(optimizer), 1)
        try:
            signal.setitimer(signal.ITIMER_REAL, timer)
            optimizer.step()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        steps = {int(optimizer.state[param]["step"]) for param in params_of(optimizer)}
        assert len(steps) == 1, f"half a step: {steps}"
        if steps == {2}:
            one_step(alone[0], 1)
        assert_same_training(optimizer, alone[0])
        one_step(optimizer, 2)
        one_step(alone[0], 2)
        assert_same_training(optimizer, alone[0])


def forked(random_: random.Random, end: float) -> None:
    """A child process steps, whatever the parent's threads do; the parent goes on."""
    torch.set_num_threads(2)
    optimizer, twin = make(), make()
    seed = 0
    while time.monotonic() < end:
        one_step(optimizer, seed)
        one_step(twin, seed)
        set_random_grads(params_of(optimizer), seed + 1)
        set_random_grads(params_of(twin), seed + 1)
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            optimizer.step()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        seed += 1
        assert_same_training(optimizer, twin)


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


SCENARIOS = {
    f.__name__: f for f in (own_optimizers, one_optimizer, step_and_clip, interrupted, forked)
}

if __name__ == "__main__":
    signal.signal(signal.SIGALRM, raise_interrupt)
    seed, seconds, *names = sys.argv[1:]
    for name in names:
        print(f"{name} with seed {seed}", file=sys.stderr, flush=True)
        SCENARIOS[name](random.Random(int(seed)), time.monotonic() + float(seconds))
