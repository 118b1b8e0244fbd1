"""More rows than memory: what a pass costs from 10^5 rows to 10^8, in a process that may allocate 2 GB.

The rows are relu1_2 of VGG-19, 224 x 224 pixels and 64 channels in float16, in one store that this module writes: each
"image" is a real one's features with noise of its own, and its zeros where they were. Each step runs in a process of
its own, whose private memory (RLIMIT_DATA) is limited; its peak is the largest resident set, the pages of the store
that are mapped at the time among it. Set TMPDIR to a folder in memory (13 GB) to have the store in the system's cache.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import relu1_2
from benchmarks.timing import short, spread
from fastclust import DPGMM, load, machine
from fastclust.layer_fit import fit_layer
from fastclust.store import ImageRecord, LayerRecord, open_store
from fastclust.writer import create_store

SIDE, WIDTH = 224, 64
IMAGES = (2, 20, 200, 1000, 2000)  # of 50,176 rows
WHOLE = 1000  # images, whose passes are also timed in memory
FITTED, SAMPLE = 1000, 2_000_000  # images of the fit to all rows; rows of the fit to a part of them
LIMIT = 2 << 30  # bytes
PASSES = 4
TOL = 1e-3  # nats a row, of the fits
NOISE = 0.05  # of a feature, and of the mean
MIXTURE: dict[str, Any] = {"n_components": 50, "random_state": 0}


def run_passes(scratch: Path | None = None) -> list[dict[str, Any]]:
    """Return the records of the suite "scale": passes over more and more rows."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        store = Path(folder) / "features.h5"
        write(store, WHOLE)
        records = [child("passes", store, images) for images in IMAGES if images <= WHOLE]
        records.append(child("passes", store, WHOLE, "in memory", limit=0))
        write(store, max(IMAGES))
        return records + [child("passes", store, images) for images in IMAGES if images > WHOLE]


def run_fits(scratch: Path | None = None) -> list[dict[str, Any]]:
    """Return the records of the suite "sample": fits to all rows and to a part of them, and labels of all."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        store = Path(folder) / "features.h5"
        write(store, FITTED)
        records = []
        for rows in (0, SAMPLE):
            model = Path(folder) / f"{rows}.h5"
            records.append(child("fit", store, FITTED, str(rows), str(model)))
            records[-1] |= {"score": child("score", store, FITTED, str(model))["score"]}
            print(line(records[-1]), flush=True)
        records.append(child("label", store, FITTED, str(Path(folder) / "0.h5"), str(Path(folder) / "labelled")))
    return records


def write(path: Path, images: int) -> None:
    """Write a store of so many images' features."""
    path.unlink(missing_ok=True)
    random = np.random.default_rng(0)
    real = relu1_2(8 * SIDE * SIDE, WIDTH).reshape(8, SIDE * SIDE, WIDTH)
    noise = random.standard_normal((SIDE * SIDE, WIDTH), dtype=np.float32) * np.float32(NOISE)
    records = [ImageRecord(f"/{n}.png", str(n), "", "", (SIDE, SIDE), (SIDE, SIDE)) for n in range(images)]
    layer = LayerRecord("relu1_2", "features.3", "conv", WIDTH, np.full((images, 2), SIDE))
    about = {
        "model": "vgg19",
        "weights": "file",
        "weights_source": "with noise",
        "weights_sha256": "",
        "layers": ["relu1_2"],
    }
    with create_store(path, records, [layer], "float16", about) as writer:
        for n in range(images):
            rows = real[n % len(real)]
            own = np.roll(noise, (int(random.integers(len(noise))), int(random.integers(WIDTH))), (0, 1))
            rows = np.where(rows > 0, np.abs(rows + own * (rows + rows.mean())), 0)
            writer.write(n, {"relu1_2": rows.reshape(SIDE, SIDE, WIDTH)})
            if n % 100 == 99:
                writer.commit()


def child(what: str, store: Path, images: int, *more: str, limit: int = LIMIT) -> dict[str, Any]:
    """Run a step in a process of its own, which may allocate `limit` bytes (0: as many as there are)."""
    words = [sys.executable, "-m", "benchmarks.scale", what, str(store), str(images), str(limit), *more]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    named: dict[str, Any] = {
        "name": " ".join([what, *(part for part in more if "/" not in part)]),
        "images": images,
    } | found
    print(line(named), flush=True)
    return named


