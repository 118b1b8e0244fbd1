"""What a file of ours holds, in lines for a person."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fastclust import checkpoint, model_file, seal, store
from fastclust.saved import load


def describe(path: Path) -> Iterator[str]:
    """Describe a store, a model, a checkpoint, a summary.json, or a run's folder.

    Raises FileNotFoundError, and ValueError for a file that is none of these, is newer, or is cut short.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if path.is_dir():
        parts = [path / name for name in ("summary.json", "features.h5") if (path / name).is_file()]
        if not parts:
            raise ValueError(f"{path} is a folder without a summary.json: expected a file, or the folder of a run")
        if parts[0].name == "features.h5" and not (path / "atlas.json").is_file():
            yield f"{path}: a run that has not ended; `fastclust run --resume`, or `atlas --resume`, goes on"
        path = parts[0]
    if path.suffix == ".json":
        yield from _summary(path)
    else:
        kinds = {model_file.FORMAT: _model, checkpoint.FORMAT: _checkpoint}
        yield from kinds.get(format_of(path), _store)(path)


def format_of(path: Path) -> str:
    """Return the format of a file of ours, "" for any other. Raises ValueError where a file's seal is damaged."""
    with path.open("rb") as file:
        found = seal.read(file, path)
    return found.kind if found else ""


def check_replaceable(path: Path, wanted: str) -> None:
    """Refuse to replace a file that is something else than what will be written, such as a photograph or the input.

    Nothing there, an empty file, and a file of ours whose damaged seal does not say what it was may be replaced.
    Raises FileExistsError.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        found = format_of(path)
    except ValueError:
        return
    if found != wanted:
        what = f"a {found} file" if found else "a file that fastclust did not write"
        raise FileExistsError(f"{path} is {what}, and would be replaced by a {wanted} file: name another file")


def _store(path: Path) -> Iterator[str]:
    found = store.open_store(path)
    about = found.provenance
    yield f"{path}: features, {found.dtype}, {path.stat().st_size / 1e6:.1f} MB"
    yield f"model     {about['model']}, weights {about['weights']} ({about['weights_source']}), seed {about['seed']}"
    yield f"size      {about['size']}"
    states = Counter(image.state for image in found.images)
    done, left, total = states[store.DONE], states[store.LEFT_OUT], len(found.images)
    yield f"images    {total}: {done} done, {states[store.PENDING]} pending, {left} left out"
    yield "checksums of each image's rows: `fastclust verify` compares them"
    if "merged_from" in about:
        yield f"merged    from {', '.join(about['merged_from'])}"
    for layer in found.layers.values():
        yield f"layer     {layer.name} ({layer.node}), {layer.kind}: {layer.n_rows} rows of {layer.n_features}"
    for image in found.images:
        if image.state == store.LEFT_OUT:
            yield f"left out  {image.path}: {image.reason}"


def _model(path: Path) -> Iterator[str]:
    model = load(path)
    yield f"{path}: a mixture, {type(model).__name__}"
    state = "converged" if model.converged_ else "not converged"
    if not hasattr(model, "counts_"):
        size = f"{model.n_components} components, {model.covariance_type} covariance, {model.n_features_in_} features"
        yield f"fit       by scikit-learn, {model.n_iter_} passes, {state}: {size}"
        return
    rows = round(model.counts_.sum())
    mapped = f"(x - {model.feature_offset_:g}) * {model.feature_scale_:g}"
    yield f"rows      {rows} of {model.n_features_in_} features, seen as {mapped}"
    source = getattr(model, "source_", None)
    if source is not None:
        sample = f", a sample: {source['sample']}" if "sample" in source else ""
        yield f"fitted to {source['layer']} ({source['node']}) of {source['model']}{sample}"
    yield f"clusters  {model.n_active_} in use of {model.n_components}, {model.covariance_type} covariance"
    yield f"fit       {model.n_iter_} passes, {state}, lower bound {model.lower_bound_per_row_:.6f} nats a row"
    how = model.dtype if model.precision == "high" else f"{model.dtype}, precision {model.precision}"
    yield f"computed  by {model.backend_} on {model.device_}, {how}, seed {model.random_state}"
    for k in sorted(range(len(model.counts_)), key=lambda k: -model.counts_[k])[: model.n_active_]:
        yield f"cluster   {k:>4}  {model.counts_[k] / rows:8.4%} of the rows, weight {model.weights_[k]:.5f}"


def _checkpoint(path: Path) -> Iterator[str]:
    about, n_passes, bound = checkpoint.said(path)
    yield f"{path}: a checkpoint of a fit that has not ended; `fastclust fit --resume --checkpoint` goes on"
    yield f"fit       {about['estimator']}, {n_passes} passes, lower bound {bound:.6f} nats"


def _summary(path: Path) -> Iterator[str]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        yield f"{path}: a run of {summary['model']}, weights {summary['weights']}, {summary['images']} images"
        for name, layer in summary["layers"].items():
            yield f"layer     {name}: {layer['rows']} rows, {layer['clusters_in_use']} clusters in use"
        yield f"seconds   {', '.join(f'{step} {seconds:.1f}' for step, seconds in summary['seconds'].items())}"
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a summary that `fastclust run` wrote ({error!r})") from None
