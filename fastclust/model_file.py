"""The HDF5 files of fitted models and of checkpoints: numbers as JSON, arrays as datasets, nothing that runs."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fastclust.atomic import written_aside
from fastclust.seal import Seal, block_bytes, check, put

FORMAT = "fastclust.model"
VERSION = 2  # 1 had no statistics of batches
GROUPS = ("parameters", "fitted")


def write(path: str | os.PathLike[str], estimator: str, parameters: dict[str, Any], fitted: dict[str, Any]) -> None:
    """Write a model, whole or not at all: aside first, then moved into place.

    estimator: the name of its class. parameters: what it was made with, JSON-able or NumPy arrays. fitted: numbers,
    strings, None, lists of numbers, arrays (of numbers, or of strings as objects), tuples of arrays, or dictionaries of
    any of these, by attribute name. NumPy's numbers are read back as Python's.
    Raises OSError where the disk is full or the file cannot be written.
    """
    write_groups(path, FORMAT, VERSION, {"estimator": estimator}, dict(zip(GROUPS, (parameters, fitted), strict=True)))


def write_groups(
    path: str | os.PathLike[str],
    kind: str,
    version: int,
    attributes: dict[str, str],
    groups: dict[str, dict[str, Any]],
) -> None:
    """Write a file of a format, `kind`, with groups of such values, whole or not at all. Raises as `write`."""
    # In memory: on a full disk HDF5 cannot close its file, and ends the process with a segmentation fault.
    memory = io.BytesIO()
    with h5py.File(memory, "w", userblock_size=block_bytes(0)) as file:
        file.attrs.update({"format": kind, "format_version": version, **attributes})
        for group, values in groups.items():
            holder = file.create_group(group)
            for name, value in values.items():
                _put(holder, name, value)
    content = memory.getbuffer()
    put(content, Seal(kind, version, len(content), len(content), ()))
    with written_aside(path) as aside:
        aside.write_bytes(content)


def read(path: str | os.PathLike[str]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the name of the class, the parameters and the fitted values that `write` wrote.

    Raises FileNotFoundError, IsADirectoryError, PermissionError, and ValueError for a file that is not a model of ours,
    is of another version, cut short, or damaged.
    """
    attributes, found = read_groups(path, FORMAT, VERSION, GROUPS, "a model that `fit` wrote")
    if "estimator" not in attributes:
        raise ValueError(f"{path} is a model with parts missing: estimator")
    return str(attributes["estimator"]), found["parameters"], found["fitted"]


def read_groups(
    path: str | os.PathLike[str], kind: str, version: int, groups: tuple[str, ...], what: str
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the attributes and the groups that `write_groups` wrote; what: said of the file in errors.

    Raises as `read`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise IsADirectoryError(f"expected {what}, and {path} is a folder")
    with path.open("rb") as raw:
        check(raw, path, kind, version, what)
        try:
            with h5py.File(raw, "r") as file:
                return dict(file.attrs), {
                    group: {name: _get(item) for name, item in file[group].items()} for group in groups
                }
        except (AttributeError, KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"{path} is damaged: HDF5 finds parts of {what} missing ({error})") from None


def _put(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, (tuple, dict)):
        inner = group.create_group(name)
        for i, part in enumerate(value):
            _put(inner, str(i), value[part] if isinstance(value, dict) else part)
        if isinstance(value, dict):
            inner.attrs["keys"] = json.dumps(list(value))
    elif isinstance(value, np.ndarray) and value.dtype == object:
        group[name] = np.array(value, dtype=h5py.string_dtype())
    elif isinstance(value, np.ndarray):
        group[name] = value
    else:
        group[name] = h5py.Empty("f")
        group[name].attrs["json"] = json.dumps(value, default=_number)


def _number(value: Any) -> Any:
    """Return a NumPy number as Python's, which JSON can hold."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"expected numbers, strings, None or arrays, got {type(value).__name__}")


def _get(item: h5py.Group | h5py.Dataset) -> Any:
    if isinstance(item, h5py.Group):
        parts = tuple(_get(item[str(i)]) for i in range(len(item)))
        return dict(zip(json.loads(item.attrs["keys"]), parts, strict=True)) if "keys" in item.attrs else parts
    if "json" in item.attrs:
        return json.loads(item.attrs["json"])
    if h5py.check_string_dtype(item.dtype):
        return item.asstr()[()].astype(object)
    return item[()]
