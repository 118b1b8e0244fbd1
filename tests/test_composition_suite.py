"""The suite `composition`: what it records of a store, and the page's table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import NETWORK, call
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from test_images import photograph

from benchmarks.findings import composition
from fastclust.store import open_store
from fastclust.views.points import cluster_images

pytestmark = pytest.mark.usefixtures("one_thread")


def case(**changes: Any) -> dict[str, Any]:
    """The record of a case of three seeds."""
    about = {"name": "flatten rows learned", "model": "m", "size": 64, "layer": "flatten", "pool": None}
    about |= {"weights": "learned", "permutations": 9_999, "seeds": [0, 1, 2], "components": [4, 4, 4]}
    about |= {"images": 12, "classes": 2, "features": 9, "variance": [0.5, 0.5, 0.5], "clusters": [3, 5, 4]}
    about |= {"purity": [0.5, 0.75, 0.6], "chance": [0.2, 0.3, 0.25], "whole": [1, 1, 1]}
    measures = ("adjusted_rand", "mutual_information", "kmeans_rand", "kmeans_information")
    return (
        about
        | {name: [0.1, 0.3, 0.2] for name in measures}
        | {"p_rand": [1e-4] * 3, "p_information": [0.2, 0.1, 0.3]}
        | changes
    )


def test_the_table_has_medians_spreads_and_the_largest_p() -> None:
    cases = [case(), case(layer="features.3.cat", pool="max", weights="random", clusters=[2, 2, 2])]
    record = {"cases": cases, "machine": {"cpu": "a CPU"}, "commit": "0123456789abcdef", "date": "2026-11-22"}
    about, _, *lines = composition.tables(record).split("\n")
    assert "12 images of CIFAR-10, 2 classes, through m at 64 pixels; 4 principal components" in about
    assert "a CPU; commit 0123456789ab, 2026-11-22." in about
    header, rule, first, second = (line.strip("|").split("|") for line in lines)
    assert len(header) == len(rule) == len(first) == len(second)
    cells = [cell.strip() for cell in first]
    assert cells[:5] == ["classifier", "", "learned", "50%", "4 (3 to 5)"]
    assert cells[5:9] == ["0.60 (0.50 to 0.75)", "0.25", "0.200 (0.100 to 0.300)", "0.0001"]
    assert cells[10] == "0.3000"
    assert [cell.strip() for cell in second][:5] == ["fire2", "max", "random", "50%", "2"]


def test_a_store_is_measured_as_its_clusters_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        path = tmp_path / "images" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(40, 40, number) // (1 + number % 3)).save(path)
    words = ("--layer", "features.3.cat", "--out", tmp_path / "x.h5")
    assert call("extract", tmp_path / "images", *NETWORK, *words).status == 0
    store = open_store(tmp_path / "x.h5")
    monkeypatch.setattr(composition, "POINTS", (("features.3.cat", "mean"),))
    name = "features.3.cat mean random"
    records = {name: {"name": name, "seeds": [], "components": [], "variance": []}}
    records[name] |= {measure: [] for measure in composition.MEASURES}
    composition._measure(store, "random", 3, records)
    record: dict[str, Any] = records[name]
    found = cluster_images(store, "features.3.cat", "mean", composition.MIXTURE | {"random_state": 3})
    labels = [store.images[index].label for index in store.finished]
    assert record["clusters"] == [np.count_nonzero(found.sizes)]
    assert record["adjusted_rand"] == [pytest.approx(adjusted_rand_score(labels, found.clusters), abs=1e-4)]
    assert (record["images"], record["classes"], record["seeds"], record["components"]) == (60, 3, [3], [2])
    assert 1 / 3 <= record["chance"][0] <= 1
    assert all(len(record[measure]) == 1 for measure in composition.MEASURES)
