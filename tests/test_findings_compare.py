"""The suites transfer and segmentation: measures against brute force and libraries, and records that become pages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import relu_features
from made_store import made_store
from PIL import Image
from scipy.io import savemat
from scipy.optimize import linear_sum_assignment
from skimage.metrics import variation_of_information

from benchmarks import findings, table
from benchmarks.findings import segmentation, segments, transfer
from benchmarks.findings.segments import Counts

MACHINE = {"cpu": "a CPU", "cores": 2, "versions": {"scikit-learn": "1", "torch": "2", "numpy": "2"}}
ABOUT: dict[str, Any] = {"machine": MACHINE, "commit": "c" * 40, "date": "2026-01-01"}


def blocks(shape: tuple[int, int] = (12, 9), clusters: int = 4, seed: int = 0) -> np.ndarray:
    """Labels in blocks of three pixels a side."""
    coarse = np.random.default_rng(seed).integers(clusters, size=(shape[0] // 3 + 1, shape[1] // 3 + 1))
    return np.kron(coarse, np.ones((3, 3), dtype=int))[: shape[0], : shape[1]].astype(np.uint8)


PAIRS = {
    "of blocks": (blocks(), blocks(seed=1)),
    "the same": (blocks(), blocks()),
    "numbers that no pixel has": (blocks() * 7 + 3, blocks(seed=2) * 5),
    "one region": (blocks(), np.zeros((12, 9), int)),
    "all their own": (blocks(), np.arange(108).reshape(12, 9)),
    "a pixel": (np.array([[3]]), np.array([[8]])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_covering_and_variation_are_those_of_the_definitions(name: str) -> None:
    truth, found = PAIRS[name]
    best = 0.0
    for region in np.unique(truth):
        inside = truth == region
        overlaps = [(inside & (found == other)).sum() / (inside | (found == other)).sum() for other in np.unique(found)]
        best += inside.sum() * max(overlaps) / truth.size
    common = segments.overlaps(truth, found)
    assert segments.covering(common) == pytest.approx(best)
    expected = variation_of_information(truth.astype(int), found.astype(int)).sum()
    assert segments.variation(common) == pytest.approx(expected, abs=1e-9)


def test_covering_is_of_the_truth_and_not_of_the_regions() -> None:
    whole, halves = np.zeros((4, 4), int), np.repeat([[0, 0, 1, 1]], 4, axis=0)
    assert segments.covering(segments.overlaps(whole, halves)) == 0.5
    uneven = np.repeat([[0, 1, 1, 1]], 4, axis=0)
    assert segments.covering(segments.overlaps(uneven, whole)) == pytest.approx(0.25 * 0.25 + 0.75 * 0.75)


def test_a_boundary_is_a_pixel_wide() -> None:
    found = segments.boundary(np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]]))
    assert np.array_equal(found, [[False, True, False], [True, True, True], [False, False, False]])
    assert not segments.boundary(np.zeros((1, 1), int)).any()


def edges(seed: int, shape: tuple[int, int] = (9, 11), share: float = 0.2) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize("distance", [0.0, 1.0, 1.5, 2.2])
def test_matchings_are_those_of_brute_force(distance: float) -> None:
    found, truths = edges(0), [edges(1), edges(2, share=0.05), np.zeros((9, 11), bool)]
    theirs = [np.argwhere(truth) for truth in truths]
    ours = np.argwhere(found)
    within = [np.hypot(*(ours[:, None] - other[None]).transpose(2, 0, 1)) <= distance for other in theirs]
    near = Counts(
        int(np.any([table.any(axis=1) for table in within], axis=0).sum()),
        len(ours),
        sum(int(table.any(axis=0).sum()) for table in within),
        sum(map(len, theirs)),
    )
    pairs = sum(int(one[linear_sum_assignment(~one)].sum()) for one in within)
    exact = segments.one_to_one(found, truths, distance)
    reached = [segments.reach(truth, distance) for truth in truths]
    assert segments.near(found, truths, reached, distance) == near
    assert (exact.found, exact.truth_matched, exact.truth) == (len(ours), pairs, near.truth)
    assert exact.found_matched <= near.found_matched
    assert exact.truth_matched <= near.truth_matched
    if distance == 0:
        assert exact == near, "a pixel has no other within 0"
    else:
        assert exact.truth_matched < near.truth_matched, "inputs must discriminate"


def test_one_to_one_lets_no_pixel_be_matched_twice() -> None:
    found, truth = np.ones((1, 3), bool), np.array([[False, True, False]])
    assert segments.near(found, [truth], [segments.reach(truth, 1)], 1) == Counts(3, 3, 1, 1)
    assert segments.one_to_one(found, [truth], 1) == Counts(1, 3, 1, 1)


def test_nothing_found_and_nothing_to_find() -> None:
    empty, some = np.zeros((3, 3), bool), np.eye(3, dtype=bool)
    for found, truth in ((empty, some), (some, empty), (empty, empty)):
        reached = [segments.reach(truth, 1)]
        for counts in (segments.near(found, [truth], reached, 1), segments.one_to_one(found, [truth], 1)):
            assert (counts.precision, counts.recall, counts.f) == (0, 0, 0)
    counts = Counts(1, 2, 3, 4) + Counts(1, 2, 3, 4)
    assert counts == Counts(2, 4, 6, 8)
    assert counts.f == pytest.approx(2 * 0.5 * 0.75 / 1.25)


def test_regions_are_connected_and_label_0_is_one_like_any_other() -> None:
    labels = np.array([[0, 0, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0]], dtype=np.uint8)
    found = segments.regions(labels, 1)
    assert len(np.unique(found)) == 4
    assert found[0, 0] != found[0, 3]
    assert found[0, 2] == found[2, 1]
    speck = np.zeros((9, 9), dtype=np.uint8)
    speck[4, 4] = 5
    assert len(np.unique(segments.regions(speck, 1))) == 2
    assert len(np.unique(segments.regions(speck, 3))) == 1


def test_annotations_are_read_at_another_size(tmp_path: Path) -> None:
    people = np.empty((1, 2), dtype=object)
    for place, truth in enumerate((blocks((6, 4)), blocks((6, 4), seed=1))):
        people[0, place] = {"Segmentation": truth.astype(np.uint16) + 1}
    savemat(tmp_path / "a.mat", {"groundTruth": people})
    one, other = segments.read_truths(tmp_path / "a.mat", (3, 2))
    assert np.array_equal(one, blocks((6, 4))[1::2, 1::2] + 1)
    assert other.shape == (3, 2)


def test_photographs_are_halved_with_their_annotations(tmp_path: Path) -> None:
    people = np.empty((1, 1), dtype=object)
    people[0, 0] = {"Segmentation": np.ones((41, 61), dtype=np.uint16)}
    (tmp_path / "photographs").mkdir()
    Image.new("RGB", (61, 41)).save(tmp_path / "photographs" / "7.jpg")
    savemat(tmp_path / "7.mat", {"groundTruth": people})
    (path,), ((truth,),) = segmentation.halved([tmp_path / "photographs" / "7.jpg"], tmp_path, tmp_path / "out")
    assert Image.open(path).size == (31, 21)
    assert truth.shape == (21, 31)


@pytest.fixture(scope="module")
def measured() -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Cases of made images: four regions of features, and truths that are these regions."""
    random = np.random.default_rng(0)
    shape = (24, 32)
    truths = [[np.kron([[1, 2], [3, 4]], np.ones((12, 16), dtype=np.int32)).astype(np.int32)] * 2 for _ in range(3)]
    centres = random.normal(size=(5, 8)) * 6
    images = [centres[those[0][::2, ::2]] + random.normal(size=(12, 16, 8)) for those in truths]
    noise = [random.normal(size=(12, 16, 8)) for _ in truths]
    assert truths[0][0].shape == shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "ROWS", 300)
        patch.setattr(segmentation, "COMPONENTS", 6)
        runs = [segmentation.seeds_runs(images, noise, truths, seed) for seed in range(2)]
        (colours, _) = segmentation.seeds_runs(images, None, truths, 0)
        assert len(segmentation.draw(images, 0)) == 300
    assert colours[0] == "fastclust"
    cases = [segmentation.people(truths), segmentation.one_region(truths)]
    for place, method in enumerate(segmentation.METHODS):
        assert [run[place][0] for run in runs] == [method] * 2
        cases.append(segmentation.summarised("relu1_2", method, [run[place][1] for run in runs], 3))
    return cases, dict(runs[0]), dict(runs[1])


