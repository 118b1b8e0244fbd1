"""Does it transfer: photographs against photographs of another collection, histology, tiny images and noise.

A is ImageNet's images. Under each seed A_IMAGES of them are drawn; half of these are fitted to and half held out, as
`fastclust compare` does (`fastclust.views.transfer` has the definitions), and the rest are B "other ImageNet images",
which the mixture and the threshold know nothing of: what differs from 1 % there is the error of the threshold. The seed
is that of the split, of the rows drawn, and of the start.

The same models label BSDS500's images: how far label images agree between seeds, between neighbouring layers, and
between two networks at layers of one resolution (`fastclust.views.agreement`).
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.exceptions import ConvergenceWarning

from benchmarks.timing import spread
from fastclust.extract import extract
from fastclust.labels import label_image
from fastclust.store import Store, open_store
from fastclust.views import agreement, transfer

NETWORKS = {
    "vgg19": ("vgg19_conv1_1-conv3_1.pth", ("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1")),
    "resnet18": ("resnet18_conv1-layer3.pth", ("relu", "layer1", "layer2", "layer3")),
}
ALIKE = ((("vgg19", "relu2_2"), ("resnet18", "relu")), (("vgg19", "relu3_1"), ("resnet18", "layer1")))
SEEDS = range(5)
SIZE = 128  # pixels
A_IMAGES = 44
ROWS, TOL = 20_000, 1e-3
MIXTURE: dict[str, Any] = {
    "n_components": 50,
    "weight_concentration_prior": 0.2,
    "tol": TOL,
    "max_iter": 200,
    "device": "cpu",
}
OTHER = "other ImageNet images"
LABELLED = "BSDS500"

LabelImages = list[NDArray[np.integer]]


def run() -> list[dict[str, Any]]:
    """Return a case for each network, layer and B, for where each B stops looking like A, and for each agreement."""
    data = Path(os.environ["FASTCLUST_DATA"])
    cases, labels = [], dict[tuple[str, str, int], LabelImages]()
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        noise(Path(scratch) / "noise")
        images = collections(data / "images", Path(scratch) / "noise")
        for model, (weights, layers) in NETWORKS.items():
            stores = {}
            for name, paths in images.items():
                out = Path(scratch) / f"{model}-{name}.h5"
                extract(paths, out=out, model=model, layers=layers, weights=data / "weights" / weights, size=SIZE)
                stores[name] = open_store(out)
            found = dict[tuple[str, str], list[transfer.Transfer]]()
            for seed in SEEDS:
                for (layer, name), one in seeds_run(stores, layers, seed, labels, model).items():
                    found.setdefault((layer, name), []).append(one)
            for (layer, name), runs in found.items():
                cases.append(of_layer(model, layer, name, runs))
                print(line(cases[-1]), flush=True)
            for name in dict.fromkeys(name for _, name in found):
                cases.append(
                    of_depth(model, name, [[found[layer, name][i] for layer in layers] for i in range(len(SEEDS))])
                )
                print(line(cases[-1]), flush=True)
    for case in agreements(labels):
        cases.append(case)
        print(line(case), flush=True)
    return cases


def collections(folder: Path, noise: Path) -> dict[str, list[Path]]:
    """Return the images of A (ImageNet) and of each B, but for those of A that are left."""
    return {
        "ImageNet": sorted((folder / "imagenet").iterdir()),
        "BSDS500": sorted((folder / "bsds500" / "val").iterdir()),
        "histology": sorted((folder / "histology").glob("*.png")),
        "CIFAR-10": [path for kind in sorted((folder / "cifar10").iterdir()) for path in sorted(kind.iterdir())[:4]],
        "noise": sorted(noise.iterdir()),
    }


def noise(folder: Path, count: int = 8) -> None:
    """Write pictures whose pixels are uniform and independent."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(256, size=(160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"noise{number}.png")


