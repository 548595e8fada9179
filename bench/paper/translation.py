"""Trains a Transformer to translate: losses, learning rates and BLEU of one run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import sacrebleu
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from . import tokens
from .catalogues import Pair
from .contenders import Contender, inverse_root
from .curves import Curve
from .rates import snapshot
from .settings import Translation
from .transformer import Transformer

RATES_AT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1500, 2000)
EVALUATION_BATCH = 200


@dataclass(frozen=True)
class TranslationData:
    """What all runs of a task share."""

    learnt: Tokenizer
    training: list[tokens.Tokenized]
    validation: list[tokens.Tokenized]
    test: list[tokens.Tokenized]
    references: list[str]

    @classmethod
    def of(
        cls, splits: dict[str, list[Pair]], learnt: Tokenizer, settings: Translation
    ) -> TranslationData:
        tokenized = {
            split: tokens.tokenize(pairs, learnt, settings.max_tokens)
            for split, pairs in splits.items()
        }
        # Every k-th, so that all test packages are in; sorted, so that little is PAD.
        every = max(1, len(tokenized["test"]) // settings.bleu_strings)
        test = sorted(tokenized["test"][::every], key=lambda pair: len(pair.source))
        test = test[: settings.bleu_strings] if every == 1 else test
        references = [learnt.decode(pair.target) for pair in test]
        validation = sorted(tokenized["validation"], key=lambda pair: len(pair.target))
        return cls(learnt, tokenized["training"], validation, test, references)

    def facts(self) -> dict[str, int]:
        """How many pairs there are; of how many of the test the German is in training, too."""
        known = {tuple(pair.target) for pair in self.training}
        return {
            "training": len(self.training),
            "validation": len(self.validation),
            "test": len(self.test),
            "known": sum(tuple(pair.target) in known for pair in self.test),
        }


def train(
    settings: Translation, contender: Contender, seed: int, data: TranslationData, device: str
) -> dict[str, Any]:
    """One run; the seed is that of the weights, of dropout and of the batches."""
    torch.manual_seed(seed)
    model = Transformer(settings.shape, settings.vocabulary).to(device)
    optimizer = contender.optimizer(model.parameters())
    schedule = LambdaLR(
        optimizer, lambda step: inverse_root(step, settings.warmup, contender.warmup)
    )
    generator = torch.Generator().manual_seed(seed)
    batches = tokens.endless_batches(data.training, settings.batch, generator)
    curve, rates = Curve("validation_loss"), []
    for step in range(1, settings.steps + 1):
        english, german = next(batches)
        loss = loss_of(model, english.to(device), german.to(device), settings.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        curve.add(loss)
        if step in RATES_AT or step == settings.steps:
            rates.append(snapshot(optimizer, step))
        schedule.step()
        if step % settings.evaluate_every == 0 or step == settings.steps:
            curve.mark(step, validation_loss(model, data.validation, device))
            if curve.diverged:
                break
    loss_now = math.log(settings.vocabulary) if curve.diverged else curve.measured[-1]
    bleu = 0.0 if curve.diverged else bleu_of(model, data, settings, device)
    return {
        "final": {"validation_loss": loss_now, "bleu": bleu},
        **curve.facts(),
        "rates": [found for found in rates if found],
    }


def loss_of(model: nn.Module, source: Tensor, target: Tensor, smoothing: float) -> Tensor:
    """Mean over the target's tokens, in nats."""
    logits = model(source, target[:, :-1])
    return F.cross_entropy(
        logits.flatten(0, 1),
        target[:, 1:].flatten(),
        ignore_index=tokens.PAD,
        label_smoothing=smoothing,
    )


@torch.no_grad()
def validation_loss(model: nn.Module, pairs: list[tokens.Tokenized], device: str) -> float:
    """Mean over all target tokens, in nats, without smoothing."""
    model.eval()
    total = count = 0.0
    for source, target in tokens.batches(pairs, EVALUATION_BATCH):
        predicted = int((target[:, 1:] != tokens.PAD).sum())
        total += predicted * loss_of(model, source.to(device), target.to(device), 0.0).item()
        count += predicted
    model.train()
    return total / count


def bleu_of(model: Transformer, data: TranslationData, settings: Translation, device: str) -> float:
    """sacrebleu's corpus BLEU of greedy translations of the test strings."""
    model.eval()
    found: list[str] = []
    for source, _ in tokens.batches(data.test, EVALUATION_BATCH):
        translated = model.translate(source.to(device), settings.max_tokens)
        found += data.learnt.decode_batch(translated)
    return sacrebleu.corpus_bleu(found, [data.references]).score
