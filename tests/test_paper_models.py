"""bench.paper's networks: sizes of both scales, what they compute, that AdaMod steps them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.paper.contenders import adamod
from bench.paper.convolutional import network
from bench.paper.settings import CPU, GPU, Classification, Translation
from bench.paper.tokens import BOS, EOS, PAD
from bench.paper.transformer import Transformer, TransformerShape, positions

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSIFICATIONS = [
    pytest.param(settings.shape, id=f"{name}-{task}")
    for name, scale in (("cpu", CPU), ("gpu", GPU))
    for task, settings in scale.tasks.items()
    if isinstance(settings, Classification)
]


@pytest.mark.parametrize("shape", CLASSIFICATIONS)
def test_convolutional_nets_step(shape: object) -> None:
    torch.manual_seed(1)
    model = network(shape, 10)
    logits = model(torch.randn(2, 1, 8, 8))
    assert logits.shape == (2, 10)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = adamod(1e-3).optimizer(model.parameters())
    logits.square().sum().backward()
    optimizer.step()
    changed = [
        not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True)
    ]
    assert sum(changed) > 0.9 * len(changed)


@pytest.mark.parametrize(
    ("task", "of_imagenet", "stem_norm"), [("resnet", 21_797_672, 0), ("densenet", 7_978_856, 128)]
)
def test_the_gpu_scale_has_the_networks_of_the_paper(
    task: str, of_imagenet: int, stem_norm: int
) -> None:
    """ResNet-34 and DenseNet-121, but for their first and last layers, which suit small images."""
    model = network(GPU.tasks[task].shape, 10)
    model(torch.zeros(2, 1, 8, 8))
    inputs = model[-1].in_features
    first = 64 * (7 * 7 * 3 - 3 * 3 * 1) + stem_norm
    last = (inputs + 1) * (1000 - 10)
    assert sum(p.numel() for p in model.parameters()) == of_imagenet - first - last


TRANSLATIONS = [
    pytest.param(scale.tasks[task], id=f"{name}-{task}")
    for name, scale in (("cpu", CPU), ("gpu", GPU))
    for task in scale.transformers
]


@pytest.mark.parametrize("settings", TRANSLATIONS)
def test_transformers_step(settings: Translation) -> None:
    torch.manual_seed(1)
    model = Transformer(settings.shape, settings.vocabulary)
    tokens = torch.randint(3, settings.vocabulary, (2, 4))
    logits = model(tokens, tokens)
    assert logits.shape == (2, 4, settings.vocabulary)
    before = model.embedding.weight.detach().clone()
    optimizer = adamod(1e-3).optimizer(model.parameters())
    logits.square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.embedding.weight, before)
    assert not model.decoder.layers[0].norm_first


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(1)
    return Transformer(TransformerShape(16, 2, 16, 2, 0.0), 20)


def test_a_transformer_sees_neither_the_future_nor_padding(model: Transformer) -> None:
    source = torch.tensor([[5, 6, 7, EOS]])
    target = torch.tensor([[BOS, 8, 9, 10]])
    logits = model(source, target)
    assert logits.shape == (1, 4, 20)
    padded = torch.tensor([[5, 6, 7, EOS, PAD, PAD]])
    other = torch.tensor([[BOS, 8, 11, 12]])
    torch.testing.assert_close(model(padded, target), logits)
    changed = model(source, other)
    torch.testing.assert_close(changed[:, :2], logits[:, :2])
    assert not torch.allclose(changed[:, 2], logits[:, 2])


def test_translations_are_those_of_the_likeliest_token(model: Transformer) -> None:
    with torch.no_grad():
        model.embedding.weight[EOS] += model.embedding.weight[7]  # so that some end early
    source = torch.randint(3, 20, (12, 5))
    found = model.translate(source, max_tokens=6)
    lengths = {len(tokens) for tokens in found}
    assert max(lengths) <= 6
    for row, tokens in zip(source, found, strict=True):
        target = [BOS]
        for token in [*tokens, EOS][:6]:
            best = model(row.unsqueeze(0), torch.tensor([target]))[0, -1].argmax().item()
            assert best == token
            target.append(best)


def test_positions() -> None:
    found = positions(50, 8)
    assert found.shape == (50, 8)
    assert found[3, 0] == pytest.approx(torch.tensor(3.0).sin().item())
    assert found[7, 5] == pytest.approx(torch.cos(torch.tensor(7 * 10_000 ** (-4 / 8))).item())


def test_the_embedding_is_shared(model: Transformer) -> None:
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes.count((20, 16)) == 1
    assert isinstance(model.embedding, nn.Embedding)
