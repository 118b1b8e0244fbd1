"""Fit a mixture to a layer of one feature store or several, and refuse before the work what cannot be fitted."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from fastclust import kernels
from fastclust.blocks import Blocks, share
from fastclust.checkpoint import Checkpoint
from fastclust.estimator import DPGMM
from fastclust.fitted import ELSEWHERE, FittedMixture
from fastclust.group import ranks
from fastclust.labels import Progress, check_finished, quiet, source_of
from fastclust.store import LayerRecord, Store

FEATURE_RANGE = (0.0, 10.0)
SHAPES = {"conv": "pixels", "dense": "images"}


def check_mixture(parameters: dict[str, Any]) -> None:
    """Refuse parameters of DPGMM that cannot be used, before hours go into what comes first.

    Raises ValueError for a bad value, and as `check_device` does.
    """
    model = DPGMM(**parameters)
    model._validate_params()
    check_device(str(model.device), model.backend)


def check_device(name: str, backend: str) -> None:
    """Refuse a device or a backend that cannot run here. Raises ValueError, RuntimeError."""
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
            torch.ones(1, device=device).sum().item()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            why = str(error).strip().split("\n")[0]
            raise ValueError(f"device {name!r} cannot be used here ({why}): expected auto, cpu or cuda") from error
    kernels.select(backend, device)


def fit_layer(
    stores: Sequence[Store],
    layer: str,
    parameters: dict[str, Any],
    progress: Progress = quiet,
    *,
    sample: int | None = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[DPGMM, float]:
    """Fit a mixture to every finished row of a layer in one store or several; return it, and the seconds that took.

    parameters: of DPGMM; feature_range=(0, 10) is added where it is not among them. sample: rows to fit to instead of
    all, drawn evenly over the images under parameters["random_state"]; each counts for as many as it stands for, as in
    stochastic variational inference (Hoffman et al. 2013). checkpoint: as in DPGMM.fit. In an initialised process group
    of torch.distributed each process takes its share of the rows.
    Raises ValueError where a store has no such layer, or one of another network or other weights, where there are too
    few rows for the components, and for a feature that is NaN or infinite.
    """
    began = time.perf_counter()
    records = [store.layer(layer) for store in stores]
    for store, record in zip(stores, records, strict=True):
        check_finished(store)
        if source_of(store, record) != source_of(stores[0], records[0]):
            raise ValueError(f"{store.path} and {stores[0].path} have features of different networks or weights")
    parts = [part for store in stores for part in store.rows(layer)]
    model = DPGMM(**{"feature_range": FEATURE_RANGE, **parameters})
    n_rows = sum(int(part.shape[0]) for part in parts)
    check_rows(records[0], min(n_rows, sample or n_rows), model.n_components)
    rank, size = ranks()
    rows, weights = share(parts, rank, size), None
    if sample is not None and sample < n_rows:
        rows = [_sample(parts, sample, model.random_state, rank, size)]
        weights = np.full(len(rows[0]), n_rows / sample)

    def on_pass(n_pass: int, bound: float, change: float) -> None:
        progress(f"fit {layer}", n_pass, model.max_iter, f"bound {bound:.4f} ({change:+.1e}) nats a row")

    progress(f"fit {layer}", 0, model.max_iter, f"start: {model.init_params}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # converged_ says so, and so does the summary
        model.fit(rows, sample_weight=weights, on_pass=on_pass, checkpoint=checkpoint)
    model.source_ = _source(stores, layer, sample)
    progress(f"fit {layer}", model.n_iter_, model.n_iter_, f"{model.n_active_} clusters in use")
    return model, time.perf_counter() - began


def is_fit_of(
    model: FittedMixture, stores: Sequence[Store], layer: str, parameters: dict[str, Any], sample: int | None
) -> bool:
    """Say whether a model is what `fit_layer` with these arguments, wherever it runs, leaves: it need not run again."""
    wanted = DPGMM(**{"feature_range": FEATURE_RANGE, **parameters})
    if type(model) is not DPGMM or any(_said(model, key) != _said(wanted, key) for key in wanted.get_params()):
        return False
    return getattr(model, "source_", None) == _source(stores, layer, sample)


def _said(model: FittedMixture, key: str) -> Any:
    """Return a parameter as it can be compared, None for those that only say where a model is computed."""
    value = getattr(model, key)
    return None if key in ELSEWHERE else list(value) if isinstance(value, tuple) else value


def _source(stores: Sequence[Store], layer: str, sample: int | None) -> dict[str, str]:
    """Return what a model's `source_` says: of which network, layer and rows, and of what sample of these."""
    n_rows = sum(int(part.shape[0]) for store in stores for part in store.rows(layer))
    rows = {"rows": " ".join(store.fingerprint(layer) for store in stores)}
    drawn = {} if sample is None or sample >= n_rows else {"sample": f"{sample} of {n_rows} rows"}
    return source_of(stores[0], stores[0].layer(layer)) | rows | drawn


def _sample(parts: list[Any], size: int, seed: Any, rank: int, n_ranks: int) -> torch.Tensor:
    """Return a process's share (n, D) of an even sample of all rows, in their dtype."""
    rows = Blocks(parts, torch.device("cpu"))
    index = rows.sample(size, check_random_state(seed))
    return rows.take(np.array_split(index, n_ranks)[rank])


def check_rows(record: LayerRecord, n_rows: int, n_components: int) -> None:
    """Refuse a layer with fewer rows than the mixture has components. Raises ValueError."""
    if n_rows < n_components:
        raise ValueError(
            f"{record.name} has {n_rows} rows ({SHAPES[record.kind]}) and the mixture {n_components} components: "
            "use fewer components (--components) or more images"
        )
