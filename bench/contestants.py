"""The contestants: ours and every peer, how each is made and what it serves; why one is absent.

All get the same hyperparameters and are otherwise as their packages' defaults make them, but for
the formats that some of ours are in. What each serves was found by running it (on a CPU) and by
reading its source (on a GPU). A package is imported when its contestant is asked for, not before.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from adamod_fused import AdaMod, backends
from adamod_fused import formats as storage
from adamod_fused.extras import installed
from adamod_fused.formats import PLAIN, Formats

HYPERPARAMETERS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
}
BETA3 = 0.999  # of every AdaMod

BASELINE = "torch Adam fused"

Make = Callable[[list[Parameter]], Optimizer]
Refuses = Callable[[torch.device, torch.dtype], "str | None"]


@dataclass(frozen=True)
class Contestant:
    """An optimizer that may be measured."""

    name: str
    package: str
    """Its distribution, for the version in the record."""
    make: Make
    refuses: Refuses
    """Why it cannot be measured with parameters of a device and dtype; None where it can."""
    ours: bool = False
    formats: Formats = PLAIN
    """Ours: how states and weights are stored."""
    make_twin: Make | None = None
    """How its twin with tiny tensors (clocks.py) is made, where ``make`` treats those otherwise."""
    module: str = ""
    """The module that ``package`` installs, where that has another name."""
    remedy: str = ""
    """What to do where it is not installed, if not ``pip install``."""
    slow_start: str = ""
    """What it compiles before its first step, where that takes long."""
    one_by_one: bool = False
    """Whether it launches kernels for every single tensor."""
    slow_for_each_shape: bool = False
    """Whether it does so again for every shape of parameter."""

    @property
    def twin(self) -> Contestant:
        """What is measured in its place where tensors are tiny."""
        return replace(self, make=self.make_twin or self.make)


EVERYWHERE = ("cpu", "cuda")


class Unserved(NamedTuple):
    """A dtype that a peer does not serve, or only seems to."""

    dtype: torch.dtype
    reason: str
    devices: tuple[str, ...] = EVERYWHERE


NO_FLOAT64 = Unserved(torch.float64, "it has no float64 arithmetic")
NO_FLOAT16 = Unserved(
    torch.float16,
    "it computes in float16, where eps = 1e-8 is 0: parameters become inf and NaN",
)


def serves(devices: tuple[str, ...], *unserved: Unserved) -> Refuses:
    """``refuses`` of a peer that serves all dtypes on ``devices``, less some."""

    def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type not in devices:
            return f"it steps tensors on {' and '.join(devices)}, not on {device.type}"
        reasons = (u.reason for u in unserved if u.dtype == dtype and device.type in u.devices)
        return next(reasons, None)

    return refuses


def found_in(module: str, optimizer: str, **options: Any) -> Make:
    """``make`` of an optimizer of some module, imported when it is called."""

    def make(params: list[Parameter]) -> Optimizer:
        build: Callable[..., Optimizer] = getattr(import_module(module), optimizer)
        return build(params, **HYPERPARAMETERS | options)

    return make


def make_flashoptim(params: list[Parameter]) -> Optimizer:
    # Refused for float32 alone: the bits that it would add to every parameter are there already.
    full = all(param.dtype == torch.float32 for param in params)
    options = {"master_weight_bits": None} if full else {}
    return found_in("flashoptim", "FlashAdamW", **options)(params)


def ours(backend: str, formats: Formats = PLAIN) -> Contestant:
    """AdaMod on one of its backends."""
    keywords: dict[str, Any] = {"state_format": formats.state, "weight_format": formats.weight}

    def refuses(device: torch.device, dtype: torch.dtype) -> str | None:
        status = backends.available()[backend]
        served = "cpu" if backend == "cpu" else "cuda"
        if device.type != served:
            return f"it steps tensors on {served}, not on {device.type}"
        if not status.available:
            return f"{status.reason}; {status.remedy}"
        try:
            param = torch.empty(0, dtype=dtype, device=device)
            backends.choose(backend, param)
            storage.formats_of(param, storage.DEFAULTS | keywords, "a parameter here")
        except ValueError as error:
            return str(error).partition(";")[0]  # the remedies are for who chose the tensor
        return None

    make = partial(AdaMod, beta3=BETA3, backend=backend, **HYPERPARAMETERS, **keywords)
    return Contestant(
        " ".join(("adamod_fused", backend, *written(formats))),
        "adamod_fused",
        make,
        refuses,
        ours=True,
        formats=formats,
        # Its tensors are so small that they would keep float32 states.
        make_twin=partial(make, min_coded_numel=0) if formats.codes_states else None,
    )


def written(formats: Formats) -> list[str]:
    """What of formats is no default, in the order in which names have it."""
    named = ((formats.weight, PLAIN.weight), (formats.state, PLAIN.state))
    return [name for name, default in named if name != default]


def all_ours() -> Iterator[Contestant]:
    for backend in ("cpu", "cuda", "triton"):
        yield ours(backend)
        for formats in CODED:
            yield ours(backend, formats)


def torch_adams() -> Iterator[Contestant]:
    for optimizer in ("Adam", "AdamW"):
        for kind, options, unserved in (
            ("fused", {"fused": True}, ()),
            ("foreach", {"foreach": True}, (NO_FLOAT16,)),
            ("for-loop", {"foreach": False, "fused": False}, (NO_FLOAT16,)),
        ):
            yield Contestant(
                f"torch {optimizer} {kind}",
                "torch",
                found_in("torch.optim", optimizer, **options),
                serves(EVERYWHERE, *unserved),
                one_by_one=kind == "for-loop",
            )


CODED = (
    Formats("16bit"),
    Formats("8bit"),
    Formats("8bit", "split"),
    Formats("8bit", "stochastic"),
)
"""The formats that each backend is measured in besides its default ones."""

_ALL: tuple[Contestant, ...] = (
    *all_ours(),
    *torch_adams(),
    Contestant(
        "pytorch_optimizer AdaMod",
        "pytorch_optimizer",
        found_in("pytorch_optimizer", "AdaMod", betas=(*HYPERPARAMETERS["betas"], BETA3)),
        serves(EVERYWHERE, NO_FLOAT16),
        one_by_one=True,
    ),
    Contestant(
        "torch_optimizer AdaMod",
        "torch_optimizer",
        found_in("torch_optimizer", "AdaMod", beta3=BETA3),
        serves(EVERYWHERE, NO_FLOAT16),
        one_by_one=True,
    ),
    Contestant(
        "optimi Adam",
        "torch-optimi",
        found_in("optimi", "Adam"),
        # On a GPU its default is a Triton kernel, which computes in float32 whatever the dtype.
        serves(
            EVERYWHERE,
            NO_FLOAT16._replace(devices=("cpu",)),
            NO_FLOAT64._replace(devices=("cuda",)),
        ),
        module="optimi",
        one_by_one=True,
    ),
    Contestant(
        "bitsandbytes Adam",
        "bitsandbytes",
        found_in("bitsandbytes.optim", "Adam"),
        serves(EVERYWHERE, NO_FLOAT64),
        one_by_one=True,
    ),
    Contestant(
        "bitsandbytes Adam8bit",
        "bitsandbytes",
        found_in("bitsandbytes.optim", "Adam8bit"),
        serves(EVERYWHERE, NO_FLOAT64),
        one_by_one=True,
    ),
    Contestant(
        "torchao AdamW8bit",
        "torchao",
        found_in("torchao.optim", "AdamW8bit"),
        serves(EVERYWHERE, NO_FLOAT64),
        slow_start="torch.compile runs for every shape of parameter, seconds for each",
        slow_for_each_shape=True,
        one_by_one=True,
    ),
    Contestant(
        "flashoptim AdamW",
        "flashoptim",
        make_flashoptim,
        serves(("cuda",), NO_FLOAT64),
        one_by_one=True,
    ),
    Contestant(
        "apex FusedAdam",
        "apex",
        found_in("apex.optimizers", "FusedAdam"),
        serves(("cuda",), NO_FLOAT64),
        remedy="build it from https://github.com/NVIDIA/apex (PyPI's apex is another package)",
    ),
    Contestant(
        "deepspeed CPUAdam",
        "deepspeed",
        found_in("deepspeed.ops.adam", "DeepSpeedCPUAdam"),
        serves(("cpu",), NO_FLOAT64),
        slow_start="it compiles a C++ extension when it is first made on a machine, a minute",
    ),
)

NAMES = tuple(contestant.name for contestant in _ALL)
SLOW_START = {c.name: c.slow_start for c in _ALL if c.slow_start}


def contestants(
    device: torch.device, names: Collection[str] = NAMES
) -> tuple[list[Contestant], dict[str, str]]:
    """Those of ``names`` that can run on ``device`` here, and why the others cannot, by name.

    Each is tried: imported, made, stepped once.
    """
    present: list[Contestant] = []
    absent: dict[str, str] = {}
    for contestant in _ALL:
        if contestant.name not in names:
            continue
        reason = _why_absent(contestant, device)
        if reason is None:
            present.append(contestant)
        else:
            absent[contestant.name] = reason
    return present, absent


def named(name: str) -> Contestant:
    """The contestant of that name."""
    return next(contestant for contestant in _ALL if contestant.name == name)


def refused(contestant: Contestant, device: torch.device) -> str | None:
    """Why a contestant serves nothing on a device; None where it serves something."""
    return contestant.refuses(device, _dtype(contestant))


def _dtype(contestant: Contestant) -> torch.dtype:
    """One that it serves, where it serves any."""
    return torch.float32 if contestant.formats.weight == PLAIN.weight else torch.bfloat16


def _why_absent(contestant: Contestant, device: torch.device) -> str | None:
    refusal = refused(contestant, device)
    if refusal is not None:
        return refusal
    if not installed(contestant.module or contestant.package):
        return f"not installed: {contestant.remedy or f'pip install {contestant.package}'}"
    try:
        param = Parameter(torch.zeros(16, dtype=_dtype(contestant), device=device))
        param.grad = torch.ones_like(param)
        with _quiet():
            contestant.make([param]).step()
    except Exception as error:  # noqa: BLE001 - a peer may fail in any way, the others still run
        return f"does not work here: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the complaints of peers, when imported, about parts of theirs not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