def test_regions_that_are_peoples_are_covered_and_noise_is_not(measured: Any) -> None:
    cases, first, _ = measured
    by = {case["name"]: case["best"] for case in cases}
    assert by["people, one against the others"]["covering"] == 1
    assert by["people, one against the others"]["variation"] == 0
    assert by["people, one against the others"]["f_one_to_one"] == 1
    assert by["an image as one region"]["covering"] == 0.25
    assert by["an image as one region"]["variation"] == pytest.approx(2)
    for method in ("fastclust", "scikit-learn"):
        assert by[f"relu1_2 {method}"]["covering"]["median"] > 0.95
        assert by[f"relu1_2 {method}"]["f_one_to_one"]["median"] > 0.95
    assert by["relu1_2 random"]["covering"]["max"] < 0.5
    assert first["k-means"]["clusters"] == first["fastclust"]["clusters"]
    assert first["fastclust"]["precision_recall_one_to_one"][1] > 0.95


def test_the_best_side_is_the_best_of_all_sides(measured: Any) -> None:
    cases, first, second = measured
    for run in (*first.values(), *second.values()):
        assert run["best"]["covering"] == max(run["sides"]["covering"])
        assert run["best"]["variation"] == min(run["sides"]["variation"])
        assert run["best"]["f_near"] == max(run["sides"]["f_near"])
        assert run["best"]["f_one_to_one"] <= run["best"]["f_near"] + 1e-9
        assert len(run["sides"]["regions"]) == len(segmentation.SIDES)
    text = table.replaced(page("segmentation"), segmentation.tables(as_record(cases)))
    assert "| relu1_2 | random | " in text
    assert "people, one against the others" in text


