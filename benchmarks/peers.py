"""Other mixtures, and our own plain backend, on the same rows: a pass of each, going on from a fit of ours, diag alone.

A peer that is not installed is recorded as such, one that fails with its error, and one that would take too long or
too much memory with how many rows it is given at most. `pip install fastclust[bench]` gets them.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.cases import Case
from benchmarks.pairs import own_passes, their_passes
from benchmarks.timing import seconds, spread
from fastclust import DPGMM

WARM_UP, TIMED = 1, 3  # passes


@dataclass(frozen=True)
class Peer:
    """What a peer computes, how to time passes of it, and up to how many rows.

    seconds: of (case, X, ours, passes), the seconds of each pass over X (N, D) float32 from the state of ours.
    """

    module: str
    what: str
    seconds: Callable[[Case, np.ndarray, DPGMM, int], list[float]]
    most_rows: int
    why: str


def time_peer(name: str, case: Case, X: np.ndarray | None, ours: DPGMM) -> dict[str, Any]:
    """Return the record of a peer: "seconds" of a pass over X (N, D), or why there are none; X: None for too many."""
    peer = PEERS[name]
    record: dict[str, Any] = {"what": peer.what}
    if importlib.util.find_spec(peer.module) is None:
        return record | {"not_timed": "not installed"}
    if X is None or len(X) > peer.most_rows:
        return record | {"not_timed": f"{peer.why}: given {peer.most_rows:,} rows at most"}
    try:
        found = peer.seconds(case, X, ours, WARM_UP + TIMED)
    except Exception as error:  # whatever it is: it is the peer's, and the record says it
        return record | {"not_timed": f"failed: {type(error).__name__}: {error}"[:300]}
    return record | {"seconds": spread(found[WARM_UP:])}


def _scikit_learn(case: Case, X: np.ndarray, ours: DPGMM, passes: int) -> list[float]:
    one_pass = their_passes(case, X, ours)
    return [seconds(one_pass) for _ in range(passes)]


def _torch(case: Case, X: np.ndarray, ours: DPGMM, passes: int) -> list[float]:
    model = copy(ours).set_params(backend="torch", warm_start=True)
    return own_passes(model, X, passes)


def _pomegranate(case: Case, X: np.ndarray, ours: DPGMM, passes: int) -> list[float]:
    distributions = importlib.import_module("pomegranate.distributions")
    mixture = importlib.import_module("pomegranate.gmm").GeneralMixtureModel(
        [
            distributions.Normal(*(torch.from_numpy(part).float() for part in pair), covariance_type="diag")
            for pair in zip(ours.means_, ours.covariances_, strict=True)
        ],
        priors=torch.from_numpy(ours.weights_).float(),
    )
    rows = torch.from_numpy(X)

    def one_pass() -> None:
        mixture.summarize(rows)
        mixture.from_summaries()

    return [seconds(one_pass) for _ in range(passes)]


def _torchgmm(case: Case, X: np.ndarray, ours: DPGMM, passes: int) -> list[float]:
    callback = importlib.import_module("pytorch_lightning.callbacks").Callback
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    stamps: list[float] = []

    class Clock(callback):  # type: ignore[misc, valid-type]
        """Note when an epoch begins."""

        def on_train_epoch_start(self, *_: object) -> None:
            stamps.append(time.perf_counter())

    importlib.import_module("torchgmm.bayes").GaussianMixture(
        case.k,
        covariance_type="diag",
        init_means=torch.from_numpy(ours.means_).float(),
        convergence_tolerance=0,
        trainer_params={"max_epochs": passes + 1, "accelerator": "cpu", "logger": False, "callbacks": [Clock()]}
        | dict.fromkeys(("enable_progress_bar", "enable_checkpointing", "enable_model_summary"), False),
    ).fit(torch.from_numpy(X))
    epochs = len(stamps) // (passes + 2)  # of a pass: 2 in torchgmm 0.1; what sets up the mixture takes as many
    return [end - start for start, end in pairwise(stamps[epochs::epochs])]


def _gmmx(case: Case, X: np.ndarray, ours: DPGMM, passes: int) -> list[float]:
    gmmx = importlib.import_module("gmmx")
    rows = importlib.import_module("jax.numpy").asarray(X)
    state = [part.astype(np.float32) for part in (ours.means_, ours.covariances_, ours.weights_)]
    mixture = gmmx.GaussianMixtureModelJax.from_squeezed(*state, covariance_type="diag")
    fitter = gmmx.EMFitter(max_iter=1, tol=0.0)

    def one_pass() -> None:
        nonlocal mixture
        mixture = importlib.import_module("jax").block_until_ready(fitter.fit(rows, mixture).gmm)

    return [seconds(one_pass) for _ in range(passes)]


EM = "expectation-maximisation, no Dirichlet process"
PEERS = {
    "scikit-learn": Peer(
        "sklearn",
        "BayesianGaussianMixture: the same model, E-step, M-step and bound",
        _scikit_learn,
        1_000_000,
        "it stores N x K in float64 several times",
    ),
    "torch": Peer(
        "torch", "fastclust's own plain backend", _torch, 1_000_000, "it is the baseline, and 10^7 take long"
    ),
    "pomegranate": Peer(
        "pomegranate", f"GeneralMixtureModel of Normals: {EM}", _pomegranate, 100_000, "a pass takes it very long"
    ),
    "torchgmm": Peer("torchgmm", f"GaussianMixture: {EM}", _torchgmm, 1_000_000, "it stores N x K several times"),
    "gmmx": Peer("gmmx", f"EMFitter: {EM}, in JAX", _gmmx, 100_000, "it stores N x K x D"),
}
