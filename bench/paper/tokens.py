"""Pairs of strings as batches of tokens: byte-pair encoding learnt from the training split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from .catalogues import Pair

PAD, BOS, EOS = range(3)
SPECIAL = ["<pad>", "<s>", "</s>"]
POOL = 50  # batches whose pairs are sorted by length together


class Tokenized(NamedTuple):
    """A pair; the target begins with BOS, both end with EOS."""

    source: list[int]
    target: list[int]


def tokenizer(pairs: Sequence[Pair], vocabulary: int, path: Path) -> Tokenizer:
    """One for both languages, learnt once and kept at ``path``."""
    if not path.exists():
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel()
        learner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        learner.train_from_iterator((text for pair in pairs for text in pair), trainer)
        partial = path.with_suffix(".partial")
        learner.save(str(partial))
        partial.replace(path)
    return Tokenizer.from_file(str(path))


def tokenize(pairs: Sequence[Pair], learnt: Tokenizer, max_tokens: int) -> list[Tokenized]:
    """Without pairs of which a side has more than ``max_tokens`` tokens."""
    english, german = (
        [encoding.ids for encoding in learnt.encode_batch([pair[side] for pair in pairs])]
        for side in range(2)
    )
    return [
        Tokenized([*source, EOS], [BOS, *target, EOS])
        for source, target in zip(english, german, strict=True)
        if max(len(source), len(target)) <= max_tokens
    ]


def pad(rows: Sequence[Sequence[int]]) -> Tensor:
    """[len(rows), the longest], int64, PAD behind."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[PAD] * (length - len(row))] for row in rows])


def batches(pairs: Sequence[Tokenized], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Source and target of each batch, in the order of ``pairs``."""
    for start in range(0, len(pairs), size):
        members = pairs[start : start + size]
        yield pad([pair.source for pair in members]), pad([pair.target for pair in members])


def endless_batches(
    pairs: Sequence[Tokenized], size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled anew for each pass; pairs of like lengths share a batch, so that little is PAD."""
    while True:
        order = torch.randperm(len(pairs), generator=generator).tolist()
        for start in range(0, len(order), POOL * size):
            pool = [pairs[index] for index in order[start : start + POOL * size]]
            pool.sort(key=lambda pair: (len(pair.target), len(pair.source)))
            full = list(batches(pool, size))[: max(1, len(pool) // size)]
            for index in torch.randperm(len(full), generator=generator).tolist():
                yield full[index]
