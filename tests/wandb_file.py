"""Reads the file of an offline run of Weights & Biases, which its package itself no longer does.

It is a log as LevelDB's (github.com/google/leveldb, doc/log_format.md) behind a header of 7 bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER = b":W&B"
HEADER_BYTES, BLOCK_BYTES = 7, 32768
FRAGMENT = struct.Struct("<IHB")  # checksum, length, type
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[bytes]:
    """Whole records, each put together from its fragments."""
    data = path.read_bytes()
    assert data.startswith(HEADER), f"{path} is no file of an offline run"
    at, record = HEADER_BYTES, b""
    while at + FRAGMENT.size <= len(data):
        left = BLOCK_BYTES - at % BLOCK_BYTES
        if left < FRAGMENT.size:  # a fragment does not begin at the end of a block
            at += left
            continue
        _, length, kind = FRAGMENT.unpack_from(data, at)
        at += FRAGMENT.size
        record += data[at : at + length]
        at += length
        if kind in (FULL, LAST):
            yield record
            record = b""


def history(folder: Path) -> Iterator[dict[str, Any]]:
    """What each call of ``run.log`` logged, of the run in ``folder``."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    for data in records(path):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            logged: dict[str, Any] = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                inside = logged
                for key in outer:
                    inside = inside.setdefault(key, {})
                inside[last] = json.loads(item.value_json)
            yield logged
