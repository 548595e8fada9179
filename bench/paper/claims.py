"""The paper's claims: what each experiment found, as a table and as inequalities with verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .contenders import Contender, adamod, inverse_root
from .plan import ADAM, BETA3S, LR, LRS, RADAM, SGDM, WARMED, Group, groups
from .record import Record
from .settings import Translation
from .verdicts import Part, at_least, difference, equal, mean_of, more, overall

# The least effects that count, fixed before the runs.
LOSS = 0.05  # nats a token
BLEU = 1.0
ACCURACY = 0.5  # percentage points
DECADE = 1.0  # a factor of ten
HARDLY = 2.0  # percentage points of accuracy that "hardly depends" still allows
EARLY_STEPS = 20
EPS = 1e-8  # of all contenders

Row = tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What a section of the page shows of an experiment."""

    columns: Row
    rows: Sequence[Row]
    parts: Sequence[Part]

    @property
    def verdict(self) -> str:
        return overall(self.parts)


@dataclass(frozen=True)
class Claim:
    """A claim, and how it is put to the test."""

    title: str
    claim: str
    experiment: str
    figure: str
    find: Callable[[Record], Finding]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def largest_rates(record: Record, contender: Contender, kind: str, steps: range) -> list[float]:
    """log10 of the largest 99th percentile within some steps, of each seed.

    The schedule is taken out: it falls for all alike, and is no doing of the optimizer. A run that
    diverged before has the largest rate there is, that of elements without a gradient.
    """
    warmup = translation_of(record).warmup
    group = Group(record.scale.transformers[0], contender)
    return [
        math.log10(
            max(
                (
                    seen[kind]["p99"] / inverse_root(seen["step"] - 1, warmup, contender.warmup)
                    for seen in run["rates"]
                    if seen["step"] in steps
                ),
                default=contender.lr / EPS,
            )
        )
        for run in record.runs(group)
    ]


