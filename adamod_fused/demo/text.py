"""The demo's text: the help topics that every Python installation carries, as bytes.

Topics quote one another (all of "async" stands in "compound" again), so dealing them out as they
are would put validation text into training. Each paragraph is therefore kept once, in the longest
topic that has it, and then whole topics go to one side or the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

VOCABULARY = 256  # bytes: no tokenizer to train, no unknown symbol

VALIDATION_EVERY = 10  # of the topics, from the longest to the shortest, one in ten
VALIDATION_FIRST = 4  # neither the very longest, which would be a sixth of the text, nor a tiny one


@dataclass(frozen=True)
class Text:
    """Training and validation text: topic names, characters, and the bytes as int64 tensors."""

    characters: int
    """In all topics, before repeated paragraphs are dropped."""
    train_topics: dict[str, str]
    validation_topics: dict[str, str]

    @property
    def train(self) -> Tensor:
        return _bytes_of(self.train_topics)

    @property
    def validation(self) -> Tensor:
        return _bytes_of(self.validation_topics)

    def check_context(self, context: int) -> None:
        """Raises ValueError if the text is too short for one window of ``context`` bytes."""
        longest = min(len(self.train), len(self.validation)) - 1
        if context > longest:
            raise ValueError(f"context must be at most {longest}, the text's length, got {context}")

    def describe(self) -> str:
        sides = (self.train_topics, self.validation_topics)
        train, validation = (sum(map(len, topics.values())) for topics in sides)
        return (
            f"Python's help topics, {self.characters:,} characters, of which "
            f"{train + validation:,} are left without repeated paragraphs: "
            f"{train:,} to train ({len(self.train_topics)} topics), "
            f"{validation:,} to validate ({len(self.validation_topics)} others)"
        )


def load() -> Text:
    """Reads the help topics of the running Python and splits them, always the same way."""
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "this Python lacks pydoc_data.topics, the text that the demo trains on: "
            "install your system's full Python package (on Debian: libpython3-stdlib)"
        ) from error

    distinct = _drop_repeated_paragraphs(topics)
    longest_first = sorted(distinct, key=lambda name: (-len(distinct[name]), name))
    validation = set(longest_first[VALIDATION_FIRST::VALIDATION_EVERY])
    return Text(
        characters=sum(map(len, topics.values())),
        train_topics={name: distinct[name] for name in longest_first if name not in validation},
        validation_topics={name: distinct[name] for name in longest_first if name in validation},
    )


def paragraphs(text: str) -> list[str]:
    """The pieces between blank lines; the indent of a first line stays."""
    return [piece.strip("\n").rstrip() for piece in re.split(r"\n[ \t]*\n", text) if piece.strip()]


def _drop_repeated_paragraphs(topics: dict[str, str]) -> dict[str, str]:
    seen: set[str] = set()
    distinct = {}
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        kept = []
        for paragraph in paragraphs(topics[name]):
            # Quoted paragraphs may be indented or wrapped differently: compare the words.
            words = " ".join(paragraph.split())
            if words not in seen:
                seen.add(words)
                kept.append(paragraph)
        if kept:
            distinct[name] = "\n\n".join(kept)
    return distinct


def _bytes_of(topics: dict[str, str]) -> Tensor:
    data = bytearray("\n\n".join(topics.values()).encode())
    return torch.frombuffer(data, dtype=torch.uint8).long()
