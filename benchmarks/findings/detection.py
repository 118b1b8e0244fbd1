"""Whether centres of clusters find cells: every layer that weights cover, against random weights, colours and masks.

Eight histology tiles at 224 pixels (a nucleus is about 12 wide). Of each layer and seed a mixture is fitted to an even
sample of the rows, the rule of `fastclust.views.regions` chooses the foreground without the masks, and the centres of
its regions are matched to nuclei (`fastclust.views.detection`). A seed is that of the sample, of the start, and of
random weights. Beside the rule there are, of the same fit,

    chance    as many points in each image, placed at random
    single    the one cluster whose centres have the best F1 by the masks: an oracle, no detector
    group     the group of clusters, of those that the rule chooses from, of the best F1 by the masks: an oracle, too

and of colours alone the same mixture and rule on the pixels of the inputs. One tile has a mask of another size than its
own: it is fitted and judged with the others, and not scored.

`python -m benchmarks.plot` draws a record's colours and layers of learned weights, too.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.timing import short
from fastclust import DPGMM
from fastclust.extract import extract, input_image
from fastclust.fitted import FittedMixture
from fastclust.labels import label_image
from fastclust.layer_fit import fit_layer
from fastclust.networks import Network
from fastclust.receptive import Axis, Field, receptive_fields
from fastclust.store import Store, open_store
from fastclust.views.centres import DISTANCE, MIN_AREA
from fastclust.views.detection import Mask, Points, Score, centroids, find_mask, mask_as_input, read_mask, score, total
from fastclust.views.plots import plot_detection, save
from fastclust.views.regions import centres, foreground, groups, unit_area

SEEDS = (0, 1, 2, 3, 4)
SIZE, SAMPLE = 224, 16_384
MIXTURE: dict[str, Any] = {
    "n_components": 50,
    "weight_concentration_prior": 0.2,
    "covariance_type": "diag",
    "tol": 1e-3,
    "max_iter": 60,
    "device": "cpu",
}
NETWORKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "vgg19": ("vgg19_conv1_1-conv3_1.pth", ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1")),
    "resnet18": ("resnet18_conv1-layer3.pth", ("relu", "layer1", "layer2", "layer3")),
    "squeezenet1_0": ("squeezenet1_0.pth", tuple(f"features.{n}" for n in (1, 3, 4, 5, 7, 8, 9, 10, 12))),
    "squeezenet1_1": ("squeezenet1_1_features.pth", tuple(f"features.{n}" for n in (1, 3, 4, 6, 7, 9, 10, 11, 12))),
}
LEARNED, RANDOM, COLOUR = "learned", "random", "none"
SHARES = ("precision", "recall", "f1", "inside")

Labels = list[NDArray[np.integer]]
Masks = dict[int, tuple[Mask, Points]]  # by place: of the input, and its centroids


def run(
    networks: dict[str, tuple[str, tuple[str, ...]]] = NETWORKS, seeds: Sequence[int] = SEEDS
) -> list[dict[str, Any]]:
    """Return a record of each layer with learned and with random weights, and of colours."""
    folder = Path(os.environ["FASTCLUST_DATA"])
    layers = (_network(folder, name, *of, seeds) for name, of in networks.items())
    cases = []
    for case in chain([_colours(folder, seeds)], *layers):
        cases.append(case)
        print(line(case), flush=True)
    return cases


def _colours(folder: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the record of the pixels of the inputs, which are rows of three."""
    with _store(folder, "vgg19", "random", ["relu1_1"], 0) as store:
        masks = _masks(store, folder)
        inputs = [input_image(record, store.provenance) for record in store.images]
    pixel = np.arange(SIZE, dtype=np.int64)
    field = Field(Axis(1, 1, 0, pixel, pixel), Axis(1, 1, 0, pixel, pixel))
    rows = np.concatenate([image.reshape(-1, 3) for image in inputs]).astype(np.float32) / 255
    found, began = [], time.perf_counter()
    for seed in seeds:
        part = np.random.default_rng(seed).choice(len(rows), SAMPLE, replace=False)
        model = DPGMM(**MIXTURE, feature_range=(0, 10), random_state=seed).fit(rows[np.sort(part)])
        labels = [np.asarray(model.predict(image.reshape(-1, 3).astype(np.float32) / 255)) for image in inputs]
        found.append(_judge(model, [one.reshape(SIZE, SIZE) for one in labels], field, masks, seed))
    return _case("", "pixels", COLOUR, field, found, time.perf_counter() - began, masks)


