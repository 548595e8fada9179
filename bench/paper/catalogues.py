"""English-German pairs from gettext catalogues, cleaned of what is no sentence."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import polib

MIN_WORDS, MAX_WORDS = 2, 16
MAX_CHARACTERS = 100
MAX_RATIO = 2.5  # of the lengths of both sides

ACCELERATORS = "_&~"  # GTK, Qt and KDE, LibreOffice
TAG = re.compile(r"</?[A-Za-z][^<>]*>|&[a-z]+;")
FORMAT = re.compile(
    r"%(?:\d+\$|\([\w.]+\))?[-#0 +']*[\d.*]*[hlLqjzt]*[A-Za-z]"  # C and Python
    r"|%\d+|%%|\$\w*|\{[^}]*\}"  # Qt, GIMP's, Python's own
)
WORD = re.compile(r"[^\W\d_]{2,}")


class Pair(NamedTuple):
    """A string and its translation."""

    english: str
    german: str


def is_german_catalogue(path: PurePosixPath) -> bool:
    """Whether a file of a package holds German messages."""
    is_german = path.stem in ("de", "de_DE", "admin-de_DE") or {"de", "de_DE"} & set(path.parts)
    return path.suffix in (".mo", ".po") and bool(is_german)


def read(path: Path) -> Iterator[Pair]:
    """The messages of a .mo or .po file as they stand; no plurals, nothing fuzzy or obsolete."""
    catalogue = polib.mofile(str(path)) if path.suffix == ".mo" else polib.pofile(str(path))
    for entry in catalogue.translated_entries():
        if entry.msgid and entry.msgstr:
            yield Pair(entry.msgid, entry.msgstr)


def clean(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Pairs of plain text, in order; the first translation of a string stands."""
    seen = set()
    for pair in pairs:
        tidy = Pair(_plain(pair.english), _plain(pair.german))
        if tidy.english not in seen and _is_good(tidy):
            seen.add(tidy.english)
            yield tidy


def _plain(text: str) -> str:
    """Without markup, marks of accelerators and superfluous blanks."""
    text = " ".join(TAG.sub(" ", text).split())
    for mark in ACCELERATORS:
        found = re.findall(rf"{mark}(?=\w)", text)
        if len(found) == 1:  # more of them belong to names such as PATH_TO_FILE
            text = re.sub(rf"{mark}(?=\w)", "", text)
    return text


def _is_good(pair: Pair) -> bool:
    lengths = [len(text) for text in pair]
    words = [len(WORD.findall(FORMAT.sub(" ", text))) for text in pair]
    return (
        pair.english != pair.german
        and words[0] >= MIN_WORDS
        and words[1] >= 1  # German joins words
        and max(len(text.split()) for text in pair) <= MAX_WORDS
        and max(lengths) <= MAX_CHARACTERS
        and max(lengths) <= MAX_RATIO * min(lengths)
    )
