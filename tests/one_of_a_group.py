"""One process of a group, which test_group starts several of: fit to its share of the rows, and write what came out.

python one_of_a_group.py FOLDER WHAT      with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment
"""

import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as distributed
from conftest import relu_features

from fastclust import DPGMM, BayesianGaussianMixture, fitting
from fastclust.group import together

KINDS = ("full", "tied", "diag", "spherical")
STARTS = ("kmeans", "k-means++", "random", "random_from_data")
CUT = (0, 700, 1501)
FITTED = ("lower_bounds_", "means_", "covariances_", "weights_", "counts_", "mean_precision_", "feature_scale_")


def rows() -> tuple[np.ndarray, np.ndarray]:
    """All processes' rows and their weights, some of them zero."""
    X = relu_features(CUT[-1], 8)
    return X, np.random.default_rng(1).integers(0, 3, len(X)).astype(float)


def fits(*shares: slice) -> dict[str, np.ndarray]:
    """What fits of every kind, to a share of the rows or together to all, find."""
    all_rows, weights = rows()
    X, weights = (np.concatenate([array[share] for share in shares]) for array in (all_rows, weights))
    plain = {"n_components": 6, "random_state": 3, "max_iter": 25, "tol": 0, "dtype": "float64"}
    found = {}

    def keep(name: str, model: object, labels: np.ndarray) -> None:
        found.update({f"{name} {attribute}": np.asarray(getattr(model, attribute)) for attribute in FITTED})
        found[f"{name} labels"] = labels

    for kind in KINDS:
        model = DPGMM(covariance_type=kind, feature_range=(0, 10), **plain)
        keep(kind, model, model.fit_predict([X[:400], X[400:]]))
    for start in STARTS:
        model = DPGMM(init_params=start, sort_sticks=True, **plain).fit(X, sample_weight=weights)
        keep(f"{start} weighted", model, model.predict(X))
        theirs = BayesianGaussianMixture(
            n_components=4, covariance_type="diag", init_params=start, random_state=0, max_iter=5
        )
        found[f"drop-in {start}"] = np.asarray(theirs.fit(torch.from_numpy(X)).lower_bounds_)
    model = DPGMM(**plain)
    for _ in range(3):
        model.partial_fit([all_rows[share][:300] for share in shares])
        model.partial_fit([all_rows[share][300:] for share in shares], batch="rest")
    keep("batches", model, model.predict(X))
    return found


def half_weighted(*shares: tuple[slice, bool]) -> dict[str, np.ndarray]:
    """What fits find to shares of the rows that have weights, or do not, in which case each row counts once."""
    X, weights = rows()
    X = np.concatenate([X[share] for share, _ in shares])
    weights = np.concatenate(
        [weights[share] if weighted else np.ones(len(weights[share])) for share, weighted in shares]
    )
    found = {}
    for start in STARTS:
        model = DPGMM(4, init_params=start, random_state=0, max_iter=5, tol=0, dtype="float64")
        model.fit(X, sample_weight=None if [weighted for _, weighted in shares] == [False] else weights)
        found |= {f"{start} {name}": np.asarray(getattr(model, name)) for name in ("lower_bounds_", "counts_")}
    return found


def one_random_state(*shares: slice) -> dict[str, np.ndarray]:
    """What two fits find that draw from one RandomState."""
    X, random = np.concatenate([rows()[0][share] for share in shares]), np.random.RandomState(5)
    fits = (DPGMM(4, init_params="random", random_state=random, max_iter=2, tol=0).fit(X) for _ in range(2))
    return {f"{number} means": model.means_ for number, model in enumerate(fits)}


def elsewhere(rank: int, *shares: slice) -> dict[str, np.ndarray]:
    """What fits find that each process makes in a way of its own."""
    X, found = np.concatenate([rows()[0][share] for share in shares]), {}
    own = {"backend": ("numba", "reference")[rank], "block_rows": (None, 64)[rank], "verbose": 1 - rank}
    for kind in KINDS:
        plain = {"covariance_type": kind, "random_state": rank, "max_iter": 5, "tol": 0, "dtype": "float64"}
        found[f"{kind} bounds"] = np.asarray(DPGMM(4, **plain, **own).fit(X).lower_bounds_)
    return found


def main() -> None:
    folder, what = Path(sys.argv[1]), sys.argv[2]
    rank = int(os.environ["RANK"])
    fitting.checked = lambda device: True  # the sums of all processes are held against all rows, as on a GPU
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo", timeout=timedelta(minutes=5))
    part = slice(CUT[rank], CUT[rank + 1])
    X, _ = rows()
    if what == "fits":
        np.savez(folder / f"{rank}.npz", **fits(part))
    elif what == "half weighted":
        np.savez(folder / f"{rank}.npz", **half_weighted((part, rank == 0)))
    elif what == "one random state":
        np.savez(folder / f"{rank}.npz", **one_random_state(part))
    elif what == "elsewhere":
        np.savez(folder / f"{rank}.npz", **elsewhere(rank, part))
    elif what == "no rows":
        X = X[part] if rank == 0 else X[:0]
        DPGMM(4).fit(torch.from_numpy(X) if folder.name.startswith("tensor") else X)
    elif what == "different":
        DPGMM(4 + rank).fit(X[part])
    elif what == "nan":
        if rank == 1:
            X[-1, 0] = np.nan
            (folder / "fails").touch()
        DPGMM(4, max_iter=5).fit(X[part])
    elif what == "killed before":
        if rank == 1:
            while not (folder / "joined").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        (folder / "joined").touch()
        DPGMM(4).fit(X[part])
    elif what == "killed":

        def on_pass(n_pass: int, bound: float, change: float) -> None:
            if rank == 1 and n_pass == 3:
                (folder / "fails").touch()
                os.kill(os.getpid(), signal.SIGKILL)

        DPGMM(4, tol=0).fit(X[part], on_pass=on_pass)
    elif what == "stopped":  # alive, and of no use
        with together() as group:
            if rank == 1:
                (folder / "fails").touch()
                os.kill(os.getpid(), signal.SIGSTOP)
            group.wait()


if __name__ == "__main__":
    main()
