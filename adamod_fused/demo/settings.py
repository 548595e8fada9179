"""The demo's options: one frozen record with the defaults, and the checks of each value."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ..backends import NAMES as BACKENDS

HEAD_SIZE = 32
LARGEST_SEED = 2**63 - 1  # that torch takes

LR_HELP = (
    "learning rate of all runs, constant; the default is high, where a warm-up matters; with 1e-3 "
    "Adam needs no warm-up, and in a run this short ends lower than AdaMod"
)
BETA3_HELP = (
    "decay of AdaMod's bound, an average of Adam's rates over about 1/(1-beta3) steps that starts "
    "at 0: this is its built-in warm-up"
)


@dataclass(frozen=True)
class Settings:
    """What a run depends on, and nothing else; ``results.json`` records all of it."""

    steps: int = 600
    width: int = 128
    layers: int = 3
    context: int = 64
    batch: int = 16
    lr: float = 3e-3
    beta3: float = 0.999
    seed: int = 0
    device: str = "auto"
    backend: str = "auto"
    out: Path = Path("demo_out")

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Settings:
        return cls(**{field.name: getattr(arguments, field.name) for field in fields(cls)})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares every option with its default; argparse then exits with 2 on a bad value."""
    default = Settings()
    training = parser.add_argument_group("training")
    training.add_argument(
        "--steps", type=_whole(2), metavar="N", help="optimizer steps of AdaMod and of Adam"
    )
    training.add_argument("--lr", type=_learning_rate, help=LR_HELP)
    training.add_argument("--beta3", type=_beta3, help=BETA3_HELP)
    training.add_argument("--batch", type=_whole(1), metavar="N", help="sequences per step")
    training.add_argument(
        "--seed", type=_whole(0, LARGEST_SEED), help="seed of the initial model and the batches"
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--width",
        type=_width,
        metavar="N",
        help=f"size of the residual stream, a multiple of {HEAD_SIZE} (one head each)",
    )
    model.add_argument("--layers", type=_whole(1), metavar="N", help="Transformer blocks")
    model.add_argument(
        "--context", type=_whole(8), metavar="N", help="bytes the model sees at once"
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        help="backend of the first AdaMod run; auto: the fastest that works",
    )
    where.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), help="auto: a GPU if torch can use one"
    )
    where.add_argument(
        "--out", type=_folder, metavar="FOLDER", help="where demo.png and results.json go"
    )
    parser.set_defaults(**{field.name: getattr(default, field.name) for field in fields(default)})


def check_device(name: str) -> torch.device:
    """The device that ``--device`` names; RuntimeError if torch has none such."""
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch can use no GPU here, so --device must be auto or cpu, got cuda")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def parse(value: str) -> int:
        try:
            number = int(value)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {value}")
        if most is not None and number > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {value}")
        return number

    return parse


def _real(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {value}") from None


def _learning_rate(value: str) -> float:
    number = _real(value)
    if not (0 < number < math.inf):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {value}")
    return number


def _beta3(value: str) -> float:
    number = _real(value)
    if not (0 <= number < 1):
        raise argparse.ArgumentTypeError(f"must lie in [0, 1), got {value}")
    return number


def _width(value: str) -> int:
    number = _whole(HEAD_SIZE)(value)
    if number % HEAD_SIZE:
        raise argparse.ArgumentTypeError(f"must be a multiple of {HEAD_SIZE}, got {value}")
    return number


def _folder(value: str) -> Path:
    path = Path(value)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a folder, but {value} is a file")
    return path