def page(name: str) -> str:
    return (table.FINDINGS / f"{name}.md").read_text()


def as_record(cases: list[dict[str, Any]]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(json.dumps(ABOUT | {"cases": cases}))
    return record


def test_the_transfer_suite_makes_its_cases_and_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {"vgg19": ("w", ("relu1_1", "relu3_1")), "resnet18": ("w", ("layer1", "layer2"))}
    monkeypatch.setattr(transfer, "NETWORKS", networks)
    monkeypatch.setattr(transfer, "ALIKE", ((("vgg19", "relu3_1"), ("resnet18", "layer1")),))
    monkeypatch.setattr(transfer, "SEEDS", range(2))
    monkeypatch.setattr(transfer, "A_IMAGES", 4)
    monkeypatch.setattr(transfer, "ROWS", 200)
    monkeypatch.setitem(transfer.MIXTURE, "n_components", 4)
    pool = relu_features(9_000, 5)
    cases: list[dict[str, Any]] = []
    labels: dict[Any, Any] = {}
    for model, (_, layers) in networks.items():
        stores = {}
        for place, name in enumerate(("ImageNet", "BSDS500", "noise")):
            rows = pool[place * 3_000 :][:3_000].reshape(-1, 10, 10, 5)[:6]
            arrays = {layer: list(rows + (40 if name == "noise" else 0)) for layer in layers}
            stores[name] = made_store(tmp_path / f"{model}-{name}.h5", arrays)
        runs = [transfer.seeds_run(stores, layers, seed, labels, model) for seed in range(2)]
        assert {name for _, name in runs[0]} == {transfer.OTHER, "BSDS500", "noise"}
        for layer, name in runs[0]:
            cases.append(transfer.of_layer(model, layer, name, [run[layer, name] for run in runs]))
        cases.append(transfer.of_depth(model, "noise", [[run[layer, "noise"] for layer in layers] for run in runs]))
    cases += transfer.agreements(labels)
    by = {case["name"]: case for case in cases}
    assert by["vgg19 relu1_1 noise"]["far"]["min"] == 1
    assert by["vgg19 relu1_1 other ImageNet images"]["images"] == 2
    assert by["vgg19 relu1_1 BSDS500"]["separation"]["median"] == pytest.approx(0.5, abs=0.1)
    assert by["resnet18 noise over depth"]["stops_at"] == ["layer1", "layer1"]
    assert by["seeds: vgg19 relu1_1, vgg19 relu1_1"]["pairs"] == 1
    assert by["networks: vgg19 relu3_1, resnet18 layer1"]["adjusted_rand"]["median"] == 1, "of the same features"
    assert all(transfer.line(case) for case in cases)
    text = table.replaced(page("transfer"), transfer.tables(as_record(cases)))
    assert "| vgg19 | noise | 100.0% (100.0% to 100.0%)" in text
    assert "| networks | vgg19 relu3_1 | resnet18 layer1 | 1.00 (1.00 to 1.00)" in text


def test_noise_is_pictures(tmp_path: Path) -> None:
    transfer.noise(tmp_path / "noise", 2)
    one, other = (np.asarray(Image.open(path)) for path in sorted((tmp_path / "noise").iterdir()))
    assert one.shape == (160, 160, 3)
    assert not np.array_equal(one, other)
    assert abs(np.corrcoef(one[:, :-1].ravel(), one[:, 1:].ravel())[0, 1]) < 0.02


def test_the_suites_are_registered_with_a_page_each() -> None:
    assert {"transfer", "segmentation"} <= set(findings.SUITES)
    for name in findings.SUITES:
        assert table.replaced(page(name), "x")
