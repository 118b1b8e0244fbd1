"""Runs that end well: every file there and right, steps that equal a run, resuming, replacing, the demo."""

import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import MIXTURE, NETWORK, SMALL, call, contents, photographs
from PIL import Image
from rich.console import Console
from test_images import photograph

import fastclust
from fastclust import console, demo, labels, picture, pipeline, weights
from fastclust import extract as extracting
from fastclust.layer_fit import fit_layer
from fastclust.store import open_store
from fastclust.views import atlas

LAYERS = ("1", "features.12")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs (images) and a run of two layers on them (out)."""
    folder = tmp_path_factory.mktemp("made")
    photographs(folder / "images")
    result = call("run", folder / "images", *SMALL, "--layer", "features.12", "--out", folder / "out")
    assert (result.status, result.err) == (0, "")
    (folder / "printed").write_text(result.out)
    return folder


def test_a_run_writes_what_it_names(made: Path) -> None:
    images = [f"{part}/{number}.png" for part in ("enlarged", "labels") for number in range(4)]
    files = {"features.h5", "montage.png", "summary.json"}
    files |= {f"{layer}/{name}" for layer in LAYERS for name in ("model.h5", "labels.json", *images)}
    assert {name for name, content in contents(made / "out").items() if content is not None} == files


def test_label_images_hold_what_the_model_predicts(made: Path) -> None:
    store = open_store(made / "out" / "features.h5")
    for layer in LAYERS:
        model = fastclust.load(made / "out" / layer / "model.h5")
        for index, image in enumerate(store.images):
            rows = store.image_rows(layer, index)
            expected = model.predict(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape[:2])
            labels = Image.open(made / "out" / layer / "labels" / f"{image.name}.png")
            assert np.array_equal(np.array(labels), expected)
            enlarged = Image.open(made / "out" / layer / "enlarged" / f"{image.name}.png")
            assert enlarged.size == (64, 64)
            assert set(np.unique(enlarged)) == set(np.unique(expected))
        assert model.counts_.sum() == store.layer(layer).n_rows


def test_a_cluster_has_one_colour_in_all_images(made: Path) -> None:
    for layer in LAYERS:
        files = sorted((made / "out" / layer).glob("*/*.png"))
        assert len({bytes(Image.open(file).getpalette() or b"") for file in files}) == 1


def test_the_summary_says_what_was_done(made: Path) -> None:
    summary = json.loads((made / "out" / "summary.json").read_text())
    assert summary["images"] == 4
    assert summary["left_out"] == []
    assert (summary["model"], summary["weights"], summary["learned_features"]) == ("squeezenet1_1", "random", False)
    assert (summary["seed"], summary["backend"], summary["size"]) == (0, "numba", 64)
    assert summary["machine"]["versions"]["torch"]
    assert summary["mixture"]["n_components"] == 3
    assert 0 < summary["peak_memory_bytes"] < 2**40
    assert {"extract", "fit", "label", "montage", "total"} == set(summary["seconds"])
    assert sum(value for step, value in summary["seconds"].items() if step != "total") <= summary["seconds"]["total"]
    assert list(summary["layers"]) == list(LAYERS)
    for name, layer in summary["layers"].items():
        model = fastclust.load(made / "out" / name / "model.h5")
        assert (layer["rows"], layer["features"]) == (model.counts_.sum(), model.n_features_in_)
        assert (layer["passes"], layer["converged"]) == (model.n_iter_, model.converged_)
        assert (layer["clusters_in_use"], layer["lower_bound_per_row"]) == (model.n_active_, model.lower_bound_)
        assert len(layer["clusters_in_use_per_image"]) == 4
        assert {"fit", "label"} == set(layer["seconds"])


def test_what_is_printed(made: Path) -> None:
    lines = (made / "printed").read_text().splitlines()
    assert lines[0].startswith("1: 3844 rows of 64, 3 clusters in use, ")
    assert "RANDOM" in lines[-2]
    assert lines[-1].endswith(str(made / "out" / "montage.png"))


def test_the_montage_has_a_column_a_layer_and_says_when_weights_are_random(made: Path) -> None:
    montage = Image.open(made / "out" / "montage.png")
    montage.load()
    assert montage.mode == "RGB"
    assert montage.width > 3 * 200
    wash = (np.array(montage) == (0xFD, 0xEE, 0xE6)).all(axis=2)  # the colour behind the note
    assert wash.sum() > 1000


@pytest.mark.parametrize("command", ["run", "atlas"])
def test_an_input_that_cannot_be_read_at_the_end_is_grey_and_named(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, notes = photographs(tmp_path / "images", 3), list[str]()

    def montage(inputs: Any, columns: Any, **words: Any) -> Image.Image:
        notes.append(words["note"])
        assert [bool((pixels == 217).all()) for pixels in inputs] == [False, True, True]
        return drawn(inputs, columns, **words)

    drawn, label = picture.montage, labels.label_layer
    monkeypatch.setattr(picture, "montage", montage)

    def label_and_lose(*given: Any, **words: Any) -> Any:
        found = label(*given, **words)
        (images / "1.png").unlink(missing_ok=True)
        Image.new("RGB", (30, 90)).save(images / "2.png")
        return found

    monkeypatch.setattr(pipeline, "label_layer", label_and_lose)
    monkeypatch.setattr(atlas, "label_layer", label_and_lose)
    result = call(command, images, *SMALL, "--size", "full", "--out", tmp_path / "out")
    assert (result.status, result.err) == (0, "")
    assert notes[0].endswith("2 inputs cannot be read any more, and shown grey: 1, 2")
    assert (tmp_path / "out" / {"run": "summary.json", "atlas": "atlas.json"}[command]).is_file()


@pytest.mark.parametrize("command", ["run", "atlas"])
def test_numbers_outlive_a_picture_that_fails(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no picture")

    monkeypatch.setattr(picture, "montage", fail)
    result = call(command, photographs(tmp_path / "images", 2), *SMALL, "--out", tmp_path / "out")
    assert (result.status, result.err) == (1, "fastclust: no picture\n")
    written = json.loads((tmp_path / "out" / {"run": "summary.json", "atlas": "atlas.json"}[command]).read_text())
    assert len(written["layers"]) == 1


def test_steps_give_the_labels_of_a_run(made: Path, tmp_path: Path) -> None:
    images, store, model = made / "images", tmp_path / "f.h5", tmp_path / "m.h5"
    layers = ("--layer", "1", "--layer", "features.12")
    extracted = call("extract", images, *NETWORK, *layers, "--out", store)
    assert (extracted.status, extracted.err) == (0, "")
    assert extracted.out.startswith(f"{store}: 4 images, 1, features.12, in ")
    assert store.read_bytes() == (made / "out" / "features.h5").read_bytes()
    for layer in LAYERS:
        fitted = call("fit", store, "--layer", layer, *MIXTURE, "--out", model, "--overwrite")
        assert (fitted.status, fitted.err) == (0, "")
        assert fitted.out.startswith(f"{model}: {layer}, ")
        labelled = call("label", store, "--layer", layer, "--model", model, "--out", tmp_path / layer)
        assert (labelled.status, labelled.err) == (0, "")
        written = contents(made / "out" / layer)
        del written["model.h5"]
        assert contents(tmp_path / layer) == written


def test_a_layer_need_not_be_named_where_there_is_one(made: Path, tmp_path: Path) -> None:
    assert call("extract", made / "images", *NETWORK, "--layer", "1", "--out", tmp_path / "f.h5").status == 0
    assert call("fit", tmp_path / "f.h5", *MIXTURE, "--out", tmp_path / "m.h5").status == 0
    assert (
        call("label", tmp_path / "f.h5", "--model", tmp_path / "m.h5", "--out", tmp_path / "deep" / "out").status == 0
    )
    assert contents(tmp_path / "deep" / "out" / "labels") == contents(made / "out" / "1" / "labels")


def test_a_dense_layer_gives_a_table(tmp_path: Path) -> None:
    photographs(tmp_path / "grade 1", 3)
    photographs(tmp_path / "grade 2", 3)
    if sys.platform == "linux":  # a name that is not UTF-8
        os.rename(tmp_path / "grade 2" / "2.png", os.fsencode(tmp_path / "grade 2") + b"/\xff.png")  # noqa: PTH104
    options = ("--model", "resnet18", "--weights", "random", "--size", "32", "--layer", "fc", "--components", "2")
    result = call("run", tmp_path / "grade 1", tmp_path / "grade 2", *options, "--out", tmp_path / "out")
    assert result.status == 0, result.err
    assert {path.name for path in (tmp_path / "out" / "fc").iterdir()} == {"labels.csv", "labels.json", "model.h5"}
    with (tmp_path / "out" / "fc" / "labels.csv").open(errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    store = open_store(tmp_path / "out" / "features.h5")
    model = fastclust.load(tmp_path / "out" / "fc" / "model.h5")
    assert [row["path"] for row in rows] == [image.path for image in store.images]
    assert [row["label"] for row in rows] == ["grade 1"] * 3 + ["grade 2"] * 3
    assert [int(row["cluster"]) for row in rows] == model.predict(np.concatenate(store.rows("fc"))).tolist()


def test_full_size_keeps_every_images_own(tmp_path: Path) -> None:
    sizes = {"a": (40, 60), "b": (70, 50), "c": (64, 64), "d": (40, 60)}
    (tmp_path / "images").mkdir()
    for name, (height, width) in sizes.items():
        Image.fromarray(photograph(height, width)).save(tmp_path / "images" / f"{name}.png")
    result = call("run", tmp_path / "images", *SMALL, "--size", "full", "--out", tmp_path / "out")
    assert (result.status, result.err) == (0, "")
    for name, (height, width) in sizes.items():
        with Image.open(tmp_path / "out" / "1" / "enlarged" / f"{name}.png") as image:
            assert image.size == (width, height)
        with Image.open(tmp_path / "out" / "1" / "labels" / f"{name}.png") as image:
            assert image.size == ((width - 1) // 2, (height - 1) // 2)
    assert Image.open(tmp_path / "out" / "montage.png").height > 4 * 100


def test_replacing_leaves_nothing_of_the_run_before(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = photographs(tmp_path / "images", 3)
    assert call("run", folder, *SMALL, "--layer", "features.12", "--out", out).status == 0
    (out / "1" / "mine.txt").write_text("a note")
    (folder / "0.png").rename(folder / "first.png")
    (folder / "1.png").unlink()
    more = ("--layer", "3", "--layer", "1")
    assert call("run", folder, *NETWORK, *MIXTURE, *more, "--out", out, "--overwrite").status == 0
    assert {path.name for path in out.iterdir()} == {"1", "3", "features.h5", "montage.png", "summary.json"}
    assert (out / "1" / "mine.txt").read_text() == "a note"
    for layer in ("1", "3"):
        for part in ("labels", "enlarged"):
            assert {path.name for path in (out / layer / part).iterdir()} == {"first.png", "2.png"}
    assert list(json.loads((out / "summary.json").read_text())["layers"]) == ["3", "1"]
    labels = call(
        "label",
        out / "features.h5",
        "--layer",
        "3",
        "--model",
        out / "3" / "model.h5",
        "--out",
        out / "1",
        "--overwrite",
    )
    assert labels.status == 0
    assert contents(out / "1" / "labels") == contents(out / "3" / "labels")


@pytest.mark.parametrize(("command", "refused"), [("run", ("--components", "9999")), ("atlas", ("--rows", "1"))])
def test_stopped_while_it_replaces_it_leaves_nothing_of_the_features_before(
    tmp_path: Path, command: str, refused: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = tmp_path / "out", photographs(tmp_path / "first", 1)
    words = ("--layer", "1", *NETWORK, *MIXTURE, "--batch-size", "1", "--out", out)
    assert call("run", first, *words, "--report").status == 0
    before = contents(out)
    more = photographs(tmp_path / "more", 3)
    assert call(command, more, *words, "--overwrite", *refused).status == 1
    assert contents(out) == before, "what is refused changes nothing"
    write = extracting._write

    def interrupt(writer: Any, rows: Any, reasons: Any) -> float:
        if 1 in rows:
            raise KeyboardInterrupt
        return write(writer, rows, reasons)

    with monkeypatch.context() as patch:
        patch.setattr(extracting, "_write", interrupt)
        assert call(command, more, *words, "--overwrite").status == 130
    assert list(contents(out)) == ["features.h5"]
    assert len(open_store(out / "features.h5").finished) == 1
    for reader in ("report", "centres"):
        result = call(reader, out, *(("--out", tmp_path / "c") if reader == "centres" else ()))
        assert "model.h5 is not there: the run has not ended" in result.err


def test_a_run_and_an_atlas_replace_each_other_whole(made: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "out", (made / "images", *NETWORK, *MIXTURE, "--out", tmp_path / "out", "--overwrite")
    assert call("atlas", *words, "--layer", "1", "--seeds", "1").status == 0
    assert call("run", *words, "--layer", "3").status == 0
    assert {path.name for path in out.iterdir()} == {"3", "features.h5", "montage.png", "summary.json"}
    assert call("atlas", *words, "--layer", "1", "--seeds", "1").status == 0
    drawn = {"atlas.json", "atlas.png", "clusters_in_use.png"}
    assert {path.name for path in out.iterdir()} == {"1", "features.h5"} | drawn
    assert call("run", *words, "--layer", "3", "--no-store").status == 0
    assert {path.name for path in out.iterdir()} == {"3", "montage.png", "summary.json"}


def test_resuming_a_run_that_ended_gives_the_same(made: Path, tmp_path: Path) -> None:
    before = contents(made / "out")
    result = call("run", made / "images", *SMALL, "--layer", "features.12", "--out", made / "out", "--resume")
    assert (result.status, result.err) == (0, "")
    after = contents(made / "out")
    for name in before:
        if not name.endswith(("summary.json", "model.h5")):
            assert after[name] == before[name]


def test_results_inside_the_images_folder_are_no_input(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", 2)
    command = ("run", folder, *SMALL, "--out", folder / "out")
    for more in ([], ["--resume"], ["--overwrite"]):
        result = call(*command, *more)
        assert (result.status, result.err) == (0, "")
        assert len(open_store(folder / "out" / "features.h5").images) == 2


def test_more_components_than_a_palette_has_colours(made: Path, tmp_path: Path) -> None:
    store = open_store(made / "out" / "features.h5")
    model, _ = fit_layer([store], "1", {"n_components": 300, "max_iter": 1, "init_params": "random", "random_state": 0})
    model.save(tmp_path / "m.h5")
    result = call("label", store.path, "--layer", "1", "--model", tmp_path / "m.h5", "--out", tmp_path / "out")
    assert (result.status, result.err) == (0, "")
    assert Image.open(tmp_path / "out" / "labels" / "0.png").mode == "RGB"


def test_the_demo_without_pretrained_weights_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("the pretrained weights cannot be downloaded")

    monkeypatch.setattr(demo, "pretrained_file", offline)
    monkeypatch.chdir(tmp_path)
    words = ["--model", "squeezenet1_1", "--layer", "classifier.1", "--images", made / "images"]
    for _ in range(2):  # its own folder is replaced
        result = call("demo", *words)
        assert result.status == 0
        assert "RANDOM weights" in result.err
        assert "RANDOM" in result.out
        assert result.out.rstrip().endswith(os.path.join("demo-out", "montage.png"))  # noqa: PTH118
        summary = json.loads((tmp_path / "demo-out" / "summary.json").read_text())
        assert (summary["weights"], summary["learned_features"], summary["images"]) == ("random", False, 4)
    before = contents(made)
    refused = call("demo", *words, "--out", made / "out")
    assert refused.status == 1
    assert "--overwrite" in refused.err
    assert contents(made) == before
    asked = call("demo", *words, "--weights", "pretrained", "--out", "x")
    assert asked.status == 1


def test_the_demo_takes_pretrained_weights_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "pretrained_file", lambda model: (tmp_path / "w.pth", "DEFAULT"))
    assert demo.choose_weights("vgg16") == ("pretrained", "")
    monkeypatch.setattr(demo, "pretrained_file", weights.pretrained_file)
    result = call("demo", "--model", "vgg61", "--out", tmp_path / "out")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "did you mean" in result.err


def test_the_samples_are_there() -> None:
    names = [path.name for path in demo.sample_images()]
    assert len(names) == 6
    assert "ihc.png" in names
    assert demo.default_layers("vgg19_bn") == demo.default_layers("vgg16") == ["relu1_2", "relu2_2", "relu4_3"]
    assert demo.default_layers("resnet18") == ["2", "4", "8"]


def test_bars_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console, "ERR", Console(file=shown, force_terminal=True, width=140))
    result = call("run", photographs(tmp_path / "images", 2), *SMALL, "--out", tmp_path / "out")
    assert result.status == 0
    for word in ("extract", "2/2", "fit 1", "label 1", "montage", "clusters in use"):
        assert word in shown.getvalue()
    assert "\x1b" not in result.out


def test_real_tiles_with_learned_weights(data_folder: Path, tmp_path: Path) -> None:
    weights_file = data_folder / "weights" / "vgg19_conv1_1-conv3_1.pth"
    layers = ("--layer", "relu1_2", "--layer", "relu2_2", "--layer", "conv3_1")
    command = ("run", data_folder / "images" / "histology", "--model", "vgg19", "--weights", weights_file, *layers)
    result = call(*command, "--size", "96", "--max-iter", "30", "--out", tmp_path / "out")
    assert (result.status, result.err) == (0, "")
    assert "RANDOM" not in result.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["weights"], summary["learned_features"]) == (8, "file", True)
    used = [layer["clusters_in_use"] for layer in summary["layers"].values()]
    assert used[0] > used[-1] > 1
