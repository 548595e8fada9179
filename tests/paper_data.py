"""Made-up catalogues, images and scales for the tests of bench.paper."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import polib

from bench.paper.convolutional import DenseNetShape, ResNetShape
from bench.paper.settings import Classification, Scale, Translation
from bench.paper.transformer import TransformerShape

WORDS = {
    "the file": "die Datei",
    "a folder": "ein Ordner",
    "this window": "dieses Fenster",
    "every image": "jedes Bild",
    "no message": "keine Nachricht",
}
VERBS = {"Open": "Öffne", "Close": "Schließe", "Show": "Zeige", "Delete": "Lösche"}
SPLITS = {"training": ("alpha", "beta"), "validation": ("gamma",), "test": ("delta",)}

TINY = Scale(
    tasks={
        "transformer": Translation(
            TransformerShape(width=8, heads=2, feedforward=8, layers=1, dropout=0.0),
            vocabulary=300,
            max_tokens=30,
            batch=4,
            steps=10,
            warmup=2,
            evaluate_every=1,
            bleu_strings=4,
        ),
        "resnet": Classification(ResNetShape((4, 4), (1, 1), 2), images=40, batch=20, epochs=2),
        "densenet": Classification(DenseNetShape(2, (1, 1), 2), images=40, batch=20, epochs=2),
    },
    transformers=("transformer",),
    seeds=(1, 2, 3),
    device="cpu",
)


def catalogue(messages: dict[str, str]) -> polib.POFile:
    found = polib.POFile()
    found.metadata = {"Content-Type": "text/plain; charset=utf-8"}
    for english, german in messages.items():
        found.append(polib.POEntry(msgid=english, msgstr=german))
    return found


def sentences(index: int) -> dict[str, str]:
    """Those of a package; the next package has others."""
    return {
        f"{verb} {noun} {'again ' * index}now": f"{tut} {ding} {'wieder ' * index}jetzt"
        for verb, tut in VERBS.items()
        for noun, ding in WORDS.items()
    }


def fill_packages(cache: Path) -> None:
    """As ``fetch`` would leave the packages of ``SPLITS``."""
    names = [name for members in SPLITS.values() for name in members]
    for index, name in enumerate(names):
        folder = cache / name / "usr" / "share" / "locale" / "de" / "LC_MESSAGES"
        folder.mkdir(parents=True)
        catalogue(sentences(index)).save_as_mofile(str(folder / f"{name}.mo"))
        (cache / f"{name}.json").write_text(json.dumps({"version": "1:2-3", "sha256": "00"}))


def write_idx(path: Path, values: np.ndarray) -> None:
    head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))


def fill_images(folder: Path, training: int = 60, test: int = 20) -> None:
    """Images that are as bright as their label says."""
    folder.mkdir(parents=True)
    for name, count in (("train", training), ("t10k", test)):
        labels = np.arange(count) % 10
        images = np.broadcast_to(25 * labels[:, None, None], (count, 28, 28))
        write_idx(folder / f"{name}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte.gz", labels)
