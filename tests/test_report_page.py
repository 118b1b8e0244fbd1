"""The report of a run: its numbers are the model's, its size is kept, no name breaks it, and a run without inputs."""

import base64
import io
import json
import os
import re
import sys
import tomllib
import zlib
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import MIXTURE, NETWORK, call, photographs
from conftest import blobs
from PIL import Image
from test_images import photograph

import fastclust
from fastclust import DPGMM
from fastclust.extract import input_image
from fastclust.networks import Network
from fastclust.picture import enlarge
from fastclust.receptive import receptive_fields
from fastclust.store import Store, open_store
from fastclust.views import embed, page, panels, survey
from fastclust.views.portrait import deviations, marks, nearest, overlapping

LAYERS = ("1", "features.4", "features.12")
ROOT = Path(__file__).parent.parent


def nasty(folder: Path) -> Path:
    """Photographs whose names are code; two of one name, which the report tells apart by their folders."""
    photographs(folder / "a<", 4)
    photographs(folder / "b<", 1)
    (folder / "a<" / "0.png").rename(folder / "a<" / "script><script>window.hacked=1<!--.png")
    (folder / "b<" / "0.png").rename(folder / "b<" / "script><script>window.hacked=1<!--.png")
    (folder / "a<" / "1.png").rename(folder / "a<" / "\"'><img src=x onerror=window.hacked=1>{{7*7}}.png")
    if sys.platform == "linux":
        os.rename(folder / "a<" / "2.png", os.fsencode(folder / "a<") + b"/\xff\xe2\x80\xae.png")  # noqa: PTH104
    return folder


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three layers with a report."""
    folder = tmp_path_factory.mktemp("reported")
    layers = [word for layer in LAYERS for word in ("--layer", layer)]
    command = ("run", nasty(folder / "images"), *NETWORK, *MIXTURE, "--components", "6", *layers)
    result = call(*command, "--out", folder / "out", "--report")
    assert (result.status, result.err) == (0, "")
    (folder / "printed").write_text(result.out)
    return folder / "out"


class Page(HTMLParser):
    """What a page holds: tags with their attributes, and the texts of elements by tag."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))

    def data(self) -> Any:
        (text,) = (text for tag, text in self.texts if text.startswith('{"images"'))
        return json.loads(text)


def parts(out: Path) -> tuple[Store, dict[str, DPGMM]]:
    return open_store(out / "features.h5"), {layer: fastclust.load(out / layer / "model.h5") for layer in LAYERS}


def test_a_run_and_the_command_write_the_same_report(reported: Path) -> None:
    path = reported / "report.html"
    before = path.read_bytes()
    shown = f"{path}: 5 images shown, {len(before) / 1e6:.1f} MB"
    assert shown in (reported.parent / "printed").read_text().splitlines()
    summary = json.loads((reported / "summary.json").read_text())
    assert summary["report"] == {"bytes": len(before), "images": 5}
    assert 0 < summary["seconds"]["report"] < summary["seconds"]["total"]
    path.unlink()
    result = call("report", reported)
    assert (result.status, result.out, result.err) == (0, shown + "\n", "")
    assert path.read_bytes() == before


def test_label_images_are_those_of_the_run(reported: Path) -> None:
    data, store = Page(reported / "report.html").data(), open_store(reported / "features.h5")
    for image, record in zip(data["images"], store.images, strict=True):
        for layer, packed, shape in zip(LAYERS, image["labels"], image["shapes"], strict=True):
            labels = np.frombuffer(zlib.decompress(base64.b64decode(packed)), dtype=np.uint8).reshape(shape)
            assert np.array_equal(labels, Image.open(reported / layer / "labels" / f"{record.name}.png"))


