"""How much of B looks like A: the numbers against an oracle, what is new, the splits, and what cannot be compared."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call
from conftest import relu_features
from made_store import made_store
from PIL import Image
from sklearn.metrics import roc_auc_score

import fastclust
from fastclust.layer_fit import fit_layer
from fastclust.store import Store, open_features
from fastclust.views import comparison, transfer
from fastclust.views.plots import plot_transfer, save

D = 6
MIXTURE: dict[str, Any] = {"n_components": 6, "max_iter": 30, "tol": 1e-3, "random_state": 0, "device": "cpu"}


def like_a(count: int, seed: int = 0, side: int = 16) -> list[np.ndarray]:
    """Features of a ReLU, with a dead channel: images of one kind."""
    rows = relu_features(20_000, D, seed=3)
    drawn = np.random.default_rng(seed).choice(len(rows), count * side * side, replace=False)
    return list(rows[drawn].reshape(count, side, side, D))


def around(places: list[float], seed: int = 1, side: int = 16) -> list[np.ndarray]:
    """An image for each place: its rows lie close around (place, place, ...)."""
    random = np.random.default_rng(seed)
    return [place + 0.1 * random.normal(size=(side, side, D)) for place in places]


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return made_store(tmp_path_factory.mktemp("a") / "a.h5", {"one": like_a(8)})


@pytest.fixture(scope="module")
def reference(a: Store) -> transfer.Reference:
    return transfer.fit_reference(a, "one", MIXTURE)


def test_the_numbers_are_those_of_the_definition(a: Store, reference: transfer.Reference, tmp_path: Path) -> None:
    shapes = [(16, 16), (3, 5), (1, 1)]
    images = [2.0 * image[:h, :w] for image, (h, w) in zip(like_a(3, seed=5), shapes, strict=True)]
    b = made_store(tmp_path / "b.h5", {"one": images})
    found = transfer.transfer(reference, b, MIXTURE)
    order = np.random.default_rng(0).permutation(8)
    held = [a.image_rows("one", int(index)).reshape(-1, D) for index in sorted(order[:4])]
    assert reference.model.counts_.sum() == 4 * 256, "fitted to the other half"
    of_a = [reference.model.score_samples(rows) for rows in held]
    of_b = [reference.model.score_samples(image.reshape(-1, D).astype(np.float32)) for image in images]
    threshold = np.quantile(np.concatenate(of_a), 0.01)
    assert found.threshold == pytest.approx(threshold, rel=1e-6)
    assert found.far_a == pytest.approx([(one < threshold).mean() for one in of_a])
    assert found.far_b == pytest.approx([(one < threshold).mean() for one in of_b])
    assert found.far == pytest.approx((np.concatenate(of_b) < threshold).mean())
    assert 0.02 < found.far < 0.98, "inputs must discriminate"
    assert found.log_density_a == pytest.approx(np.concatenate(of_a).mean(), rel=1e-5)
    assert found.log_density_b == pytest.approx(np.concatenate(of_b).mean(), rel=1e-5)
    truth = np.repeat([0, 1], [4 * 256, sum(map(len, of_b))])
    assert found.separation == pytest.approx(roc_auc_score(truth, -np.concatenate([*of_a, *of_b])), abs=1e-6)


def test_the_usage_is_the_distance_of_the_shares(reference: transfer.Reference, tmp_path: Path) -> None:
    arrays = like_a(2, seed=5)
    arrays[1][:] = arrays[1][0, 0]
    found = transfer.transfer(reference, made_store(tmp_path / "b.h5", {"one": arrays}), MIXTURE)
    labels = reference.model.predict(np.concatenate([one.reshape(-1, D) for one in arrays]).astype(np.float32))
    shares = np.array([(labels == k).mean() for k in range(6)])
    assert found.shares_b == pytest.approx(shares)
    assert found.usage == pytest.approx(np.abs(shares - found.shares_a).sum() / 2)
    assert 0.3 < found.usage < 0.6, "half of B is one cluster's"
    other = transfer.transfer(reference, made_store(tmp_path / "a.h5", {"one": like_a(12, seed=9)}), MIXTURE)
    assert other.usage < 0.1


def test_ties_count_half(a: Store, reference: transfer.Reference, tmp_path: Path) -> None:
    zeros = made_store(tmp_path / "b.h5", {"one": [np.zeros((2, 2, D))]})
    score = reference.model.score_samples(np.zeros((1, D), dtype=np.float32))[0]
    tied = replace(reference, scores=np.sort(np.array([score - 1, score, score, score + 1], dtype=np.float32)))
    assert transfer.transfer(tied, zeros, MIXTURE).separation == pytest.approx((1 + 2 / 2) / 4)


def test_more_of_the_same_is_not_far(reference: transfer.Reference, tmp_path: Path) -> None:
    found = transfer.transfer(reference, made_store(tmp_path / "b.h5", {"one": like_a(12, seed=9)}), MIXTURE)
    assert found.far < 0.03
    assert 0.45 < found.separation < 0.55
    assert transfer.stops_at([found]) is None


def test_what_other_images_of_b_share_is_new_and_what_they_do_not_is_neither(
    reference: transfer.Reference, tmp_path: Path
) -> None:
    shared = transfer.transfer(reference, made_store(tmp_path / "s.h5", {"one": around([30.0] * 6)}), MIXTURE)
    assert shared.far == 1
    assert shared.new is not None
    assert shared.new > 0.99
    alone = [30.0, -50.0, 90.0, -130.0, 210.0, -340.0]
    scattered = transfer.transfer(reference, made_store(tmp_path / "o.h5", {"one": around(alone)}), MIXTURE)
    assert scattered.far == 1
    assert scattered.new == 0, "a cluster of one image alone is no cluster of B's"
    both = like_a(6, seed=2)
    for image, far in zip(both, around([30.0] * 6), strict=True):
        image[:8] = far[:8]
    half = transfer.transfer(reference, made_store(tmp_path / "h.h5", {"one": both}), MIXTURE)
    assert half.far == pytest.approx(0.5, abs=0.02)
    assert half.new == pytest.approx(0.5, abs=0.02)
    assert transfer.stops_at([shared]) == "one"


def test_few_far_rows_make_no_cluster_and_of_one_image_none_is_told(
    reference: transfer.Reference, tmp_path: Path
) -> None:
    few = [image[:1, :9] for image in around([30.0] * 4)]
    found = transfer.transfer(reference, made_store(tmp_path / "f.h5", {"one": few}), MIXTURE)
    assert (found.far, found.new) == (1, 0)
    one = transfer.transfer(reference, made_store(tmp_path / "1.h5", {"one": [np.full((1, 1, D), 99.0)]}), MIXTURE)
    assert (one.far, one.new) == (1, None)
    assert comparison.lines([one])[-1].split()[-4:-1] == ["-", "-", "1.000"]


def test_only_so_many_far_rows_are_fitted_to(
    reference: transfer.Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    fit = fastclust.DPGMM.fit
    monkeypatch.setattr(fastclust.DPGMM, "fit", lambda self, X, **more: rows.append(len(X)) or fit(self, X, **more))
    b = made_store(tmp_path / "b.h5", {"one": around([30.0] * 4)})
    found = transfer.transfer(reference, b, MIXTURE, sample=200)
    assert rows == [200, 200]
    assert found.new is not None
    assert found.new > 0.99


def test_of_many_images_with_a_far_row_each_some_are_drawn(
    reference: transfer.Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "MOST", 40)
    b = made_store(tmp_path / "b.h5", {"one": [image[:1, :1] for image in around([30.0] * 220)]})
    found = transfer.transfer(reference, b, MIXTURE, sample=50)
    assert found.far == 1
    assert found.new is not None
    assert found.new > 0.9


def test_the_split_is_by_image_and_changes_with_the_seed(a: Store) -> None:
    parts = [transfer.fit_reference(a, "one", MIXTURE | {"random_state": seed}) for seed in range(3)]
    assert all(len(part.far) == 4 and len(part.scores) == 4 * 256 for part in parts)
    assert len({part.threshold for part in parts}) == 3
    again = transfer.fit_reference(a, "one", MIXTURE | {"random_state": 0})
    assert np.array_equal(again.scores, parts[0].scores)
    for share, held in ((0.0, 1), (0.25, 2), (1.0, 7)):
        assert len(transfer.fit_reference(a, "one", MIXTURE, held_out=share).far) == held


def test_images_that_are_pending_are_nowhere(a: Store, tmp_path: Path) -> None:
    arrays = like_a(5, seed=4)
    part = made_store(tmp_path / "p.h5", {"one": arrays}, done=3)
    found = comparison.compare(a, part, MIXTURE)
    assert len(found[0].far_b) == 3
    assert list(transfer.part_of(part, [2, 0]).finished) == [0, 2]
    assert transfer.part_of(part, [1]).rows("one")[0].shape == (256, D)


def test_layers_are_those_of_both_in_order(tmp_path: Path) -> None:
    arrays = like_a(4)
    a = made_store(tmp_path / "a.h5", {"deep": arrays, "flat": arrays, "own": arrays})
    b = made_store(tmp_path / "b.h5", {"flat": arrays, "deep": arrays, "other": arrays})
    assert comparison.common_layers(a, b) == ["deep", "flat"]
    assert comparison.common_layers(a, b, ["flat"]) == ["flat"]
    with pytest.raises(ValueError, match=r"b.h5 has no layer 'own'"):
        comparison.common_layers(a, b, ["own"])
    with pytest.raises(ValueError, match="no layer in common"):
        comparison.common_layers(a, made_store(tmp_path / "c.h5", {"x": arrays}))
    with pytest.raises(ValueError, match="different networks or weights"):
        comparison.common_layers(a, made_store(tmp_path / "d.h5", {"deep": arrays}, weights="v"))


def test_one_image_cannot_be_split_but_a_given_model_needs_no_split(a: Store, tmp_path: Path) -> None:
    arrays = like_a(2, seed=7)
    one = made_store(tmp_path / "one.h5", {"one": arrays[:1]})
    b = made_store(tmp_path / "b.h5", {"one": arrays})
    with pytest.raises(ValueError, match="at least 2 are needed"):
        comparison.compare(one, b, MIXTURE)
    model = fastclust.DPGMM(**MIXTURE).fit(np.concatenate(a.rows("one")))
    (tmp_path / "models" / "one").mkdir(parents=True)
    model.save(tmp_path / "models" / "one" / "model.h5")
    (found,) = comparison.compare(one, b, MIXTURE, models=tmp_path / "models")
    assert len(found.far_a) == 1
    assert found.far_a[0] == pytest.approx(0.01, abs=0.005)
    with pytest.raises(ValueError, match="none is held out"):
        comparison.compare(a, b, MIXTURE, models=tmp_path / "models")
    fit_layer([a], "one", MIXTURE, sample=500)[0].save(tmp_path / "models" / "one" / "model.h5")
    with pytest.raises(ValueError, match="none is held out"):
        comparison.compare(a, b, MIXTURE, models=tmp_path / "models")
    others = made_store(tmp_path / "others.h5", {"one": like_a(8, seed=9)})
    (found,) = comparison.compare(others, b, MIXTURE, models=tmp_path / "models")
    assert len(found.far_a) == 8, "as many rows, and others"
    with pytest.raises(FileNotFoundError, match=r"model.h5 is not there"):
        comparison.compare(a, b, MIXTURE, models=tmp_path)


def test_a_feature_that_is_no_number_is_named(reference: transfer.Reference, tmp_path: Path) -> None:
    arrays = like_a(2)
    b = made_store(tmp_path / "b.h5", {"one": arrays})
    with b.path.open("r+b") as file:
        file.seek(b.span("one", 1)[0] + 4 * D)
        file.write(np.float32(np.nan).tobytes())
    with pytest.raises(ValueError, match=r"one of image /b/1.png has NaN"):
        transfer.transfer(reference, b, MIXTURE)


def far(layer: str, far_a: list[float], far_b: list[float]) -> transfer.Transfer:
    return transfer.Transfer(layer, 3, True, -1.0, -2.0, -3.0, far_a, far_b, 0.2, 0.1, 0.7, 0.4, [0.9, 0.1], [0.5, 0.5])


def test_b_stops_where_its_median_image_passes_every_image_of_a() -> None:
    near = far("a", [0.0, 0.05], [0.04, 0.05, 0.9])
    beyond = far("b", [0.0, 0.05], [0.0, 0.06, 0.07])
    assert transfer.stops_at([near]) is None
    assert transfer.stops_at([near, beyond, near]) == "b"
    head, *table = comparison.lines([near, beyond])
    assert len({len(line) for line in table}) == 1, "columns are aligned"
    assert head.index("far rows") > table[0].index("B")
    assert table[2].split()[0] == "b"
    assert "10.0%" in table[1]


@pytest.mark.parametrize("count", [1, 2, 30])
def test_the_plot_has_a_point_a_layer(count: int, tmp_path: Path) -> None:
    found = [far(f"layer{i}.0.relu", [0.0, 0.02], [0.01, 0.3]) for i in range(count)]
    ax = plot_transfer(found, ("photographs", "tiles"), found[-1].layer)
    line = next(line for line in ax.lines if str(line.get_label()).startswith("tiles: median"))
    assert np.asarray(line.get_ydata()) == pytest.approx([15.5] * count)
    assert [tick.get_text() for tick in ax.get_xticklabels()] == [one.layer for one in found]
    save(ax, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 500


def compare(*words: object) -> Any:
    return call("compare", *words, "--components", 4, "--max-iter", 10, "--tol", 1e-2)


def test_the_command_prints_writes_and_draws(a: Store, tmp_path: Path) -> None:
    b = made_store(tmp_path / "b.h5", {"one": around([30.0] * 3)}, size=64)
    out, plot = tmp_path / "out", tmp_path / "plot.svg"
    result = compare(a.path, b.path, "--out", out, "--plot", plot, "--held-out", 0.25)
    assert (result.status, result.err.splitlines()[0]) == (
        0,
        "sizes differ, 32 and 64: what differs may be the scale alone",
    )
    assert result.err.count("has not converged (--max-iter 10)") == 1
    lines = result.out.splitlines()
    assert lines[2].split()[:2] == ["one", "4"]
    assert lines[3].startswith("one: the first layer where B's median image has more far rows")
    said = json.loads((out / "compare.json").read_text())
    assert said["stops_looking_like_a_at"] == "one"
    assert len(said["layers"][0]["far_a"]) == 2
    assert said["layers"][0]["far"] == 1
    assert said["mixture"]["random_state"] == 0
    assert plot.read_text().startswith("<?xml")
    assert compare(a.path, b.path, "--out", out).err.strip().endswith("or name another folder")
    again = compare(a.path, b.path, "--out", out, "--overwrite", "--layer", "one")
    assert again.status == 0


def test_the_folder_of_a_run_is_a_store(a: Store, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "features.h5").symlink_to(a.path)
    assert open_features(tmp_path / "run").layers.keys() == {"one"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["{a}", "{folder}"], "has no features.h5: expected a store"),
        (["{a}", "{folder}/none.h5"], "none.h5 does not exist: expected a feature store"),
        (["{a}", "{text}"], "is not an HDF5 file: expected a feature store"),
        (["{a}", "{a}", "--out", "{text}"], "is a file: name a folder with --out"),
        (["{a}", "{a}", "--out", "{text}/below"], "text.h5 is a file: name a folder with --out"),
        (["{a}", "{a}", "--plot", "{folder}/x.jpg"], "expected a plot's file to end in .png, .svg, .pdf"),
        (["{a}", "{a}", "--plot", "{folder}/none/x.png"], "none is not a folder: create it first"),
        (["{a}", "{a}", "--layer", "ono"], "has no layer 'ono': did you mean one?"),
        (["{a}", "{a}", "--models", "{folder}"], "model.h5 is not there: expected LAYER/model.h5"),
        (["{a}", "{a}", "--device", "quantum"], "device 'quantum' cannot be used here"),
        (["{a}", "{a}", "--components", "5000"], "use fewer components"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(words: list[str], reason: str, a: Store, tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("no store")
    result = call("compare", *[word.format(a=a.path, folder=tmp_path, text=text) for word in words])
    assert result.status == 1
    assert result.out == ""
    assert len(result.err.strip().splitlines()) == 1
    assert reason in result.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.h5"]