def main(what: str, path: str, images: str, limit: str, *more: str) -> dict[str, Any]:
    """Do one step in this process; return what it found."""
    if int(limit):
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    rows = open_store(path).rows("relu1_2")[0][: int(images) * SIDE * SIDE]
    about = {"n": len(rows), "d": WIDTH, "k": MIXTURE["n_components"], "nbytes": rows.nbytes, "limit_bytes": int(limit)}
    found = globals()[f"_{what}"](rows, Path(path), *more)
    return {**about, **found, "peak_memory_bytes": machine.peak_memory()}


def _passes(rows: np.ndarray, path: Path, where: str = "") -> dict[str, Any]:
    """Time passes in the middle of a fit, and all that comes before the first."""
    given = np.array(rows) if where else rows
    ends = [time.perf_counter()]
    model = DPGMM(**MIXTURE, max_iter=PASSES, tol=0, feature_range=(0, 10))
    model.fit(given, on_pass=lambda *_: ends.append(time.perf_counter()))
    last = time.perf_counter() - ends[-1]
    passes = spread(list(np.diff(ends[1:])))
    return {
        "pass": passes,
        "ns_per_row": short(passes["median"] / len(rows) * 1e9),
        "gbytes_per_second": short(rows.nbytes / passes["median"] / 1e9),
        "start_seconds": short(ends[1] - ends[0] - passes["median"]),
        "labels_seconds": short(last),
        "backend": model.backend_,
    }


def _fit(rows: np.ndarray, path: Path, sample: str, out: str) -> dict[str, Any]:
    """Fit as `fastclust fit` does, to all rows or to a sample."""
    store = _first(path, len(rows))
    model, seconds = fit_layer([store], "relu1_2", MIXTURE | {"tol": TOL}, sample=int(sample) or None)
    model.save(out)
    return {
        "tol": TOL,
        "rows_fitted": int(sample) or len(rows),
        "seconds": short(seconds),
        "passes": model.n_iter_,
        "converged": model.converged_,
        "lower_bound_per_row": model.lower_bound_,
        "clusters_in_use": model.n_active_,
    }


def _score(rows: np.ndarray, path: Path, model: str) -> dict[str, Any]:
    """Return the mean log-density of all rows under a model, and the bound per row that a pass over them leads to."""
    fitted = load(model)
    score = fitted.score(rows)
    fitted.set_params(warm_start=True, max_iter=1).fit(rows)
    return {"score": {"log_density_per_row": score, "lower_bound_after_one_pass": fitted.lower_bound_}}


def _label(rows: np.ndarray, path: Path, model: str, out: str) -> dict[str, Any]:
    """Label as `fastclust label` does."""
    from fastclust.labels import label_layer

    found = label_layer(_first(path, len(rows)), "relu1_2", load(model), Path(out))
    files = len(list(Path(out).glob("*/*.png")))
    return {"seconds": short(found.seconds), "files": files}


def _first(path: Path, n_rows: int) -> Any:
    """Return the store as if its first images were all that is finished."""
    store = open_store(path)
    store.__dict__["finished"] = store.finished[: n_rows // (SIDE * SIDE)]
    return store


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the suite is for: the straight line that the passes follow, and how far from it they are."""
    passes = [record for record in records if record["name"] == "passes"]
    rows = np.array([record["n"] for record in passes])
    seconds = np.array([record["pass"]["median"] for record in passes])
    slope, offset = np.polyfit(rows, seconds, 1, w=1 / seconds)
    memory = next(record for record in records if record["name"] == "passes in memory")
    stored = next(record for record in passes if record["n"] == memory["n"])
    return {
        "ns_per_row": short(slope * 1e9),
        "seconds_at_no_rows": short(offset),
        "largest_deviation": short(float(np.abs((slope * rows + offset) / seconds - 1).max())),
        "stored_over_in_memory": short(stored["pass"]["median"] / memory["pass"]["median"]),
    }


def line(record: dict[str, Any]) -> str:
    """Return a record in one line."""
    shown = {key: record[key] for key in ("pass", "seconds", "passes", "lower_bound_per_row", "score") if key in record}
    return f"{record['name']:24} {record['n']:>12,} rows, peak {record['peak_memory_bytes'] / 1e9:.2f} GB  {shown}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(*sys.argv[1:])))