def test_shares_overlaps_and_colours_are_those_of_the_labels(reported: Path) -> None:
    data, (store, models) = Page(reported / "report.html").data(), parts(reported)
    labels = {
        layer: [np.array(Image.open(reported / layer / "labels" / f"{image.name}.png")) for image in store.images]
        for layer in LAYERS
    }
    for i, (layer, found) in enumerate(zip(LAYERS, data["layers"], strict=True)):
        assert found["name"] == layer
        assert found["shares"] == (models[layer].counts_ / models[layer].counts_.sum()).tolist()
        file = next((reported / layer / "labels").glob("*.png"))
        palette = np.array(Image.open(file).getpalette()).reshape(-1, 3)[: len(found["colours"])]
        assert found["colours"] == [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette]
        for j in {i - 1, i + 1} & {0, 1, 2}:
            for k in np.flatnonzero(models[layer].counts_):
                seen = np.zeros(6)
                for one, other in zip(labels[layer], labels[LAYERS[j]], strict=True):
                    size = max(one.shape, other.shape)
                    seen += np.bincount(enlarge(other, size)[enlarge(one, size) == k], minlength=6)
                ranked = found["related"][str(k)][str(j)]
                assert [k for k, _ in ranked] == np.argsort(-seen, kind="stable")[: len(ranked)].tolist()
                assert np.allclose([part for _, part in ranked], np.sort(seen)[::-1][: len(ranked)] / seen.sum())
        assert set(found["related"]["0"]) == {str(j) for j in {i - 1, i + 1} & {0, 1, 2}}


def test_exemplars_are_the_most_probable_units(reported: Path) -> None:
    store, models = parts(reported)
    fields = receptive_fields(Network("squeezenet1_1", LAYERS), 64, 64)
    found = survey.survey(store, models, lambda h, w: fields, range(5))
    for layer in found.layers:
        model, name = models[layer.record.name], layer.record.name
        rows = [store.image_rows(name, index) for index in range(5)]
        density = [
            (model.score_samples(one.reshape(-1, one.shape[-1]))[:, None] + np.log(proba)).reshape(*one.shape[:2], -1)
            for one in rows
            for proba in [model.predict_proba(one.reshape(-1, one.shape[-1])).clip(1e-30)]
        ]
        labels = [model.predict(one.reshape(-1, one.shape[-1])).reshape(one.shape[:2]) for one in rows]
        assert np.array_equal(layer.counts, np.stack([np.bincount(one.ravel(), minlength=6) for one in labels], axis=1))
        for k, kept in enumerate(layer.exemplars):
            expected = []
            for place in range(5):
                units = np.argwhere(labels[place] == k)
                units = units[np.argsort(-density[place][*units.T, k], kind="stable")]
                chosen: list[Any] = []
                for row, column in units:
                    box = fields[name].box(row, column)
                    apart = [
                        box[0] >= o[2] or o[0] >= box[2] or box[1] >= o[3] or o[1] >= box[3]
                        for o in (fields[name].box(*unit) for unit in chosen)
                    ]
                    if all(apart) and len(chosen) < 2:
                        chosen.append((row, column))
                expected += [density[place][*unit, k] for unit in chosen]
            got = [one.log_density for one in kept]
            assert got == sorted(got, reverse=True)
            assert np.allclose(got, sorted(expected, reverse=True)[:6], rtol=1e-5)
            assert all(labels[one.place][one.row, one.column] == k for one in kept)
            places = [one.place for one in kept]
            assert max(map(places.count, places), default=0) <= 2