def seeds_run(
    stores: dict[str, Store],
    layers: Sequence[str],
    seed: int,
    labels: dict[tuple[str, str, int], LabelImages],
    model: str,
) -> dict[tuple[str, str], transfer.Transfer]:
    """Compare every B with A at every layer under a seed; put label images of LABELLED into labels."""
    order = np.random.default_rng(seed).permutation(len(stores["ImageNet"].finished))
    a = transfer.part_of(stores["ImageNet"], order[:A_IMAGES])
    others = {OTHER: transfer.part_of(stores["ImageNet"], order[A_IMAGES:])}
    others |= {name: store for name, store in stores.items() if name != "ImageNet"}
    mixture, found = MIXTURE | {"random_state": seed}, {}
    for layer in layers:
        reference = transfer.fit_reference(a, layer, mixture | {"feature_range": (0, 10)}, sample=ROWS)
        for name, b in others.items():
            found[layer, name] = transfer.transfer(reference, b, mixture, sample=ROWS)
            print(f"seed {seed} {model} {layer} {name}: far {found[layer, name].far:.4f}", flush=True)
        b = others[LABELLED]
        record = b.layer(layer)
        labels[model, layer, seed] = [label_image(b, record, int(index), reference.model) for index in b.finished]
    return found


def of_layer(model: str, layer: str, name: str, runs: Sequence[transfer.Transfer]) -> dict[str, Any]:
    """Return the case of a layer and a B: medians and ranges over seeds."""
    case: dict[str, Any] = {"name": f"{model} {layer} {name}", "kind": "transfer", "model": model, "layer": layer}
    case |= {"b": name, "images": len(runs[0].far_b), "seeds": len(runs)}
    values: dict[str, list[float]] = {
        "clusters": [one.clusters for one in runs],
        "far": [one.far for one in runs],
        "new": [one.new or 0.0 for one in runs],
        "median_image": [float(np.median(one.far_b)) for one in runs],
        "largest_of_a": [max(one.far_a) for one in runs],
        "median_of_a": [float(np.median(one.far_a)) for one in runs],
        "separation": [one.separation for one in runs],
        "usage": [one.usage for one in runs],
        "log_density_a": [one.log_density_a for one in runs],
        "log_density_b": [one.log_density_b for one in runs],
    }
    return case | {key: spread(some) for key, some in values.items()}


def of_depth(model: str, name: str, runs: Sequence[Sequence[transfer.Transfer]]) -> dict[str, Any]:
    """Return where a B stops looking like A under each seed, and how often the far share grew from layer to layer."""
    grown = [float(sum(one.far < deeper.far for one, deeper in pairwise(layers))) for layers in runs]
    return {
        "name": f"{model} {name} over depth",
        "kind": "depth",
        "model": model,
        "b": name,
        "stops_at": [transfer.stops_at(layers) for layers in runs],
        "first": spread([layers[0].far for layers in runs]),
        "last": spread([layers[-1].far for layers in runs]),
        "steps": len(runs[0]) - 1,
        "steps_grown": spread(grown),
    }


def agreements(labels: dict[tuple[str, str, int], LabelImages]) -> list[dict[str, Any]]:
    """Return the cases of seeds, of neighbouring layers and of networks; a value a pair of seeds, or a seed."""
    cases = []
    for model, (_, layers) in NETWORKS.items():
        for layer in layers:
            pairs = [
                compared(labels[model, layer, one], labels[model, layer, other])
                for one, other in combinations(SEEDS, 2)
            ]
            cases.append(_agreement("seeds", f"{model} {layer}", f"{model} {layer}", pairs))
        for one, other in pairwise(layers):
            pairs = [compared(labels[model, one, seed], labels[model, other, seed]) for seed in SEEDS]
            cases.append(_agreement("layers", f"{model} {one}", f"{model} {other}", pairs))
    for (model, layer), (second, other) in ALIKE:
        pairs = [compared(labels[model, layer, seed], labels[second, other, seed]) for seed in SEEDS]
        cases.append(_agreement("networks", f"{model} {layer}", f"{second} {other}", pairs))
    return cases


def compared(one: LabelImages, other: LabelImages) -> agreement.Indices:
    """Return the agreement of label images of the same images, over all of them together."""
    shape = (agreement.LABELS, agreement.LABELS)
    tables = (agreement.contingency(*agreement.same_size(x, y), shape) for x, y in zip(one, other, strict=True))
    return agreement.indices(np.sum(list(tables), axis=0))