def _network(
    folder: Path, model: str, file: str, layers: Sequence[str], seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Yield the records of a network's layers, of learned weights first."""
    for weights in (LEARNED, RANDOM):
        found: dict[str, list[dict[str, Any]]] = {layer: [] for layer in layers}
        took = dict.fromkeys(layers, 0.0)
        fields = receptive_fields(Network(model, list(layers), SIZE), SIZE, SIZE)
        for seeds_of_weights in [seeds] if weights == LEARNED else [[seed] for seed in seeds]:
            source = str(folder / "weights" / file) if weights == LEARNED else "random"
            with _store(folder, model, source, layers, seeds_of_weights[0]) as store:
                masks = _masks(store, folder)
                for layer in layers:
                    began = time.perf_counter()
                    record = store.layer(layer)
                    for seed in seeds_of_weights:
                        mixture = MIXTURE | {"random_state": seed}
                        fitted, _ = fit_layer([store], layer, mixture, sample=min(SAMPLE, record.n_rows))
                        labels = [label_image(store, record, int(index), fitted) for index in store.finished]
                        found[layer].append(_judge(fitted, labels, fields[layer], masks, seed))
                    took[layer] += time.perf_counter() - began
        for layer in layers:
            yield _case(model, layer, weights, fields[layer], found[layer], took[layer], masks)


class _store:
    """The features of the tiles, in a file that goes when it is left."""

    def __init__(self, folder: Path, model: str, weights: str, layers: Sequence[str], seed: int) -> None:
        self._scratch = tempfile.TemporaryDirectory()
        self._out = Path(self._scratch.name) / "features.h5"
        tiles = [folder / "images" / "histology"]
        extract(tiles, out=self._out, model=model, layers=layers, weights=weights, seed=seed, size=SIZE, device="cpu")

    def __enter__(self) -> Store:
        return open_store(self._out)

    def __exit__(self, *error: object) -> None:
        self._scratch.cleanup()


def _masks(store: Store, folder: Path) -> Masks:
    """Return the masks of the inputs by place; not of a tile whose mask is of another size."""
    found = {}
    for place, record in enumerate(store.images):
        path = find_mask(folder / "images" / "histology", record)
        mask = None if path is None else read_mask(path)
        if mask is not None and mask.shape == record.size:
            own = mask_as_input(mask, record, store.provenance["transform"])
            found[place] = own, centroids(own)
    return found


def _judge(model: FittedMixture, labels: Labels, field: Field, masks: Masks, seed: int) -> dict[str, Any]:
    """Return what the rule's centres, as many random points, and both oracles score, of one fit."""
    chosen = foreground(model, labels, [unit_area(field)] * len(labels), MIN_AREA)
    points = {place: _points(labels[place], chosen, field) for place in masks}
    random = np.random.default_rng(seed)
    scattered = {place: random.uniform(-0.5, SIZE - 0.5, size=some.shape) for place, some in points.items()}
    by_masks = [
        (group, _score({place: _points(labels[place], group, field) for place in masks}, masks))
        for group in groups(model, labels)
    ]
    single = max((one for one in by_masks if len(one[0]) == 1), key=_f1)
    best = max(by_masks, key=_f1)
    units = sum(one.size for one in labels)
    return {
        "seed": seed,
        "clusters_in_use": sum(len(group) == 1 for group, _ in by_masks),
        "foreground": len(chosen),
        "share_of_units": short(sum(int(np.isin(one, chosen).sum()) for one in labels) / units),
        **_shortened(_score(points, masks)),
        "chance": _shortened(_score(scattered, masks)),
        "single": {"clusters": single[0]} | _shortened(single[1]),
        "group": {"clusters": best[0]} | _shortened(best[1]),
    }


def _f1(one: tuple[list[int], Score]) -> float:
    return one[1].as_dict()["f1"] or 0.0


def _points(labels: NDArray[np.integer], clusters: list[int], field: Field) -> NDArray[np.float64]:
    found = centres(labels, clusters, field, MIN_AREA)
    return np.array([(one.row, one.column) for one in found], dtype=np.float64).reshape(-1, 2)


def _score(points: dict[int, NDArray[np.float64]], masks: Masks) -> Score:
    return total([score(points[place], mask, DISTANCE, cells) for place, (mask, cells) in masks.items()])


def _shortened(found: Score) -> dict[str, Any]:
    return {key: short(value) if isinstance(value, float) else value for key, value in found.as_dict().items()}


def _case(
    network: str,
    layer: str,
    weights: str,
    field: Field,
    seeds: list[dict[str, Any]],
    seconds: float,
    masks: Masks,
) -> dict[str, Any]:
    parts = {"rule": seeds} | {name: [one[name] for one in seeds] for name in ("chance", "single", "group")}
    return {
        "name": " ".join(part for part in (network, layer, weights) if part),
        "network": network,
        "layer": layer,
        "weights": weights,
        "pixels_a_unit": field.jump[0],
        "tiles_scored": len(masks),
        "nuclei": seeds[0]["cells"],
        "settings": {"size": SIZE, "sample": SAMPLE, "min_area": MIN_AREA, "distance": DISTANCE, **MIXTURE},
        "seconds": short(seconds),
        **{name: {share: _spread([one[share] for one in some]) for share in SHARES} for name, some in parts.items()},
        "seeds": seeds,
    }


def _spread(values: list[float | None]) -> dict[str, float] | None:
    """Return median, least and largest of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {"median": short(statistics.median(known)), "min": min(known), "max": max(known)}


def line(case: dict[str, Any]) -> str:
    """Return a record in one line."""
    parts = (f"{part} F1 {_range(case[part]['f1'])}" for part in ("rule", "chance", "single", "group"))
    return f"{case['name']}  {'; '.join(parts)}; {case['seconds']:.3g} s"


def _range(spread: dict[str, float] | None) -> str:
    return "-" if spread is None else f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def tables(record: dict[str, Any]) -> str:
    """Return the Markdown of a record: what it is of, a row for colours and each layer, and who wins."""
    cases = record["cases"]
    settings, machine = cases[0]["settings"], record["machine"]
    n_seeds = len(cases[0]["seeds"])
    cores = "1 core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    about = (
        f"Medians over {n_seeds} seeds, least and largest in brackets. {cases[0]['nuclei']} nuclei of "
        f"{cases[0]['tiles_scored']} tiles at {settings['size']} pixels; matched within {settings['distance']:g} "
        f"pixels of the input; regions of at least {settings['min_area']:g} pixels; mixtures of at most "
        f"{settings['n_components']} components fitted to {settings['sample']:,} rows (all, where there are fewer), "
        f"tol {settings['tol']:g}, at most {settings['max_iter']} passes. {machine['cpu']}, {cores}, "
        f"commit {record['commit'][:12]}, {record['date']}."
    )
    header = ["network", "layer", "step", "precision", "recall", "F1", "F1, random weights", "F1 of chance"]
    header += ["oracle: one cluster", "oracle: a group", "oracle: a group, random weights"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    learned = {(case["network"], case["layer"]): case for case in cases if case["weights"] != RANDOM}
    random = {(case["network"], case["layer"]): case for case in cases if case["weights"] == RANDOM}
    for key, case in learned.items():
        other = random.get(key)
        cells = [case["network"] or "colours", case["layer"], f"{case['pixels_a_unit']:g}"]
        cells += [_range(case["rule"][share]) for share in ("precision", "recall", "f1")]
        cells += [_range(other["rule"]["f1"]) if other else ""]
        cells += [_range(case[part]["f1"]) for part in ("chance", "single", "group")]
        cells += [_range(other["group"]["f1"]) if other else ""]
        lines.append(f"| {' | '.join(cells)} |")
    pairs = [(learned[key], other) for key, other in random.items()]
    return "\n\n".join([about, "\n".join(lines), _verdict(learned["", "pixels"], pairs)])


def _verdict(colour: dict[str, Any], pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    """Say in numbers who wins, by medians of F1 and by ranges that do not touch."""

    def f1(case: dict[str, Any], part: str = "rule", which: str = "median") -> float:
        return float((case[part]["f1"] or {which: 0.0})[which])

    def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
        return f1(one, which="min") > f1(other, which="max")

    best = max((one for one, _ in pairs), key=f1)
    best_random = max((other for _, other in pairs), key=f1)
    oracle = max((one for one, _ in pairs), key=lambda case: f1(case, "group"))
    n = len(pairs)
    return (
        f"By the rule, the best layer of learned weights is {best['network']} {best['layer']} (F1 {f1(best):.2f}), of "
        f"random ones {best_random['network']} {best_random['layer']} ({f1(best_random):.2f}); colours reach "
        f"{f1(colour):.2f}. Learned weights have the higher median in {sum(f1(a) > f1(b) for a, b in pairs)} of {n} "
        f"layers, with ranges that do not touch in {sum(beats(a, b) for a, b in pairs)}; random ones so in "
        f"{sum(beats(b, a) for a, b in pairs)}. Colours' median is above that of "
        f"{sum(f1(colour) > f1(a) for a, _ in pairs)} of {n} layers of learned weights. A group of clusters chosen "
        f"by the masks would reach {f1(oracle, 'group'):.2f} ({oracle['network']} {oracle['layer']}), of colours "
        f"{f1(colour, 'group'):.2f}. Above chance by the rule are {sum(f1(a) > f1(a, 'chance') for a, _ in pairs)} of "
        f"{n} layers of learned weights."
    )


def draw(record: dict[str, Any], path: Path) -> None:
    """Plot precision, recall and F1 of colours and of every layer of learned weights, with their ranges over seeds."""
    shown = {
        f"{case['network']} {case['layer']}" if case["network"] else "colours": case["seeds"]
        for case in record["cases"]
        if case["weights"] != RANDOM
    }
    ax = Figure(figsize=(12, 4.8), layout="constrained").add_subplot()
    save(plot_detection(shown, ax, title="Centres against nuclei: medians and ranges over seeds"), path)
