"""Parameter lists to measure on: the shapes of real models, and made-up lists for single effects.

Each function writes a model down as its definition builds it, so that the shapes come in the order
of ``model.parameters()``. Nothing is downloaded; tests hold every count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

Shape = tuple[int, ...]
Shapes = Iterator[Shape]


class ParamList(NamedTuple):
    """The shapes of a model's parameters, where they are from and where they are measured."""

    name: str
    shapes: tuple[Shape, ...]
    source: str
    devices: tuple[str, ...] = ("cpu", "cuda")  # by default: any list can be asked for anywhere

    @property
    def tensors(self) -> int:
        return len(self.shapes)

    @property
    def numel(self) -> int:
        return sum(map(math.prod, self.shapes))


def gpt2(vocabulary: int, context: int, width: int, layers: int) -> Shapes:
    """GPT-2, whose head is the token embedding; its Conv1D keeps (inputs, outputs)."""
    yield from ((vocabulary, width), (context, width))
    for _ in range(layers):
        yield from (
            *((width,), (width,)),  # ln_1
            *((width, 3 * width), (3 * width,)),  # attn.c_attn
            *((width, width), (width,)),  # attn.c_proj
            *((width,), (width,)),  # ln_2
            *((width, 4 * width), (4 * width,)),  # mlp.c_fc
            *((4 * width, width), (width,)),  # mlp.c_proj
        )
    yield from ((width,), (width,))


def batch_norm(channels: int) -> Shapes:
    yield from ((channels,), (channels,))


def resnet50(classes: int = 1000) -> Shapes:
    """ResNet-50: bottleneck blocks of 1x1, 3x3, 1x1, the first of a stage with a projection."""
    yield (64, 3, 7, 7)
    yield from batch_norm(64)
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        outputs = 4 * width
        for block in range(blocks):
            yield (width, inputs, 1, 1)
            yield from batch_norm(width)
            yield (width, width, 3, 3)
            yield from batch_norm(width)
            yield (outputs, width, 1, 1)
            yield from batch_norm(outputs)
            if block == 0:
                yield (outputs, inputs, 1, 1)
                yield from batch_norm(outputs)
            inputs = outputs
    yield from ((classes, inputs), (classes,))


def densenet121(growth: int = 32, classes: int = 1000) -> Shapes:
    """DenseNet-121: every layer of a block adds ``growth`` channels to its input."""
    blocks = (6, 12, 24, 16)
    bottleneck = 4 * growth
    channels = 2 * growth
    yield (channels, 3, 7, 7)
    yield from batch_norm(channels)
    for index, layers in enumerate(blocks):
        for _ in range(layers):
            yield from batch_norm(channels)
            yield (bottleneck, channels, 1, 1)
            yield from batch_norm(bottleneck)
            yield (growth, bottleneck, 3, 3)
            channels += growth
        yield from batch_norm(channels)
        if index < len(blocks) - 1:
            yield (channels // 2, channels, 1, 1)
            channels //= 2
    yield from ((classes, channels), (classes,))


def llama(vocabulary: int, width: int, hidden: int, layers: int, key_value_width: int) -> Shapes:
    """Llama with grouped queries, whose head is the token embedding."""
    yield (vocabulary, width)
    for _ in range(layers):
        yield from ((width, width), (key_value_width, width), (key_value_width, width))  # q, k, v
        yield (width, width)  # o
        yield from ((hidden, width), (hidden, width), (width, hidden))  # gate, up, down
        yield from ((width,), (width,))  # norms before attention and feed-forward
    yield (width,)


def olmoe(vocabulary: int, width: int, hidden: int, layers: int = 16, experts: int = 64) -> Shapes:
    """OLMoE, each expert a feed-forward network of three matrices; head and embedding apart."""
    yield (vocabulary, width)
    for _ in range(layers):
        yield from ((width, width),) * 4  # q, k, v, o
        yield from ((width,), (width,))  # norms of q and k
        yield (experts, width)  # router
        for _ in range(experts):
            yield from ((hidden, width), (hidden, width), (width, hidden))  # gate, up, down
        yield from ((width,), (width,))  # norms before attention and feed-forward
    yield (width,)
    yield (vocabulary, width)


def size_sweep(largest: int) -> tuple[ParamList, ...]:
    """One tensor of 1e3, 1e4, ... elements, as far as ``largest``: what an element costs."""
    powers = range(3, len(str(largest)))
    return tuple(
        ParamList(f"size-1e{power}", ((10**power,),), "made up: one tensor, sizes swept")
        for power in powers
    )


def tensor_sweep() -> tuple[ParamList, ...]:
    """1, 10, ... 10,000 tensors of 64 elements: what a tensor costs."""
    return tuple(
        ParamList(f"tensors-{count}", ((64,),) * count, "made up: tensors of 64, counts swept")
        for count in (1, 10, 100, 1_000, 10_000)
    )


LISTS: dict[str, ParamList] = {
    entry.name: entry
    for entry in (
        ParamList(
            "gpt2-124m",
            tuple(gpt2(50257, context=1024, width=768, layers=12)),
            "GPT-2 124M: Radford et al., 2019; transformers, models/gpt2/modeling_gpt2.py",
        ),
        ParamList(
            "resnet50",
            tuple(resnet50()),
            "ResNet-50: He et al., arXiv 1512.03385; torchvision, models/resnet.py",
        ),
        ParamList(
            "densenet121",
            tuple(densenet121()),
            "DenseNet-121: Huang et al., arXiv 1608.06993; torchvision, models/densenet.py",
        ),
        ParamList(
            "llama-3.2-1b",
            tuple(llama(128256, width=2048, hidden=8192, layers=16, key_value_width=512)),
            "Llama 3.2 1B: Meta, 2024; transformers, models/llama/modeling_llama.py",
            ("cuda",),
        ),
        ParamList(
            "moe",
            tuple(olmoe(50304 // 16, width=2048 // 16, hidden=1024 // 16)),
            "OLMoE-1B-7B: Muennighoff et al., arXiv 2409.02060; transformers 4.45, models/olmoe/"
            "modeling_olmoe.py. Scaled: vocabulary (50,304), width (2,048) and hidden width of an "
            "expert (1,024) are a sixteenth; its 16 layers, 64 experts a layer and 3,219 tensors "
            "are kept",
        ),
        ParamList("small-1000", ((64,),) * 1_000, "made up: nothing but the cost of a tensor"),
        ParamList("small-10000", ((64,),) * 10_000, "made up: nothing but the cost of a tensor"),
        ParamList("single-50m", ((50_000_000,),), "made up: nothing but memory traffic", ("cpu",)),
        ParamList(
            "single-1g", ((1_000_000_000,),), "made up: nothing but memory traffic", ("cuda",)
        ),
    )
}
