"""A state dict as named tensors and strings, for files that hold nothing else: safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..hyperparameters import plain_numbers
from ..state_dicts import listed
from ..validation import shown
from .formats import check_structure

_FORMAT = "adamod_fused.checkpoint 1"


def to_tensors(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Flattens an optimizer's state dict into tensors and strings, for ``from_tensors``.

    Args:
        state_dict: what ``AdaMod.state_dict()`` returned, or any optimizer whose state is tensors
            alone. It is not changed; contiguous tensors are not copied.

    Returns:
        Contiguous tensors by name, ``"<parameter>.<state>"``, and metadata: the param groups as
        JSON and the names of all tensors. Tensors in a param group become numbers, and tuples
        other than ``betas`` lists.

    Raises:
        TypeError: a state that is no tensor, or an entry of a param group that JSON cannot hold.
        ValueError: no state dict of an optimizer.

    Example:
        With the package safetensors, ``path`` being the file::

            tensors, metadata = to_tensors(optimizer.state_dict())
            safetensors.torch.save_file(tensors, path, metadata)

            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
                optimizer.load_state_dict(from_tensors(tensors, file.metadata()))
    """
    groups = [dict(group) for group in check_structure(state_dict)]
    keys = [key for group in groups for key in group["params"]]
    if len({str(key) for key in keys}) != len(keys):
        raise ValueError("two parameters have keys that read the same; use numbers or names alone")
    tensors = {}
    for key in keys:
        for name, value in state_dict["state"].get(key, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"{name} of parameter {key} must be a tensor, got {shown(value)}; load the "
                    "state dict into an AdaMod first and take its own"
                )
            tensors[f"{key}.{name}"] = value.detach().contiguous().resolve_neg()
    for index, group in enumerate(groups):
        for name, value in group.items():
            group[name] = plain_numbers(value)
            try:
                json.dumps(group[name])
            except TypeError as error:
                raise TypeError(f"{name} of param group {index} cannot be kept: {error}") from None
    metadata = {
        "format": _FORMAT,
        "param_groups": json.dumps(groups),
        "tensors": json.dumps(list(tensors)),
    }
    return tensors, metadata


def from_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None
) -> dict[str, Any]:
    """Puts a state dict together from what ``to_tensors`` made.

    Args:
        tensors: by name, all of them. They are taken over, not copied.
        metadata: the strings that came with them; a file without any gives None.

    Returns:
        A state dict for ``load_state_dict``.

    Raises:
        ValueError: metadata of another program, or a tensor missing or one too many.
    """
    if metadata is None or metadata.get("format") != _FORMAT:
        found = None if metadata is None else metadata.get("format")
        raise ValueError(
            f"the metadata says format {found!r} instead of {_FORMAT!r}: this is no optimizer's "
            "state written by to_tensors; give the file that was, with its metadata"
        )
    try:
        groups, names = json.loads(metadata["param_groups"]), json.loads(metadata["tensors"])
        keys = {str(key): key for group in groups for key in group["params"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the metadata is damaged ({error!r}); load an older checkpoint") from None
    missing, unknown = set(names) - set(tensors), set(tensors) - set(names)
    if missing or unknown:
        raise ValueError(
            f"the tensors do not fit their metadata: {listed(sorted(missing)) or 'none'} missing, "
            f"{listed(sorted(unknown)) or 'none'} too many; load all tensors of one file"
        )
    state: dict[Any, dict[str, Tensor]] = {}
    for name in names:
        key, _, entry = name.rpartition(".")
        if key not in keys:
            raise ValueError(f"the metadata is damaged: no param group lists parameter {key!r}")
        state.setdefault(keys[key], {})[entry] = tensors[name]
    for group in groups:
        if "betas" in group:
            group["betas"] = tuple(group["betas"])
    return {"state": state, "param_groups": groups}