def _agreement(between: str, x: str, y: str, pairs: Sequence[agreement.Indices]) -> dict[str, Any]:
    case: dict[str, Any] = {"name": f"{between}: {x}, {y}", "kind": "agreement", "between": between, "x": x, "y": y}
    names = ("adjusted_rand", "normalised_mutual_information", "x_given_y", "y_given_x", "variation_of_information")
    case["pairs"] = len(pairs)
    return case | {name: spread([getattr(one, name) for one in pairs]) for name in names}


def line(case: dict[str, Any]) -> str:
    """Return a case in one line."""
    if case["kind"] == "agreement":
        return f"{case['name']:44} adjusted Rand {_two(case['adjusted_rand'])}"
    if case["kind"] == "depth":
        return f"{case['name']:44} stops at {case['stops_at']}"
    return f"{case['name']:44} far {_share(case['far'])}, separation {_two(case['separation'])}"


def tables(record: dict[str, Any]) -> str:
    """Return the tables of the page: far shares, separations, new clusters, where each B stops, and agreements."""
    from benchmarks.table import _machine, _table, _versions

    cases = [case for case in record["cases"] if case["kind"] == "transfer"]
    names = list(dict.fromkeys(case["b"] for case in cases))
    places = list(dict.fromkeys((case["model"], case["layer"]) for case in cases))
    by = {(case["model"], case["layer"], case["b"]): case for case in cases}
    images = ", ".join(f"{by[(*places[0], name)]['images']} {name}" for name in names)
    about = (
        f"A: {A_IMAGES} images of ImageNet, half of them held out. B: {images}; all at {SIZE} pixels. {ROWS:,} rows a "
        f"fit, at most {MIXTURE['n_components']} components, tol {TOL:g}. Medians of {cases[0]['seeds']} seeds, the "
        f"smallest and largest in brackets. {_machine(record)}. {_versions(record)}"
    )
    parts = [about]
    for what, key, shown in (
        ("Rows of B that are far, of all its rows:", "far", _share),
        ("Separation of B's rows from A's held-out rows (0.5: none, 1: complete):", "separation", _two),
        (
            "Usage, the distance of B's shares of clusters from those of A's held-out rows (0: the same, 1: others):",
            "usage",
            _two,
        ),
        ("Rows of B that are of new clusters, of all its rows:", "new", _share),
    ):
        rows = [
            [
                model,
                layer,
                _whole(by[model, layer, names[0]]["clusters"]),
                *(shown(by[model, layer, name][key]) for name in names),
            ]
            for model, layer in places
        ]
        parts += [what, _table(["network", "layer", "clusters", *names], rows)]
    rows = [
        [model, layer, *(_share(by[model, layer, names[0]][key]) for key in ("median_of_a", "largest_of_a"))]
        + [_share(by[model, layer, name]["median_image"]) for name in names]
        for model, layer in places
    ]
    header = [
        "network",
        "layer",
        "A held out, median image",
        "A held out, largest",
        *(f"{name}, median" for name in names),
    ]
    parts += ["The same image by image, far rows of an image:", _table(header, rows)]
    depth = [
        [
            case["model"],
            case["b"],
            _share(case["first"]),
            _share(case["last"]),
            ", ".join(one or "never" for one in case["stops_at"]),
        ]
        for case in record["cases"]
        if case["kind"] == "depth"
    ]
    parts += [
        "Where B stops looking like A, seed by seed:",
        _table(["network", "B", "far at the first layer", "far at the last", "stops at"], depth),
        f"Agreement of label images of {LABELLED} (variation of information in bits):",
    ]
    agreed = [
        [
            case["between"],
            case["x"],
            case["y"],
            _two(case["adjusted_rand"]),
            _two(case["normalised_mutual_information"]),
            _two(case["variation_of_information"]),
        ]
        for case in record["cases"]
        if case["kind"] == "agreement"
    ]
    header = ["between", "X", "Y", "adjusted Rand", "normalised mutual information", "variation"]
    return "\n\n".join([*parts, _table(header, agreed)])


def _share(value: dict[str, float]) -> str:
    return f"{value['median']:.1%} ({value['min']:.1%} to {value['max']:.1%})"


def _two(value: dict[str, float]) -> str:
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"


def _whole(value: dict[str, float]) -> str:
    return f"{value['median']:.0f} ({value['min']:.0f} to {value['max']:.0f})"
