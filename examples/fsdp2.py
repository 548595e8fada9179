"""AdaMod under FSDP2, with checkpoints that continue on any number of ranks.

    torchrun --nproc-per-node 2 examples/fsdp2.py --folder run
    python examples/fsdp2.py --folder run        # starts two processes itself

Both go on from the newest checkpoint in the folder, so an interrupted run is started again by the
same command. Runs on CPUs by gloo and on GPUs by NCCL; on CPUs, torch's FSDP2 wants torch >= 2.7.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from adamod_fused import AdaMod

STEPS, SAVE_EVERY, ROWS, WIDTH = 30, 10, 32, 20


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """This rank's rows of a step: the same again when the step is done again after a fault."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    rows = torch.randn(ROWS, WIDTH, generator=generator)
    return rows, rows.roll(1, dims=1).sin()


def save(folder: Path, model: nn.Module, optimizer: AdaMod, step: int) -> None:
    """Writes aside, then renames: what has its final name is complete, whenever a rank dies."""
    aside = folder / "unfinished"
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=aside)
    distributed.barrier()
    if distributed.get_rank() == 0:
        aside.rename(folder / f"step-{step:06d}")
    distributed.barrier()


def resume(folder: Path, model: nn.Module, optimizer: AdaMod) -> int:
    """Loads the newest checkpoint, if there is one; returns how many steps it has behind it."""
    newest = max(folder.glob("step-*"), default=None)
    if newest is None:
        return 0
    weights, states = get_state_dict(model, optimizer)
    loaded = {"model": weights, "optimizer": states}
    dcp.load(loaded, checkpoint_id=newest)
    set_state_dict(
        model, optimizer, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"]
    )
    return int(newest.name.removeprefix("step-"))


def train(folder: Path) -> None:
    rank = distributed.get_rank()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 63), nn.GELU(), nn.Linear(63, WIDTH)).to(device)
    for layer in (model[0], model[2], model):
        fully_shard(layer)
    optimizer = AdaMod(model.parameters(), lr=1e-2, beta3=0.9, weight_decay=1e-2)

    for step in range(resume(folder, model, optimizer), STEPS):
        rows, targets = (tensor.to(device) for tensor in batch(step, rank))
        loss = nn.functional.mse_loss(model(rows), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0:
            mean = loss.detach() / distributed.get_world_size()
            distributed.all_reduce(mean)
            if rank == 0:
                print(f"step {step + 1}: loss {mean.item():.9f}", flush=True)
            save(folder, model, optimizer, step + 1)


def run(rank: int, folder: Path, store: str | None = None, world_size: int = 2) -> None:
    """One rank; without a ``store``, torchrun's environment says where the others are."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(rank)
    backend = "nccl" if on_gpu else "gloo"
    if store is None:
        distributed.init_process_group(backend)
    else:
        distributed.init_process_group(backend, init_method=store, rank=rank, world_size=world_size)
    train(folder)
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="of the checkpoints; default: a temporary one")
    folder = parser.parse_args().folder
    if "LOCAL_RANK" in os.environ:
        if folder is None:
            parser.error("torchrun's processes need a --folder that they share")
        run(int(os.environ["LOCAL_RANK"]), folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        store = (Path(temporary) / "store").as_uri()
        torch.multiprocessing.spawn(
            run, args=(folder or Path(temporary), store), nprocs=2, join=True
        )


if __name__ == "__main__":
    main()
