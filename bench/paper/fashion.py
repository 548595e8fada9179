"""Fashion-MNIST as Debian's package brings it: tensors of its training and its test images."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .fetch import fetch, summary
from .packages import FASHION_MNIST

INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "training": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CLASSES = 10
UNSIGNED_BYTE = 8


class Images(NamedTuple):
    """``pixels`` [N, 1, 28, 28] float32 of mean 0 and deviation 1, ``labels`` [N] int64."""

    pixels: Tensor
    labels: Tensor


def folder(cache: Path) -> tuple[Path, dict[str, Any]]:
    """Where the files lie, and what a record keeps of their source."""
    if INSTALLED.is_dir():
        return INSTALLED, {"name": FASHION_MNIST, "version": "installed"}
    package = fetch(FASHION_MNIST, cache, lambda path: path.name.endswith("ubyte.gz"))
    return package.folder / PurePosixPath(*INSTALLED.parts[1:]), summary(package)


def digest(where: Path) -> str:
    """Of all files; short."""
    found = hashlib.sha256()
    for names in FILES.values():
        for name in names:
            found.update((where / f"{name}.gz").read_bytes())
    return found.hexdigest()[:10]


def load(where: Path, split: str) -> Images:
    """Reads a split.

    Raises:
        OSError: a file is missing or no gzip.
        ValueError: a file is no idx file of bytes, or images and labels differ in number.
    """
    images, labels = (read_idx(where / f"{name}.gz") for name in FILES[split])
    if len(images) != len(labels):
        raise ValueError(f"{where}: {len(images)} images but {len(labels)} labels")
    # Mean and deviation of the training pixels, over 255, as everyone uses them.
    pixels = (torch.from_numpy(images).float().unsqueeze(1) / 255 - 0.2860) / 0.3530
    return Images(pixels, torch.from_numpy(labels).long())


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of an idx file: zeros, type, number of dimensions, their sizes, the values."""
    data = gzip.decompress(path.read_bytes())
    zero, kind, dimensions = struct.unpack_from(">HBB", data)
    if zero or kind != UNSIGNED_BYTE:
        raise ValueError(f"{path}: not an idx file of unsigned bytes")
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    values = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * dimensions)
    if values.size != np.prod(shape):
        raise ValueError(f"{path}: {values.size} values do not fill a shape of {shape}")
    return values.reshape(shape).copy()  # writable, as torch wants it
