"""How large each task is: the declared tables of both scales."""

from __future__ import annotations

from dataclasses import dataclass

from .convolutional import DenseNetShape, ResNetShape
from .transformer import TransformerShape


@dataclass(frozen=True)
class Translation:
    """English to German. ``max_tokens`` holds for each side of a pair, ``batch`` counts pairs."""

    shape: TransformerShape
    vocabulary: int
    max_tokens: int
    batch: int
    steps: int
    warmup: int
    """Steps of rise in the schedule with warm-up; where the fall begins, in both."""
    evaluate_every: int
    bleu_strings: int
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class Classification:
    """Fashion-MNIST. The learning rate falls to a tenth after three quarters of the steps."""

    shape: ResNetShape | DenseNetShape
    images: int
    """Of the training split, from its start."""
    batch: int
    epochs: int
    augmented: bool = False
    """By shifts and mirroring, as usual for small images."""

    @property
    def steps(self) -> int:
        return self.epochs * (self.images // self.batch)

    @property
    def evaluate_every(self) -> int:
        return self.images // self.batch


@dataclass(frozen=True)
class Scale:
    """All tasks by name. What the tasks of translation are called stands in ``transformers``."""

    tasks: dict[str, Translation | Classification]
    transformers: tuple[str, ...]
    """The first is the one that experiments of one task take."""
    seeds: tuple[int, ...]
    device: str


CPU = Scale(
    tasks={
        "transformer": Translation(
            TransformerShape(width=96, heads=4, feedforward=192, layers=4, dropout=0.0),
            vocabulary=2000,
            max_tokens=12,
            batch=20,
            steps=2000,
            warmup=200,
            evaluate_every=125,
            bleu_strings=400,
        ),
        "resnet": Classification(
            ResNetShape(widths=(16, 32, 64), blocks=(1, 1, 1), stem_stride=2),
            images=10_000,
            batch=64,
            epochs=6,
        ),
        "densenet": Classification(
            DenseNetShape(growth=8, blocks=(3, 3, 3), stem_stride=2),
            images=10_000,
            batch=64,
            epochs=6,
        ),
    },
    transformers=("transformer",),
    seeds=(1, 2, 3),
    device="cpu",
)

GPU = Scale(
    tasks={
        "transformer": Translation(
            TransformerShape(width=512, heads=4, feedforward=1024, layers=6, dropout=0.3),
            vocabulary=8000,
            max_tokens=64,
            batch=256,
            steps=20_000,
            warmup=2_000,
            evaluate_every=500,
            bleu_strings=2_500,
            label_smoothing=0.1,
        ),
        "transformer-base": Translation(
            TransformerShape(width=512, heads=8, feedforward=2048, layers=6, dropout=0.1),
            vocabulary=8000,
            max_tokens=64,
            batch=256,
            steps=20_000,
            warmup=2_000,
            evaluate_every=500,
            bleu_strings=2_500,
            label_smoothing=0.1,
        ),
        "resnet": Classification(
            ResNetShape(widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3)),  # ResNet-34
            images=60_000,
            batch=128,
            epochs=40,
            augmented=True,
        ),
        "densenet": Classification(
            DenseNetShape(growth=32, blocks=(6, 12, 24, 16)),  # DenseNet-121
            images=60_000,
            batch=128,
            epochs=40,
            augmented=True,
        ),
    },
    transformers=("transformer", "transformer-base"),
    seeds=(1, 2, 3),
    device="cuda",
)

SCALES = {"cpu": CPU, "gpu": GPU}
