"""States on the CPU lie in memory for which huge pages were asked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adamod_fused import AdaMod

SMAPS = Path("/proc/self/smaps")

pytestmark = pytest.mark.skipif(
    not SMAPS.exists() or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="no huge pages on this system",
)


def asked_for(tensor: Tensor) -> bool:
    """Whether the middle of a tensor's memory has the kernel's flag ``hg``: huge pages advised."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    flags = None
    for line in SMAPS.read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            start, end = (int(address, 16) for address in found.groups())
        elif line.startswith("VmFlags:") and start <= middle < end:
            flags = line.split()[1:]
    assert flags is not None, "the tensor's memory is not in this process"
    return "hg" in flags


def test_large_states_ask_for_huge_pages() -> None:
    param = torch.nn.Parameter(torch.randn(10_000_000))  # so large that no freed memory serves
    param.grad = torch.randn_like(param)
    assert not asked_for(param)
    optimizer = AdaMod([param], backend="cpu")
    optimizer.step()
    states = {name: value for name, value in optimizer.state[param].items() if name != "step"}
    assert len(states) == 3
    for name, state in states.items():
        assert asked_for(state), name