def rates(record: Record) -> Finding:
    last = translation_of(record).steps
    start, later = range(1, EARLY_STEPS + 1), range(last // 2, last + 1)
    shown = {
        "Adam: eta": (ADAM, "eta"),
        "AdaMod: eta": (adamod(LR), "eta"),
        "AdaMod: min(eta, s)": (adamod(LR), "bounded"),
    }
    found = {
        name: [largest_rates(record, *which, steps) for steps in (start, later)]
        for name, which in shown.items()
    }
    adam, used = found["Adam: eta"], found["AdaMod: min(eta, s)"]
    parts = [
        more(
            "Adam's rates at the start are above its rates later",
            "decades",
            difference(*adam),
            DECADE,
        ),
        more(
            "Adam's rates at the start are above those that AdaMod used",
            "decades",
            difference(adam[0], used[0]),
            DECADE,
        ),
    ]
    columns = (
        "largest 99th percentile, log10",
        *(f"steps {steps[0]:,} to {steps[-1]:,}" for steps in (start, later)),
    )
    rows = [(name, *(spread(values, 2) for values in both)) for name, both in found.items()]
    return Finding(columns, rows, parts)


def _translation_rows(record: Record, shown: Sequence[Group]) -> list[Row]:
    return [
        (
            group.task,
            group.contender.name,
            spread(record.finals(group, "validation_loss"), 3),
            spread(record.finals(group, "bleu"), 2),
        )
        for group in shown
    ]


TRANSLATION_COLUMNS = ("model", "optimizer", "validation loss, nats", "BLEU")


def warmup(record: Record) -> Finding:
    parts = []
    for task in record.scale.transformers:
        loss = {c: record.finals(Group(task, c), "validation_loss") for c in _WARMUP}
        bleu = {c: record.finals(Group(task, c), "bleu") for c in _WARMUP}
        ours, bare, warmed = adamod(LR), ADAM, WARMED
        parts += [
            more(
                f"{task}: the loss of Adam without warm-up is more than with it",
                "nats",
                difference(loss[bare], loss[warmed]),
                LOSS,
            ),
            more(
                f"{task}: the loss of Adam without warm-up is more than AdaMod's",
                "nats",
                difference(loss[bare], loss[ours]),
                LOSS,
            ),
            at_least(
                f"{task}: the loss of Adam with warm-up is at least AdaMod's",
                "nats",
                difference(loss[warmed], loss[ours]),
                LOSS,
            ),
            at_least(
                f"{task}: AdaMod's BLEU is at least that of Adam with warm-up",
                "BLEU",
                difference(bleu[ours], bleu[warmed]),
                BLEU,
            ),
        ]
    return Finding(
        TRANSLATION_COLUMNS, _translation_rows(record, groups("warmup", record.scale)), parts
    )


_WARMUP = (ADAM, WARMED, RADAM, adamod(LR), adamod(LR, 0.9999))


def lr_ranges(record: Record, make: Callable[[float], Contender]) -> list[float]:
    """The best less the worst accuracy over learning rates, of each seed."""
    by_lr = [record.finals(Group("resnet", make(lr)), "accuracy") for lr in LRS]
    return [max(seed) - min(seed) for seed in zip(*by_lr, strict=True)]


def lr(record: Record) -> Finding:
    makers: dict[str, Callable[[float], Contender]] = {
        "Adam": lambda lr: Contender("adam", lr),
        "AdaMod beta3=0.999": adamod,
    }
    rows = []
    for name, make in makers.items():
        cells = [spread(record.finals(Group("resnet", make(lr)), "accuracy"), 2) for lr in LRS]
        rows.append((name, *cells, spread(lr_ranges(record, make), 2)))
    adam, ours = (lr_ranges(record, make) for make in makers.values())
    below = mean_of([HARDLY - value for value in ours])
    parts = [
        at_least(f"{HARDLY:g} points are at least AdaMod's range", "points", below, 0.0),
        more("Adam's range is more than AdaMod's", "points", difference(adam, ours), ACCURACY),
    ]
    columns = ("optimizer", *(f"accuracy at lr {lr:g}, %" for lr in LRS), "range, points")
    return Finding(columns, rows, parts)


def gains(record: Record, task: str) -> list[float]:
    """AdaMod's accuracy less Adam's, of each seed."""
    ours, adam = (
        record.finals(Group(task, contender), "accuracy") for contender in (adamod(LR), ADAM)
    )
    return [a - b for a, b in zip(ours, adam, strict=True)]


def depth(record: Record) -> Finding:
    rows = []
    for task in ("resnet", "densenet"):
        cells = [
            spread(record.finals(Group(task, contender), "accuracy"), 2)
            for contender in (SGDM, ADAM, adamod(LR))
        ]
        rows.append((task, *cells, spread(gains(record, task), 2)))
    dense, plain = gains(record, "densenet"), gains(record, "resnet")
    parts = [
        more("AdaMod gains over Adam on the DenseNet", "points", mean_of(dense), ACCURACY),
        more(
            "the gain on the DenseNet is more than on the ResNet",
            "points",
            difference(dense, plain),
            ACCURACY,
        ),
    ]
    columns = ("network", "SGDM, %", "Adam, %", "AdaMod, %", "AdaMod less Adam, points")
    return Finding(columns, rows, parts)


def early_step(record: Record) -> int:
    """The first step at which losses were measured, from a tenth of all on."""
    settings = translation_of(record)
    every = settings.evaluate_every
    return -(-settings.steps // (10 * every)) * every


def early_losses(record: Record, group: Group) -> list[float]:
    """The validation loss then, of each seed; of a run that diverged before, that of a guess."""
    guess = math.log(translation_of(record).vocabulary)
    curves = [run["curve"] for run in record.runs(group)]
    return [
        dict(zip(curve["step"], curve["validation_loss"], strict=True)).get(
            early_step(record), guess
        )
        for curve in curves
    ]


def beta3(record: Record) -> Finding:
    task = record.scale.transformers[0]
    swept = {value: Group(task, adamod(LR, value)) for value in BETA3S}
    early = {value: early_losses(record, group) for value, group in swept.items()}
    late = {value: record.finals(group, "validation_loss") for value, group in swept.items()}
    rows = [
        (
            f"{value:g}",
            spread(early[value], 3),
            spread(late[value], 3),
            spread(record.finals(group, "bleu"), 2),
        )
        for value, group in swept.items()
    ]
    parts = [
        more(
            f"at first, the loss at beta3 = {large:g} is more than at {small:g}",
            "nats",
            difference(early[large], early[small]),
            LOSS,
        )
        for small, large in ((0.0, 0.999), (0.999, 0.9999))
    ] + [
        more(
            f"at the end, the loss at beta3 = {small:g} is more than at {large:g}",
            "nats",
            difference(late[small], late[large]),
            LOSS,
        )
        for small, large in ((0.0, 0.999), (0.999, 0.9999))
    ]
    columns = ("beta3", f"validation loss at step {early_step(record):,}", "at the end", "BLEU")
    return Finding(columns, rows, parts)


def variants(record: Record) -> Finding:
    shown = groups("variants", record.scale)
    loss, bleu = (
        difference(*(record.finals(group, measure) for group in reversed(shown)))
        for measure in ("validation_loss", "bleu")
    )
    parts = [
        equal("the released form's loss equals the paper's", "nats", loss, LOSS),
        equal("the released form's BLEU equals the paper's", "BLEU", bleu, BLEU),
    ]
    return Finding(TRANSLATION_COLUMNS, _translation_rows(record, shown), parts)


def translation_of(record: Record) -> Translation:
    settings = record.scale.tasks[record.scale.transformers[0]]
    assert isinstance(settings, Translation)
    return settings


_CURVES = (
    "Validation losses; lines are means over the seeds, shades reach from the least to the most."
)
_DOTS = "Every dot is a run; lines go through the means."

CLAIMS = {
    "rates": Claim(
        "Extremely large learning rates",
        "Adam's learning rates are extremely large at the start; AdaMod's are not.",
        "The rates of all elements in chosen steps of the translation runs with Adam without "
        "warm-up and with AdaMod; the fall of the schedule is taken out. Elements that never had a "
        "gradient have no say. That the bound is low in the first steps follows from s = 0 at the "
        "start; whether that helps is what the other sections ask.",
        "One panel a step, first seed; elements by the logarithm of their learning rate, "
        "schedule included, Adam's in orange and what AdaMod used in blue.",
        rates,
    ),
    "warmup": Claim(
        "Training without warm-up",
        "Without warm-up Adam stalls or diverges on the Transformer; AdaMod trains, and matches or "
        "beats Adam with warm-up.",
        "A Transformer normalized after each sublayer, as in Vaswani et al., translates English to "
        "German. All have the same peak learning rate and the same fall with the inverse root of "
        "the step; warm-up alone differs. The verdict is that of AdaMod's default beta3, 0.999.",
        _CURVES,
        warmup,
    ),
    "lr": Claim(
        "The initial learning rate",
        "With AdaMod, accuracy hardly depends on an initial learning rate of 1e-3, 1e-2 or 1e-1.",
        "A ResNet on Fashion-MNIST. The range is that of the accuracies of one seed.",
        _DOTS,
        lr,
    ),
    "depth": Claim(
        "Depth and density",
        "The gains of AdaMod over Adam grow with the depth and density of the network.",
        "A DenseNet against a ResNet, on the same images for as many steps.",
        _DOTS,
        depth,
    ),
    "beta3": Claim(
        "The range of the average",
        "A larger beta3 is slower at first and better later.",
        "The Transformer again, AdaMod without warm-up, beta3 varied.",
        _CURVES,
        beta3,
    ),
    "variants": Claim(
        "Paper and released code",
        "Not a claim of the paper, but a question of ours: the authors' code bounds another rate "
        "than the paper's algorithm; do both forms end alike?",
        "The Transformer again, with both forms of AdaMod from the same seeds.",
        _CURVES,
        variants,
    ),
}
