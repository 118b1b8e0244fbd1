"""The detection suite: what a fit is judged by, and that the page's words are the record's numbers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.measure import label

from benchmarks.findings import detection as suite
from fastclust.receptive import Axis, Field
from fastclust.views.detection import centroids

SIZE = suite.SIZE


def tile() -> np.ndarray:
    """True inside of 49 discs of radius 6, 32 pixels apart."""
    row, column = np.ogrid[:SIZE, :SIZE]
    return (row % 32 - 15.5) ** 2 + (column % 32 - 15.5) ** 2 <= 36


@pytest.fixture
def field() -> Field:
    pixel = np.arange(SIZE)
    return Field(Axis(1, 1, 0, pixel, pixel), Axis(1, 1, 0, pixel, pixel))


def model() -> Any:
    means = np.array([[0.0, 0], [6, 5], [6, 4]])
    return SimpleNamespace(
        means_=means,
        weights_=np.full(3, 1 / 3),
        covariances_=np.full((3, 2), 0.01),
        covariance_type="diag",
        counts_=np.ones(3),
    )


def test_a_fit_is_judged_by_rule_chance_and_two_oracles(field: Field) -> None:
    mask = label(tile()).astype(np.int64)
    labels = np.where(tile(), 1, 0)
    labels[: SIZE // 2] *= 2  # the upper half's discs are another cluster's, of the same kind
    masks = {1: (mask, centroids(mask))}  # the first tile is not scored
    found = suite._judge(model(), [labels, labels], field, masks, seed=0)
    assert (found["cells"], found["clusters_in_use"], found["foreground"]) == (49, 3, 2)
    assert found["f1"] == found["precision"] == found["recall"] == found["inside"] == 1.0
    assert found["share_of_units"] == pytest.approx(tile().mean(), rel=1e-3)
    assert found["group"]["clusters"] == [1, 2]
    assert found["group"]["f1"] == 1.0
    assert found["single"]["clusters"] in ([1], [2])
    assert found["single"]["precision"] == 1.0
    assert found["single"]["recall"] in (round(28 / 49, 4), round(21 / 49, 4))
    assert found["chance"]["centres"] == 49
    assert 0 < found["chance"]["f1"] < 0.5
    assert found["chance"] == suite._judge(model(), [labels, labels], field, masks, seed=0)["chance"]
    assert found["chance"] != suite._judge(model(), [labels, labels], field, masks, seed=1)["chance"]


def test_where_the_rule_finds_nothing_scores_are_zero_and_not_unknown(field: Field) -> None:
    mask = label(tile()).astype(np.int64)
    found = suite._judge(model(), [np.zeros((SIZE, SIZE), dtype=int)], field, {0: (mask, centroids(mask))}, seed=0)
    assert (found["centres"], found["precision"], found["f1"], found["foreground"]) == (0, None, 0.0, 0)


def case(network: str, layer: str, weights: str, f1: tuple[float, ...], group: float) -> dict[str, Any]:
    seeds = [
        {"seed": seed, "cells": 50, **dict.fromkeys(suite.SHARES, value)}
        | {name: dict.fromkeys(suite.SHARES, 0.1) for name in ("chance", "single")}
        | {"group": dict.fromkeys(suite.SHARES, group)}
        for seed, value in enumerate(f1)
    ]
    pixel = np.arange(SIZE)
    axes = Axis(1, 2, 0, pixel, pixel)
    return suite._case(network, layer, weights, Field(axes, axes), seeds, 1.0, {})


def test_the_picture_shows_colours_and_learned_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: dict[str, Any] = {}
    drawn = suite.plot_detection
    monkeypatch.setattr(suite, "plot_detection", lambda some, *more, **named: shown.update(some) or drawn(some, *more))
    cases = [
        case("", "pixels", suite.COLOUR, (0.3, 0.4), 0.6),
        case("vgg19", "relu1_1", suite.LEARNED, (0.45, 0.6), 0.8),
        case("vgg19", "relu1_1", suite.RANDOM, (0.2, 0.3), 0.5),
    ]
    suite.draw({"cases": cases}, tmp_path / "plot.png")
    assert {name: [one["f1"] for one in some] for name, some in shown.items()} == {
        "colours": [0.3, 0.4],
        "vgg19 relu1_1": [0.45, 0.6],
    }
    assert Image.open(tmp_path / "plot.png").size[0] > 1000


def test_the_page_says_who_wins() -> None:
    cases = [
        case("", "pixels", suite.COLOUR, (0.3, 0.4, 0.5), 0.6),
        case("vgg19", "relu1_1", suite.LEARNED, (0.45, 0.6, 0.7), 0.8),
        case("vgg19", "relu1_1", suite.RANDOM, (0.2, 0.3, 0.4), 0.5),
        case("vgg19", "relu2_1", suite.LEARNED, (0.05, 0.05, 0.3), 0.4),
        case("vgg19", "relu2_1", suite.RANDOM, (0.31, 0.35, 0.4), 0.5),
    ]
    about = {"machine": {"cpu": "A CPU", "cores": 2}, "commit": "0123456789abcdef", "date": "2026-01-01"}
    text = suite.tables({"cases": cases, **about})
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert len({line.count("|") for line in rows}) == 1
    assert rows[2].startswith("| colours | pixels | 2 | 0.40 (0.30 to 0.50) |")
    assert rows[3].split(" | ")[6] == "0.30 (0.20 to 0.40)", "of random weights"
    verdict = text.splitlines()[-1]
    for words in (
        "the best layer of learned weights is vgg19 relu1_1 (F1 0.60), of random ones vgg19 relu2_1 (0.35); colours",
        "colours reach 0.40",
        "the higher median in 1 of 2 layers, with ranges that do not touch in 1; random ones so in 1",
        "Colours' median is above that of 1 of 2 layers",
        "would reach 0.80 (vgg19 relu1_1), of colours 0.60",
        "Above chance by the rule are 1 of 2 layers",
    ):
        assert words in verdict


def test_unknown_shares_are_left_out_of_spreads() -> None:
    assert suite._spread([0.5, None, 0.1, 0.2]) == {"median": 0.2, "min": 0.1, "max": 0.5}
    assert suite._spread([None, None]) is None
    assert suite._range(None) == "-"


def test_a_tile_with_a_mask_of_another_size_is_not_scored(data_folder: Path) -> None:
    with suite._store(data_folder, "squeezenet1_1", "random", ["features.12"], 0) as store:
        masks = suite._masks(store, data_folder)
        missing = [record.name for place, record in enumerate(store.images) if place not in masks]
    assert missing == ["image04"]
    assert all(mask.shape == (SIZE, SIZE) and len(cells) > 20 for mask, cells in masks.values())
