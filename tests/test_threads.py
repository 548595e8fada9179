"""The CPU engine on several threads: torch's OpenMP runtime, its own pool, and after a fork."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from helpers import OPTIONS, assert_same_bits, assert_same_training, params_of, random_params, train

from adamod_fused import AdaMod

ROOT = Path(__file__).resolve().parents[1]
NUMEL = 300_001  # enough for four threads


def stepped(backend: str, threads: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    param = torch.nn.Parameter(torch.randn(NUMEL, generator=generator))
    optimizer = AdaMod([param], lr=1e-2, weight_decay=0.1, beta3=0.9, backend=backend)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(3):
            param.grad = torch.randn(NUMEL, generator=generator)
            optimizer.step()
    finally:
        torch.set_num_threads(before)
    return param.detach()


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_the_number_of_threads_does_not_change_a_bit(threads: int) -> None:
    assert_same_bits(stepped("cpu", threads), stepped("reference", 1))


def test_optimizers_in_several_threads_at_once() -> None:
    results: dict[int, torch.Tensor] = {}

    def run(seed: int) -> None:
        results[seed] = stepped("cpu", 2, seed)

    workers = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in range(4):
        assert_same_bits(results[seed], stepped("reference", 1, seed), f"seed {seed}")


# In the child torch's own parallel operators would wait for ever for threads that are not there,
# so all tensors are made before the fork and compared as bytes.
FORK = """
import os, torch
from adamod_fused import AdaMod
torch.set_num_threads(2)
start, grad = torch.randn(300_001), torch.randn(300_001)
params = [torch.nn.Parameter(start.clone()) for _ in range(3)]
optimizers = [AdaMod([p], lr=1e-2, weight_decay=0.1) for p in params]
for p in params:
    p.grad = grad
for optimizer in optimizers:
    optimizer.step()  # makes the states, and a team of threads, which the child will not have
optimizers[0].step()
pid = os.fork()
if pid == 0:
    optimizers[1].step()
    optimizers[2].step()
    wanted = params[0].detach().numpy().tobytes()
    same = [p.detach().numpy().tobytes() == wanted for p in params]
    os._exit(0 if all(same) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
optimizers[1].step()
assert torch.equal(params[0], params[1])
"""


def test_a_forked_child_steps_on_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], cwd=ROOT, check=True, timeout=20)


def test_optimizers_in_several_threads() -> None:
    optimizers = [AdaMod(random_params((100_000,)), **OPTIONS, backend="cpu") for _ in range(4)]
    threads = [threading.Thread(target=train, args=(o, range(8))) for o in optimizers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in itertools.pairwise(optimizers):
        assert_same_training(a, b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_step_in_a_forked_process() -> None:
    """A child inherits no threads: a pool that counts on them would wait for ever."""
    optimizer = AdaMod(random_params((200_000,)), **OPTIONS, backend="cpu")
    train(optimizer, range(1))
    child = os.fork()
    if child == 0:
        optimizer.step()
        os._exit(0 if optimizer.state[params_of(optimizer)[0]]["step"] == 2 else 1)
    timer = threading.Timer(30, os.kill, (child, 9))
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    assert status == 0


FORK_DURING_A_STEP = """
import os, threading, torch
from adamod_fused import AdaMod
from adamod_fused.backends.cpu import CpuBackend
torch.set_num_threads(2)
param = torch.nn.Parameter(torch.zeros(300_001))
param.grad = torch.ones_like(param)
optimizer = AdaMod([param])
optimizer.step()
launcher, is_inside, is_forked = CpuBackend.launcher, threading.Event(), threading.Event()
def waiting_launcher(*arguments):
    launch = launcher(*arguments)
    def wait_and_launch():
        if threading.current_thread() is helper:
            is_inside.set()
            is_forked.wait()
        launch()
    return wait_and_launch
CpuBackend.launcher = waiting_launcher
helper = threading.Thread(target=optimizer.step)
helper.start()
is_inside.wait()
pid = os.fork()
if pid == 0:
    optimizer.step()
    os._exit(0 if optimizer.state[param]["step"] == 2 else 1)
is_forked.set()
helper.join()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def test_a_child_forked_during_a_step_can_step() -> None:
    subprocess.run([sys.executable, "-c", FORK_DURING_A_STEP], cwd=ROOT, check=True, timeout=60)


NEW_PID_NAMESPACE = """
import ctypes, os, sys
if ctypes.CDLL(None).unshare(0x20000000) != 0:  # CLONE_NEWPID
    sys.exit(77)
pid = os.fork()  # number 1 in the new namespace
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
import torch
from adamod_fused import AdaMod
torch.set_num_threads(2)
param = torch.nn.Parameter(torch.zeros(300_001))
param.grad = torch.ones_like(param)
optimizer = AdaMod([param])
optimizer.step()
assert os.getpid() == 1 and ctypes.CDLL(None).unshare(0x20000000) == 0
pid = os.fork()  # number 1 as well
if pid == 0:
    optimizer.step()
    os._exit(0 if os.getpid() == 1 and optimizer.state[param]["step"] == 2 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_with_its_parents_process_id_steps() -> None:
    code = subprocess.run(
        [sys.executable, "-c", NEW_PID_NAMESPACE], cwd=ROOT, timeout=60
    ).returncode
    if code == 77:
        pytest.skip("this user may not make a PID namespace")
    assert code == 0
