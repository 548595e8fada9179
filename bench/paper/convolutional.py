"""ResNet (He et al.) and DenseNet-BC (Huang et al.), with the stems used for small images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOTTLENECK = 4  # times the growth
COMPRESSION = 2  # between dense blocks


@dataclass(frozen=True)
class ResNetShape:
    """Basic blocks of two convolutions; all stages but the first halve the sides."""

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    stem_stride: int = 1


@dataclass(frozen=True)
class DenseNetShape:
    """Dense layers of each block, and the channels that each of them adds."""

    growth: int
    blocks: tuple[int, ...]
    stem_stride: int = 1


def network(shape: ResNetShape | DenseNetShape, classes: int) -> nn.Module:
    """For images [B, 1, H, W]."""
    parts = _resnet(shape) if isinstance(shape, ResNetShape) else _densenet(shape)
    body = nn.Sequential(*parts)
    body.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # a fifth faster
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(classes))


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return layer


def _resnet(shape: ResNetShape) -> Iterator[nn.Module]:
    width = shape.widths[0]
    yield _convolution(1, width, stride=shape.stem_stride)
    yield nn.BatchNorm2d(width)
    yield nn.ReLU()
    for stage, (outputs, blocks) in enumerate(zip(shape.widths, shape.blocks, strict=True)):
        for block in range(blocks):
            yield BasicBlock(width, outputs, 2 if stage and not block else 1)
            width = outputs


class BasicBlock(nn.Module):
    """Two convolutions, and the input added to what they give."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(inputs, outputs, stride=stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            _convolution(outputs, outputs),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, size=1, stride=stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        return F.relu(self.body(images) + self.shortcut(images))


def _densenet(shape: DenseNetShape) -> Iterator[nn.Module]:
    width = 2 * shape.growth
    yield _convolution(1, width, stride=shape.stem_stride)
    for layers, following in pairwise((*shape.blocks, 0)):
        for _ in range(layers):
            yield DenseLayer(width, shape.growth)
            width += shape.growth
        yield nn.BatchNorm2d(width)
        yield nn.ReLU()
        if following:
            yield _convolution(width, width // COMPRESSION, size=1)
            yield nn.AvgPool2d(2)
            width //= COMPRESSION


class DenseLayer(nn.Module):
    """``growth`` new channels behind the input's."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            _convolution(inputs, BOTTLENECK * growth, size=1),
            nn.BatchNorm2d(BOTTLENECK * growth),
            nn.ReLU(),
            _convolution(BOTTLENECK * growth, growth),
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([images, self.body(images)], dim=1)
