"""The HDF5 file of a fitted model: parameters as JSON, fitted arrays as datasets, nothing that runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

FORMAT = "fastclust.model"
VERSION = 1
GROUPS = ("parameters", "fitted")


def write(path: str | os.PathLike[str], parameters: dict[str, Any], fitted: dict[str, Any]) -> None:
    """Write a model, whole or not at all: aside first, then moved into place.

    parameters: what the estimator was made with, JSON-able or NumPy arrays. fitted: numbers, strings, None, lists of
    numbers, arrays, or tuples of arrays, by attribute name.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(aside, "w") as file:
            file.attrs["format"], file.attrs["format_version"] = FORMAT, VERSION
            for group, values in zip(GROUPS, (parameters, fitted), strict=True):
                holder = file.create_group(group)
                for name, value in values.items():
                    _put(holder, name, value)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the fitted values that `write` wrote.

    Raises FileNotFoundError, IsADirectoryError, and ValueError for a file that is not a model of ours, is of a newer
    version, or is cut short.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        raise IsADirectoryError(f"expected a model file, and {path} is a folder")
    try:
        with h5py.File(path, "r") as file:
            found, version = file.attrs.get("format"), int(file.attrs.get("format_version", 0))
            if found != FORMAT:
                what = f"a {found} file" if found else "an HDF5 file that fastclust did not write"
                raise ValueError(f"expected a model that `fit` wrote, and {path} is {what}")
            if version > VERSION:
                raise ValueError(
                    f"{path} is of format version {version}; this fastclust reads up to {VERSION}: update it"
                )
            parameters, fitted = ({name: _get(item) for name, item in file[group].items()} for group in GROUPS)
            return parameters, fitted
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file (another format, or cut short): {error}") from None
    except KeyError as error:
        raise ValueError(f"{path} is a model with parts missing: {error}") from None
    except (AttributeError, RuntimeError, TypeError) as error:  # what h5py makes of wrong bytes
        raise ValueError(f"{path} is damaged: HDF5 cannot read it ({error})") from None


def _put(group: h5py.Group, name: str, value: Any) -> None:
    if isinstance(value, tuple):
        inner = group.create_group(name)
        for i, part in enumerate(value):
            inner[str(i)] = part
    elif isinstance(value, np.ndarray):
        group[name] = value
    else:
        group[name] = h5py.Empty("f")
        group[name].attrs["json"] = json.dumps(value)


def _get(item: h5py.Group | h5py.Dataset) -> Any:
    if isinstance(item, h5py.Group):
        return tuple(item[str(i)][()] for i in range(len(item)))
    if "json" in item.attrs:
        return json.loads(item.attrs["json"])
    return item[()]
