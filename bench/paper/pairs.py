"""The translation set: pairs of each split, by package, so that test strings are unseen."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .catalogues import Pair, clean, is_german_catalogue, read
from .fetch import Package, fetch, summary
from .files import read_json, write_json
from .packages import SPLITS


@dataclass(frozen=True)
class Pairs:
    """Pairs of each split, and what a record keeps of where they come from."""

    splits: dict[str, list[Pair]]
    sources: list[dict[str, Any]]

    def sha256(self, split: str) -> str:
        return hashlib.sha256(_text(self.splits[split]).encode()).hexdigest()

    def digest(self) -> str:
        """Of all splits; short."""
        hashes = " ".join(self.sha256(split) for split in self.splits)
        return hashlib.sha256(hashes.encode()).hexdigest()[:10]

    def facts(self) -> dict[str, Any]:
        counts = {split: len(pairs) for split, pairs in self.splits.items()}
        hashes = {split: self.sha256(split) for split in self.splits}
        return {"pairs": counts, "sha256": hashes, "packages": self.sources}


def load(cache: Path, line: Callable[[str], None] = lambda text: None) -> Pairs:
    """The set, built from packages and kept in ``cache``, unless one of these lies there."""
    folder = cache / "pairs"
    sources = folder / "sources.json"
    if not (sources.exists() and _names(read_json(sources)) == _wanted_names()):
        built = _build(cache, line)
        folder.mkdir(parents=True, exist_ok=True)
        sources.unlink(missing_ok=True)  # it would be of other pairs than lie beside it
        for split, pairs in built.splits.items():
            (folder / f"{split}.tsv").write_text(_text(pairs))
        write_json(built.sources, sources)
    return kept(cache)


def kept(cache: Path) -> Pairs:
    """The set that ``load`` has left in ``cache``."""
    folder = cache / "pairs"
    return Pairs(
        {
            split: [Pair(*row.split("\t")) for row in _rows(folder / f"{split}.tsv")]
            for split in SPLITS
        },
        read_json(folder / "sources.json"),
    )


def _names(sources: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(source["split"], source["name"]) for source in sources]


def _wanted_names() -> list[tuple[str, str]]:
    return [(split, name) for split, names in SPLITS.items() for name in names]


def _text(pairs: Iterable[Pair]) -> str:
    return "".join(f"{english}\t{german}\n" for english, german in pairs)


def _rows(path: Path) -> list[str]:
    return path.read_text().removesuffix("\n").split("\n")


def _build(cache: Path, line: Callable[[str], None]) -> Pairs:
    packages: dict[str, list[Package]] = {}
    for split, names in SPLITS.items():
        for name in names:
            line(f"{name} ...")
            packages.setdefault(split, []).append(fetch(name, cache, is_german_catalogue))
    return split_pairs(packages)


def split_pairs(packages: Mapping[str, Iterable[Package]]) -> Pairs:
    """Cleaned pairs of packages; a string that an earlier split has is dropped from later ones."""
    splits: dict[str, list[Pair]] = {}
    sources = []
    seen: set[str] = set()
    for split, members in packages.items():
        splits[split] = []
        for package in members:
            raw = [pair for path in package.files() for pair in read(path)]
            # The same message with other capitals or stops is the same to a learner.
            fresh = [pair for pair in clean(raw) if _normal(pair.english) not in seen]
            unique = list({_normal(pair.english): pair for pair in reversed(fresh)}.values())[::-1]
            seen.update(_normal(pair.english) for pair in unique)
            splits[split] += unique
            facts = {"split": split, "messages": len(raw), "pairs": len(unique)}
            sources.append(summary(package) | facts)
    return Pairs(splits, sources)


def _normal(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
