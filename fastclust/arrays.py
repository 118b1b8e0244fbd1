"""What users hold rows in, and results in the same kind of array on the device where the rows are.

NumPy, lists and frames go through scikit-learn's own validation; torch tensors, whatever has `__dlpack__` (CuPy, JAX)
or `__cuda_array_interface__`, h5py datasets and rows that are computed (`fastclust.parts`) are taken as they are. None
of them is copied whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from fastclust.parts import is_computed


@dataclass(frozen=True)
class Given:
    """Hold rows as they came.

    parts: tensors, h5py datasets, computed rows, or what NumPy can look at, one after the other. like: makes a tensor
    the kind of array that came, where it came from. host: whether it is for scikit-learn to validate.
    """

    parts: list[Any]
    like: Callable[[torch.Tensor], Any]
    host: bool = False


def receive(X: Any) -> Given:
    """Return rows as a `Given`; a list of two-dimensional arrays is its arrays, one after the other."""
    if isinstance(X, (list, tuple)) and len(X) and getattr(X[0], "ndim", 0) == 2:
        pieces = [receive(piece) for piece in X]
        return Given([part for piece in pieces for part in piece.parts], pieces[0].like)
    if isinstance(X, torch.Tensor):
        return Given([X.detach()], lambda result: result.to(X.device))
    if isinstance(X, h5py.Dataset) or is_computed(X):
        return Given([X], host)
    if hasattr(X, "__dlpack__") and not isinstance(X, (np.ndarray, np.generic)):
        tensor = from_dlpack(X)
        return Given([tensor], lambda result: _namespace(X).from_dlpack(result.to(tensor.device)))
    if hasattr(X, "__cuda_array_interface__"):
        tensor = torch.as_tensor(X, device="cuda")
        return Given([tensor], lambda result: result.to(tensor.device))
    return Given([X], host, host=True)


def host(array: Any) -> np.ndarray:
    """Return an array of any kind, on any device, as a NumPy array; on the host it looks at the same memory."""
    if not isinstance(array, torch.Tensor):
        if isinstance(array, (np.ndarray, np.generic, int, float)) or not hasattr(array, "__dlpack__"):
            return np.asarray(array)
        array = from_dlpack(array)
    result: np.ndarray = array.detach().cpu().contiguous().numpy()
    return result


def _namespace(X: Any) -> Any:
    """Return the array library of X: what its namespace protocol says, else the package of its class."""
    if hasattr(X, "__array_namespace__"):
        return X.__array_namespace__()
    return import_module(type(X).__module__.partition(".")[0])
