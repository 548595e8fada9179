"""The processes that the tests of this folder share, and the devices they run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch was built without gloo")
    started = Ranks()
    yield started
    started.close()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest, ranks: Ranks, tmp_path: Path) -> Callable[..., None]:
    """``run(function, world_size, *args)``: on processes of gloo and, with enough GPUs, of NCCL."""

    def run(function: Callable[..., None], world_size: int, *args: Any) -> None:
        if request.param == "cuda" and torch.cuda.device_count() < world_size:
            pytest.skip(f"needs {world_size} GPUs, here are {torch.cuda.device_count()}")
        ranks.run(function, world_size, request.param, tmp_path, *args)

    return run
