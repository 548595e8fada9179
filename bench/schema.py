"""Decoded JSON as the dataclasses that describe it; what does not fit is named."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

NAMES = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    type(None): "null",
}


def decode(kind: Any, value: Any, where: str) -> Any:
    """``value``, which came out of JSON, as ``kind``.

    Args:
        kind: a dataclass or what its fields may be declared with: str, int, float, bool, None,
            unions of these, ``tuple[X, ...]``, ``dict[str, X]`` and dataclasses.
        value: what ``json.loads`` returned, or a part of it.
        where: how errors call it.

    Raises:
        ValueError: something is missing, unknown or of the wrong type, or a dataclass refuses it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _decode_union(arguments, value, where)
    if origin is tuple:
        _require(type(value) is list, "a list", value, where)
        return tuple(decode(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        _require(type(value) is dict, "an object", value, where)
        return {key: decode(arguments[1], v, f"{where}[{key!r}]") for key, v in value.items()}
    if is_dataclass(kind):
        _require(type(value) is dict, "an object", value, where)
        return _decode_dataclass(kind, value, where)
    _require(_fits(kind, value), NAMES[kind], value, where)
    return kind(value) if kind is float else value


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    dataclasses = [kind for kind in kinds if is_dataclass(kind)]
    for kind in kinds:
        if kind in NAMES and _fits(kind, value):
            return value
    if dataclasses:
        return decode(dataclasses[0], value, where)
    return _require(False, " or ".join(NAMES[kind] for kind in kinds), value, where)


def _decode_dataclass(kind: Any, value: dict[str, Any], where: str) -> Any:
    names = [field.name for field in fields(kind)]
    for field in fields(kind):
        # One with a default is newer than some records are.
        if field.name not in value and field.default is MISSING:
            raise ValueError(f"{where}: {field.name!r} is missing")
    for name in value:
        if name not in names:
            raise ValueError(f"{where}: {name!r} is not known")
    hints = get_type_hints(kind)
    decoded = {name: decode(hints[name], value[name], f"{where}.{name}") for name in value}
    try:
        return kind(**decoded)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _fits(kind: Any, value: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind  # isinstance would take True for a number


def _require(holds: bool, wanted: str, value: Any, where: str) -> None:
    if not holds:
        raise ValueError(f"{where} must be {wanted}, got {value!r:.80}")