def test_rows_are_read_in_blocks_and_let_go(reported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, models = parts(reported)
    fields = receptive_fields(Network("squeezenet1_1", LAYERS), 64, 64)
    whole = survey.survey(store, models, lambda h, w: fields, [1])
    released: list[int] = []
    monkeypatch.setattr(survey, "BLOCK", 100)
    monkeypatch.setattr(survey, "let_go", lambda rows, low, high: released.append(high - low))
    found = survey.survey(store, models, lambda h, w: fields, [1])
    assert max(released) == 100
    assert sum(released) == sum(store.layer(name).n_rows for name in LAYERS)
    for one, other in zip(whole.layers, found.layers, strict=True):
        assert np.array_equal(one.counts, other.counts)
        assert [[(e.place, e.row, e.column) for e in kept] for kept in one.exemplars] == [
            [(e.place, e.row, e.column) for e in kept] for kept in other.exemplars
        ]


def test_more_clusters_than_a_byte_tells_apart() -> None:
    labels = np.array([[0, 1], [299, 256]])
    stored = zlib.decompress(base64.b64decode(embed.packed(labels, 300)))
    assert np.array_equal(np.frombuffer(stored, dtype="<u2").reshape(2, 2), labels)
    with pytest.raises(ValueError, match="at most 65536"):
        embed.packed(labels, 2**16 + 1)


def test_patches_are_what_the_units_see(reported: Path) -> None:
    store, models = parts(reported)
    fields = receptive_fields(Network("squeezenet1_1", LAYERS), 64, 64)
    found = survey.survey(store, models, lambda h, w: fields, range(5))
    inputs, patches, unreadable = embed.pictures(store, found.layers, lambda h, w: fields, [0, 2], 2, 32)
    assert (set(inputs), unreadable) == ({0, 2}, [])
    assert decoded(inputs[0]).size == (32, 32)
    first = found.layers[0]
    for kept in first.exemplars:
        for one in kept[:2]:
            top, left, bottom, right = fields["1"].box(one.row, one.column)
            assert (bottom - top, right - left) == (3, 3)
            pixels = input_image(store.images[one.place], store.provenance)[top:bottom, left:right]
            assert np.array_equal(decoded(patches["1", one]), pixels), "small patches are exact"
    assert len(patches) == sum(len(kept[:2]) for layer in found.layers for kept in layer.exemplars)


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("covariance_type", ["spherical", "diag", "tied", "full"])
def test_marks_and_neighbours(covariance_type: str) -> None:
    rows = blobs(300, 4, 5)
    rows[:, 2] = 7  # a dead channel
    model = DPGMM(n_components=5, tol=1e-2, random_state=0, covariance_type=covariance_type, feature_range=(0, 10)).fit(
        rows
    )
    table = deviations(model)
    model.set_params(random_state=1)
    drawn, _ = model.sample(50_000)
    means = model.means_ / model.feature_scale_ + model.feature_offset_
    expected = (means - drawn.mean(axis=0)) / drawn.std(axis=0)
    assert np.allclose(table[:, [0, 1, 3]], expected[:, [0, 1, 3]], atol=0.05)
    assert np.abs(table[:, 2]).max() < 1e-6
    for k in range(5):
        ranked = marks(table, k, most=2)
        assert [d for d, _ in ranked] == np.argsort(-np.abs(table[k]))[:2].tolist()
        assert [value for _, value in ranked] == [table[k, d] for d, _ in ranked]
        others = [j for j in (0, 2, 3, 4) if j != k]
        distance = {j: float(np.sqrt(((table[j] - table[k]) ** 2).mean())) for j in others}
        expected_near = sorted(distance, key=lambda j: distance[j])[:3]
        assert nearest(table, k, np.array([0, 2, 3, 4])) == [(j, distance[j]) for j in expected_near]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 90, 5], [(1, 0.9)]),
        ([30, 0, 40, 30], [(2, 0.4), (0, 0.3)]),
        ([10] * 10, [(0, 0.1), (1, 0.1), (2, 0.1)]),
        ([0, 4], [(1, 1.0)]),
        ([0, 0], []),
    ],
)
def test_what_overlaps_until_half_is_covered(counts: list[int], expected: list[tuple[int, float]]) -> None:
    assert overlapping(np.array(counts)) == expected


