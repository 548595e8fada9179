"""States on the CPU lie in memory for which huge pages were asked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: elsewhere freed memory that was asked for before may be given out again.
SCRIPT = """
import re, torch
from pathlib import Path
from adamod_fused import AdaMod

def asked_for(tensor):
    '''Whether the middle of a tensor's memory has the kernel's flag hg: huge pages advised.'''
    middle = tensor.data_ptr() + tensor.nbytes // 2
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(address, 16) for address in found.groups())
        elif line.startswith("VmFlags:") and start <= middle < end:
            return "hg" in line.split()

param = torch.nn.Parameter(torch.randn(10_000_000))
param.grad = torch.randn_like(param)
optimizer = AdaMod([param], backend="cpu")
optimizer.step()
names = ("exp_avg", "exp_avg_sq", "exp_avg_lr")
print(asked_for(param), [asked_for(optimizer.state[param][name]) for name in names])
"""


@pytest.mark.skipif(
    not Path("/proc/self/smaps").exists()
    or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="no huge pages on this system",
)
def test_large_states_ask_for_huge_pages() -> None:
    env = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False [True, True, True]"
