"""How figures look: the same colour and place for a contestant in all of them; labels at lines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from adamod_fused.demo.style import ADAM, ADAMOD, FAINT

from .contestants import NAMES
from .report import OURS

GRID = "#E8E8E8"
LIMIT = "#C9C9C9"


class Look(NamedTuple):
    """Of a contestant: families share a colour, their members differ in dashes."""

    color: str
    dashes: Any = "solid"


DASHED, DOTTED = (0, (5, 2)), (0, (1.2, 1.6))
IN_FORMATS = {  # what names of ours end with
    "": "solid",
    " 16bit": DASHED,
    " 8bit": DOTTED,
    " split 8bit": (0, (5, 2, 1.2, 2)),
    " stochastic 8bit": (0, (5, 2, 1.2, 1.6, 1.2, 2)),
}
UNKNOWN = Look(FAINT)

# Most colours are of Okabe and Ito's palette, which colour-blind readers can tell apart.
LOOKS = {
    f"{OURS}{backend}{formats}": Look(color, dashes)
    for backend, color in (("cpu", ADAMOD), ("cuda", ADAMOD), ("triton", "#56B4E9"))
    for formats, dashes in IN_FORMATS.items()
} | {
    "torch Adam fused": Look(ADAM),
    "torch Adam foreach": Look(ADAM, DASHED),
    "torch Adam for-loop": Look(ADAM, DOTTED),
    "torch AdamW fused": Look("#E69F00"),
    "torch AdamW foreach": Look("#E69F00", DASHED),
    "torch AdamW for-loop": Look("#E69F00", DOTTED),
    "pytorch_optimizer AdaMod": Look("#009E73"),
    "torch_optimizer AdaMod": Look("#009E73", DASHED),
    "optimi Adam": Look("#CC79A7"),
    "bitsandbytes Adam": Look("#6A4C93"),
    "bitsandbytes Adam8bit": Look("#6A4C93", DASHED),
    "torchao AdamW8bit": Look("#8C564B"),
    "flashoptim AdamW": Look("#B39B00"),
    "apex FusedAdam": Look("#4D7C0F"),
    "deepspeed CPUAdam": Look("#444444"),
}


def look(contestant: str) -> Look:
    return LOOKS.get(contestant, UNKNOWN)


def line(contestant: str, rank: int) -> dict[str, Any]:
    """Of the contestant that is the ``rank``-th in order: the first lie above the others."""
    ours = contestant.startswith(OURS)
    return {
        "color": look(contestant).color,
        "linestyle": look(contestant).dashes,
        "linewidth": 3.2 if ours else 1.6,
        "marker": "o",
        "markersize": 6.5 if ours else 3.5,
        "zorder": 4 - rank / 100,
    }


def order(contestants: Iterable[str]) -> list[str]:
    """Ours first, then as contestants.py lists them; names that it does not know last."""
    return sorted(set(contestants), key=lambda name: ((*NAMES, name).index(name), name))


class End(NamedTuple):
    """Where a line ends, in the units of its axes."""

    name: str
    x: float
    y: float


def label_ends(axes: Any, ends: Sequence[End], gap: float) -> None:
    """Names lines right of axes with a logarithmic y, whose limits are final.

    ``gap`` is the least distance between two labels, as a share of the axes' height.
    """
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    wanted = [(math.log10(end.y) - low) / (high - low) for end in ends]
    for end, place in zip(ends, spread_out(wanted, gap), strict=True):
        ours = end.name.startswith(OURS)
        axes.annotate(
            end.name,
            xy=(end.x, end.y),
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            color=look(end.name).color,
            fontsize=13 if ours else 11,
            fontweight="bold" if ours else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": look(end.name).color,
                "linewidth": 0.7,
                "alpha": 0.6,
                "shrinkA": 2,
                "shrinkB": 4,
            },
        )


def spread_out(wanted: Sequence[float], gap: float) -> list[float]:
    """Places from 0 to 1, at least ``gap`` apart, and as near to the wanted as that allows.

    Neighbours that are too close join into a block around their mean, until no two touch.
    """
    ranked = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[list[int]] = []

    def bottom(block: list[int]) -> float:
        mean = sum(wanted[i] for i in block) / len(block)
        height = gap * (len(block) - 1)
        return max(0.0, min(mean - height / 2, 1 - height))

    for index in ranked:
        blocks.append([index])
        while len(blocks) > 1 and (
            bottom(blocks[-1]) < bottom(blocks[-2]) + gap * len(blocks[-2]) - gap * 1e-9
        ):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    places = [0.0] * len(wanted)
    for block in blocks:
        for rank, index in enumerate(block):
            places[index] = bottom(block) + gap * rank
    return places