def test_charts() -> None:
    assert panels.bars(np.array([0.0, 1.0, 0.5])) == "M33.33 40v-40.00h26.67v40.00zM66.67 40v-20.00h26.67v20.00z"
    assert panels.bars(np.zeros(3)) == ""
    curve = panels.history([0.0, *range(10, 50)])
    assert (curve["low"], curve["high"], curve["below"]) == (11.0, 49.0, 2)
    assert curve["path"].endswith("L100.00 0.00")
    assert panels.history([2.0])["path"] == "M0.00 40.00"
    assert panels.history([])["path"] == ""


def test_no_name_becomes_code(reported: Path) -> None:
    read = Page(reported / "report.html")
    scripts = [attributes for tag, attributes in read.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    sources = [attributes[name] for _, attributes in read.tags for name in ("src", "href") if name in attributes]
    assert all(source and source.startswith(("data:", "#")) for source in sources)
    names = {image["name"] for image in read.data()["images"]}
    assert {f"{folder}</script><script>window.hacked=1<!--.png" for folder in "ab"} <= names
    assert "\"'><img src=x onerror=window.hacked=1>{{7*7}}.png" in names
    if sys.platform == "linux":
        assert "\\udcff\\u202e.png" in names
    assert names <= {text for _, text in read.texts}
    policy = next(a["content"] for t, a in read.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_fewer_images_where_the_file_would_be_too_large(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, models = parts(reported)
    whole = (reported / "report.html").stat().st_size
    assert whole < page.BUDGET
    monkeypatch.setattr(page, "BUDGET", whole - 1)
    assert page.write_report(store, models, tmp_path / "half.html")["images"] == 2
    assert (tmp_path / "half.html").stat().st_size < whole
    text = (tmp_path / "half.html").read_text(encoding="utf-8")
    assert "2 of 5 images are shown, evenly spread; all numbers are of all 5." in text
    assert "At most 3 exemplars of a cluster are shown" in text
    data, all_data = (Page(path).data() for path in (tmp_path / "half.html", reported / "report.html"))
    assert data["layers"] == all_data["layers"]
    assert data["images"] == [all_data["images"][place] for place in (0, 4)]


def test_many_and_large_images_are_sampled_and_reduced(
    reported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, models = parts(reported)
    monkeypatch.setattr(page, "IMAGES", 3)
    monkeypatch.setattr(page, "SIDE", 20)
    assert page.write_report(store, models, tmp_path / "few.html")["images"] == 3
    read = Page(tmp_path / "few.html")
    text = (tmp_path / "few.html").read_text(encoding="utf-8")
    for words in (
        "3 of 5 images",
        "Inputs of more than 20 pixels a side",
        "Label images of more than 20 pixels a side",
    ):
        assert words in text
    assert [image["shapes"] for image in read.data()["images"]] == [[[20, 20], [15, 15], [3, 3]]] * 3
    inputs = {attributes["src"] for tag, attributes in read.tags if tag == "img" and "src" in attributes}
    assert {decoded(str(uri)).size for uri in inputs} >= {(20, 20), (3, 3)}


def test_twenty_images_and_five_layers_are_below_ten_megabytes() -> None:
    """What is embedded: of photographs all of it, of noise in 50 clusters half as many images and exemplars."""
    random = np.random.default_rng(0)

    def embedded(pixels: np.ndarray, labels: np.ndarray, images: int, patches: int) -> int:
        patch = len(embed._uri(embed._at_most(pixels[:100, :100], embed.PATCH)))
        an_image = 5 * len(embed.packed(labels, 50)) + len(embed._uri(embed._at_most(pixels, page.SIDE)))
        return images * an_image + 5 * 50 * patches * patch

    smooth = np.kron(random.integers(50, size=(75, 75), dtype=np.uint8), np.ones((3, 3), dtype=np.uint8))
    assert embedded(photograph(224, 224), smooth, page.IMAGES, page.EXEMPLARS) < 0.8 * page.BUDGET
    noise = random.integers(256, size=(224, 224, 3), dtype=np.uint8)
    assert embedded(noise, noise[..., 0] % 50, page.IMAGES // 2, page.EXEMPLARS // 2) < 0.8 * page.BUDGET


def test_an_input_that_is_gone_is_grey_and_named(reported: Path, tmp_path: Path) -> None:
    store, models = parts(reported)
    path = Path(store.images[4].path)
    moved = path.rename(tmp_path / "moved.png")
    try:
        page.write_report(store, models, tmp_path / "report.html")
    finally:
        moved.rename(path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 input cannot be read any more, and shown grey: b&lt;/script&gt;" in text
    grey = [a["src"] for t, a in Page(tmp_path / "report.html").tags if t == "img" and a.get("src")]
    assert any(np.ptp(np.array(decoded(uri))) <= 2 and decoded(uri).size == (64, 64) for uri in grey)


def test_dense_layers_and_images_of_several_sizes(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "images", 3)
    Image.open(folder / "1.png").resize((120, 80)).save(folder / "1.png")
    options = ("--model", "resnet18", "--weights", "random", "--size", "full", "--components", "2", "--max-iter", "3")
    layers = ("--layer", "1", "--layer", "fc")
    result = call("run", folder, *options, *layers, "--out", tmp_path / "out", "--report")
    assert result.status == 0, result.err
    read = Page(tmp_path / "out" / "report.html")
    maps = [[35, 45], [40, 60], [35, 45]]
    assert [image["shapes"] for image in read.data()["images"]] == [[shape, [1, 1]] for shape in maps]
    text = re.sub(r"\s+", " ", " ".join(text for _, text in read.texts))
    assert "3 images of 1000 channels" in text
    assert "sees 70 \N{MULTIPLICATION SIGN} 90 pixels" in text


def test_what_is_no_run_is_refused(reported: Path, tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "expected the folder of a `fastclust run`"), (tmp_path / "no", "no features.h5")):
        result = call("report", folder)
        assert (result.status, result.out) == (1, "")
        assert words in result.err
    model = reported / "features.4" / "model.h5"
    moved = model.rename(tmp_path / "model.h5")
    result = call("report", reported)
    moved.rename(model)
    assert result.status == 1
    assert "features.4/model.h5 is not there: the run has not ended; `fastclust run --resume`, or `atlas" in result.err
    assert call("report", reported, "--device", "gpu").status == 1


def test_a_report_goes_when_its_run_is_replaced(tmp_path: Path) -> None:
    command = (
        "run",
        photographs(tmp_path / "images", 1),
        *NETWORK,
        "--layer",
        "1",
        *MIXTURE,
        "--out",
        tmp_path / "out",
    )
    assert call(*command, "--report").status == 0
    assert "1 image shown" in call("report", tmp_path / "out").out
    assert call(*command, "--overwrite").status == 0
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_run_without_a_store_reports_the_same(tmp_path: Path) -> None:
    command = ("run", photographs(tmp_path / "images", 3), *NETWORK, *MIXTURE, "--layer", "1", "--layer", "features.4")
    assert call(*command, "--out", tmp_path / "stored", "--report").status == 0
    assert call(*command, "--out", tmp_path / "live", "--report", "--no-store").status == 0
    reports = [(tmp_path / name / "report.html").read_bytes() for name in ("stored", "live")]
    assert reports[0] == reports[1]
    refused = call("report", tmp_path / "live")
    assert refused.status == 1
    assert "with --no-store, ask for the report in the run" in refused.err


def test_every_template_is_in_the_package() -> None:
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["fastclust.views"]
    files = [
        path.relative_to(ROOT / "fastclust" / "views").as_posix()
        for path in (ROOT / "fastclust" / "views" / "templates").iterdir()
    ]
    assert {"templates/report.html", "templates/report.css", "templates/report.js"} <= set(files)
    assert all(any(fnmatch(file, pattern) for pattern in data) for file in files)
