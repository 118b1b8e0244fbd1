"""`fastclust images` and `figure4`: what they write and say, what they refuse, and their pictures."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import NETWORK, call, contents, photographs
from matplotlib.axes import Axes
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from test_glas import warwick
from test_images import photograph

from fastclust import load
from fastclust.store import open_store
from fastclust.views import contact, figure4
from fastclust.views.plots import plot_composition
from fastclust.views.points import image_points

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS = ("--layer", "features.3.cat", "--layer", "flatten")
FEW = ("--components", "4", "--max-iter", "30")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store (x.h5) of twelve images in folders a and b, and of its dense layer alone (flat.h5)."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(12):
        (folder / "images" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        pixels = photograph(70, 90, number) // (1 + number % 2)
        Image.fromarray(pixels).save(folder / "images" / "ab"[number % 2] / f"{number}.png")
    assert call("extract", folder / "images", *NETWORK, *LAYERS, "--out", folder / "x.h5").status == 0
    assert call("extract", folder / "images", *NETWORK, "--layer", "flatten", "--out", folder / "flat.h5").status == 0
    (folder / "text.csv").write_text("path,label\n")
    (folder / "twice.csv").write_text("path,label\n1.png,one\n1.png,two\n")
    (folder / "empty").mkdir()
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("pool", ["mean", "max", None])
def test_tables_pictures_and_words_say_the_same(made: Path, tmp_path: Path, pool: str | None) -> None:
    layer = ("--layer", "features.3.cat", "--pool", pool) if pool else ("--layer", "flatten")
    out = tmp_path / "out"
    found = call("images", made / "x.h5", *layer, *FEW, "--out", out, "--plot", out / "p.svg")
    assert (found.status, found.err) == (0, "")
    rows, table = read(out / "clusters.csv"), read(out / "composition.csv")
    about = json.loads((out / "composition.json").read_text())
    assert [Path(row["path"]).name for row in rows] == [f"{n}.png" for n in (0, 10, 2, 4, 6, 8, 1, 11, 3, 5, 7, 9)]
    assert [row["label"] for row in rows] == ["a"] * 6 + ["b"] * 6

    store, seen = open_store(made / "x.h5"), np.load(out / "projection.npz")
    points = np.asarray(image_points(store, layer[1], pool), dtype=np.float64)
    points = ((points - seen["mean"]) @ seen["components"].T).astype(np.float32)
    model = load(out / "model.h5")
    assert [int(row["cluster"]) for row in rows] == model.predict(points).tolist()
    assert [float(row["log_density"]) for row in rows] == pytest.approx(model.score_samples(points), rel=1e-4)

    clusters = [row["cluster"] for row in rows]
    assert about["label"]["adjusted_rand"] == pytest.approx(
        adjusted_rand_score([row["label"] for row in rows], clusters)
    )
    assert about["pool"] == pool
    assert about["group"] is None
    assert [cluster["images"] for cluster in about["clusters"]] == [int(row["images"]) for row in table]
    for row, cluster in zip(table, about["clusters"], strict=True):
        members = [one["label"] for one in rows if one["cluster"] == row["cluster"]]
        assert (int(row["label=a"]), int(row["label=b"])) == (members.count("a"), members.count("b"))
        assert cluster["label"]["counts"] == {name: members.count(name) for name in sorted(set(members))}
        assert float(row["label purity"]) == pytest.approx(max(members.count("a"), members.count("b")) / len(members))
        assert (out / f"cluster-{int(row['cluster']):02}.png").is_file()
        assert f"cluster {row['cluster']:>4} {len(members):>6} images  label " in found.out
    assert sum(path.name.startswith("cluster-") for path in out.iterdir()) == len(table)
    assert f"adjusted Rand index {about['label']['adjusted_rand']:.3f} (p {about['label']['p_rand']:.4f})" in found.out
    assert "9999 permutations" in found.out
    assert "group: the same of all images" in found.out
    assert "random weights (seed 0): these are not learned features" in found.out
    assert (out / "p.svg").read_text().count("</svg>") == 1
    with Image.open(out / "contact.png") as page:
        assert page.width > 1000


def test_the_folder_of_a_run_is_a_store_and_results_are_replaced_only_when_told(made: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    run.mkdir()
    shutil.copy(made / "flat.h5", run / "features.h5")
    assert call("images", run, *FEW, "--out", out).status == 0
    before = contents(out)
    (out / "mine.txt").write_text("mine")
    (out / "cluster-99.png").write_text("of a fit before")
    refused = call("images", run, *FEW, "--out", out)
    assert refused.status == 1
    assert "composition.json exists: --overwrite replaces it; or name another folder" in refused.err
    assert call("images", run, *FEW, "--out", out, "--overwrite").status == 0
    after = contents(out)
    assert after.pop("mine.txt") == b"mine"
    assert after.keys() == before.keys()
    assert after["clusters.csv"] == before["clusters.csv"]


def test_grades_and_patients_of_the_warwick_images(tmp_path: Path) -> None:
    folder, out = warwick(tmp_path / "Warwick"), tmp_path / "out"
    table = folder / "Grade.csv"
    plain = ("extract", folder, *NETWORK, "--layer", "flatten", "--labels", table, "--out", tmp_path / "x.h5")
    assert call(*plain).status == 0
    found = call("images", tmp_path / "x.h5", "--components", "2", "--labels", table, "--out", out)
    assert (found.status, found.err) == (0, "")
    about = json.loads((out / "composition.json").read_text())
    assert about["label"]["values"] == ["benign", "malignant"]
    assert about["group"]["values"] == ["2", "5", "13"]
    assert about["label"]["permuting_whole_groups"]["p_rand"] > 0.1
    assert "label, permuted over whole groups: p " in found.out
    with_store = call("images", tmp_path / "x.h5", "--components", "2", "--out", tmp_path / "other")
    assert with_store.out.replace("other", "out") == found.out, "labels in the store, or of the table again"


def test_labels_of_a_table_stand_in_for_those_of_the_store(made: Path, tmp_path: Path) -> None:
    odd = ["$x$", "_hidden", "", "=1+1", 'a,"b"', "two\nlines", "ä" * 80, "日本", "\\", "%s", "\x1b[31m", "-"]
    with (tmp_path / "l.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "group"])
        table.writerows([[f"{number}.png", label, number // 4] for number, label in enumerate(odd)])
    out = tmp_path / "out"
    words = ("--labels", tmp_path / "l.csv", "--out", out, "--plot", tmp_path / "p.png", "--layer", "flatten")
    found = call("images", made / "x.h5", *words, *FEW)
    assert (found.status, found.err) == (0, ""), "no word of glyphs that a font misses"
    rows = read(out / "clusters.csv")
    assert {row["label"] for row in rows} == set(odd)
    assert {(Path(row["path"]).name, row["label"]) for row in rows} >= {("3.png", "=1+1"), ("2.png", "")}
    assert json.loads((out / "composition.json").read_text())["group"]["values"] == ["0", "1", "2"]
    assert "\x1b" not in found.out


def test_images_that_are_gone_are_shown_grey_and_named(made: Path, tmp_path: Path) -> None:
    photographs(tmp_path / "images", 5)
    store = tmp_path / "x.h5"
    assert call("extract", tmp_path / "images", *NETWORK, "--layer", "flatten", "--out", store).status == 0
    (tmp_path / "images" / "3.png").unlink()
    (tmp_path / "images" / "1.png").write_text("no image")
    found = call("images", store, "--components", "2", "--out", tmp_path / "out")
    assert found.status == 0
    assert "2 images cannot be read any more, and are shown grey" in found.err
    assert "3.png" in found.err
    assert "label: the same of all images: nothing to compare with (--labels)" in found.out


@pytest.mark.parametrize("count", [1, 2])
def test_one_image_is_refused_and_two_are_clustered(tmp_path: Path, count: int) -> None:
    photographs(tmp_path / "images", count)
    assert call("extract", tmp_path / "images", *NETWORK, *LAYERS, "--out", tmp_path / "x.h5").status == 0
    words = ("--layer", "features.3.cat", "--pool", "max", "--out", tmp_path / "out", "--plot", tmp_path / "p.pdf")
    found = call("images", tmp_path / "x.h5", *words)
    if count == 1:
        assert found.status == 1
        assert "has features of one image: clusters of images need two or more" in found.err
        assert not (tmp_path / "out").exists()
        return
    assert (found.status, found.err) == (0, "")
    assert "1 principal components with 100% of the variance, 2 images" in found.out
    assert sum(int(row["images"]) for row in read(tmp_path / "out" / "composition.csv")) == 2


def test_one_image_a_cluster_is_told_as_it_is(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastclust.views import points

    monkeypatch.setattr(
        points,
        "assign",
        lambda model, rows: (np.arange(len(rows)), np.zeros(len(rows)), np.zeros(len(rows))),
    )
    found = call("images", made / "flat.h5", "--out", tmp_path / "out")
    assert found.status == 0
    assert "label: purity 1.000, entropy 0.000 nats, adjusted Rand index 0.000 (p 1.0000)" in found.out
    assert "average: none" in found.out


BAD = {
    "no store": ("{}/nowhere.h5 --out $out", "{}/nowhere.h5 does not exist: expected a feature store"),
    "a folder without a store": ("{}/empty --out $out", "{}/empty has no features.h5: expected a store"),
    "an image": ("{}/images/a/0.png --out $out", "is not an HDF5 file: expected a feature store"),
    "no layer named": ("{}/x.h5 --out $out", "choose one with --layer, of features.3.cat, flatten"),
    "another layer": ("{}/x.h5 --layer flaten --out $out", "did you mean flatten or"),
    "no pool": ("{}/x.h5 --layer features.3.cat --out $out", "say with --pool mean or --pool max"),
    "pool of a dense layer": ("{}/flat.h5 --pool max --out $out", "leave it out"),
    "too many clusters": ("{}/flat.h5 --components 13 --out $out", "use fewer components (--components 12)"),
    "too many components": ("{}/flat.h5 --pca 13 --out $out", "--pca can be at most 11; 0 is for"),
    "no table": ("{}/flat.h5 --labels {}/none.csv --out $out", "{}/none.csv does not exist: expected a CSV file"),
    "a folder for a table": ("{}/flat.h5 --labels {}/empty --out $out", "{}/empty is a folder: expected a CSV file"),
    "a row missing": ("{}/flat.h5 --labels {}/text.csv --out $out", "no row for 12 of 12 images"),
    "a row twice": ("{}/flat.h5 --labels {}/twice.csv --out $out", "line 3: 1.png has two different labels"),
    "a file for a folder": ("{}/flat.h5 --out {}/text.csv", "is a file, and a folder is wanted there"),
    "a plot of no kind": ("{}/flat.h5 --out $out --plot x.jpg", "expected a plot's file to end in .png, .svg, .pdf"),
    "a plot nowhere": ("{}/flat.h5 --out $out --plot {}/none/x.png", "{}/none is not a folder: create it first"),
    "no device": ("{}/flat.h5 --out $out --device abacus", "device 'abacus' cannot be used here"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_one_line_and_writes_nothing(made: Path, tmp_path: Path, name: str) -> None:
    before = contents(made)
    words, message = (text.replace("{}", str(made)) for text in BAD[name])
    found = call("images", *(word.replace("$out", str(tmp_path / "out")) for word in words.split()))
    assert found.status == 1
    assert message in found.err
    assert found.err.startswith("fastclust: ")
    assert found.err.count("\n") == 1
    assert found.out == ""
    assert contents(made) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["--pool median", "--components 0", "--pca -1", "--alpha 0"])
def test_bad_words_are_refused(made: Path, tmp_path: Path, words: str) -> None:
    found = call("images", made / "flat.h5", "--out", tmp_path / "out", *words.split())
    assert found.status == 2
    assert words.split()[0] in found.err


def test_stopping_says_what_is_left(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(contact, "thumbnails", stop)
    found = call("images", made / "flat.h5", "--out", tmp_path / "out")
    assert found.status == 130
    assert "stopped; its results are not all there: the same command, with --overwrite where some" in found.err
    assert not (tmp_path / "out").exists(), "nothing was written yet"


@pytest.fixture
def few_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figure4, "ACROSS", 2)
    monkeypatch.setattr(
        figure4, "PHOTOGRAPHS", {"space": ("skimage.data/moon.png",), "texture": ("skimage.data/brick.png",)}
    )
    monkeypatch.delenv("FASTCLUST_DATA", raising=False)


def test_figure4_is_drawn_from_sample_photographs(few_crops: None, tmp_path: Path) -> None:
    out = tmp_path / "fig"
    found = call("figure4", out, "--weights", "random")
    assert (found.status, found.err) == (0, "")
    assert len(list((out / "crops").glob("*.png"))) == 8
    for layer in figure4.LAYERS:
        about = json.loads((out / layer / "composition.json").read_text())
        assert (about["label"]["values"], about["group"]["values"]) == (["space", "texture"], ["brick", "moon"])
        assert (out / layer / "composition.png").is_file()
    again = call("figure4", out, "--weights", "random")
    assert again.status == 1
    assert "features.h5 exists: --overwrite replaces it" in again.err
    with Image.open(out / "crops" / "moon-1-0.png") as crop, Image.open(_of_skimage("moon.png")) as whole:
        assert (np.asarray(crop) == np.asarray(whole.convert("RGB"))[256:, :256]).all()


def _of_skimage(name: str) -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data" / name


def test_figure4_says_when_weights_are_random_and_what_is_missing(
    few_crops: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figure4, "choose_weights", lambda model: ("random", "no network"))
    found = call("figure4", tmp_path / "fig")
    assert found.status == 0
    assert "no network" in found.err
    assert "going on with RANDOM weights (seed 0)" in found.err
    (tmp_path / "file").touch()
    refused = call("figure4", tmp_path / "file")
    assert (refused.status, "is a file, and a folder is wanted" in refused.err) == (1, True)
    monkeypatch.setenv("FASTCLUST_DATA", str(tmp_path / "data"))
    refused = call("figure4", tmp_path / "other")
    assert refused.status == 1
    assert "cifar10 does not exist: unset FASTCLUST_DATA to draw sample photographs" in refused.err
    assert not (tmp_path / "other").exists()
    monkeypatch.delenv("FASTCLUST_DATA")
    monkeypatch.setattr(figure4, "PHOTOGRAPHS", {"x": ("skimage.data/none.png",)})
    refused = call("figure4", tmp_path / "another")
    assert (refused.status, "came without none.png" in refused.err) == (1, True)


def test_a_plot_divides_each_bar_by_its_labels() -> None:
    counts = np.array([[0, 0, 0], [3, 1, 0], [0, 2, 6]])
    ax = plot_composition(counts, ["a", "_b", "$c$"])
    assert isinstance(ax, Axes)
    heights = np.array([[bar.get_height() for bar in part] for part in ax.containers])
    assert heights == pytest.approx(np.array([[0, 0.75], [0.25, 0.25], [0.75, 0]]))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["2", "1"], "the largest first, without empty ones"
    assert [text.get_text() for text in ax.texts] == ["8", "4"]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == ["$c$", "_b", "a"]


def test_a_plot_of_many_clusters_and_labels_has_others() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (50, 27))
    ax = plot_composition(counts, [f"label {i}" for i in range(27)], clusters=range(100, 150))
    assert len(ax.containers) == 21
    kept = np.sort(np.argsort(-counts.sum(axis=0), kind="stable")[:20])
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    other = np.setdiff1d(np.arange(27), kept)
    heights = [bar.get_height() for bar in ax.containers[-1]]
    assert heights == pytest.approx(counts[order][:, other].sum(axis=1) / counts[order].sum(axis=1))
    assert ax.get_xticklabels()[0].get_text() == str(100 + order[0])
    styles = {(bars[0].get_facecolor(), bars[0].get_hatch()) for bars in ax.containers}
    assert len(styles) == 21, "each can be told from all others"
    width, height = ax.figure.get_size_inches()
    assert width > 2 * height


@pytest.mark.parametrize("counts", [[[0, 0]], [[1, 2, 3]], [1, 2]])
def test_a_plot_of_nothing_is_refused(counts: list[object]) -> None:
    with pytest.raises(ValueError, match="expected counts"):
        plot_composition(np.array(counts), ["a", "b"])


def test_a_sheet_shows_a_part_and_says_so() -> None:
    images: dict[int, contact.Thumbnail] = {place: Image.new("RGB", (112, 60), "red") for place in range(60)}
    images[3] = None
    places = list(range(60))
    some = contact.sheet(contact.Section("cluster 1", ["5 images"], places[:5], ["a"] * 5), images)
    full = contact.sheet(contact.Section("cluster 1", ["60 images"], places, ["a"] * 60, "outlier cluster"), images)
    assert full.height > 4 * some.height / 2
    pixels = np.asarray(full)
    red = (pixels == (255, 0, 0)).all(axis=2)
    assert red.sum() == 47 * 112 * 60, "48 at most, one of which is grey"
    grey = (np.asarray(some) == (217, 217, 217)).all(axis=2)
    assert 0.5 * 112**2 < grey.sum() <= 112**2
    sections = [contact.Section(f"cluster {k}", [], [k % 60], ["a"]) for k in range(130)]
    page = contact.overview("all", sections, images)
    assert page.height < 130 * 130


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    if os.name != "posix" or os.uname().sysname != "Linux":
        pytest.skip("file names of any bytes are a Unix matter")
    for folder in (b"\xff\xfe", b"b"):
        path = Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/" + folder))
        photographs(path, 3)
    store, out = tmp_path / "x.h5", tmp_path / "out"
    assert call("extract", tmp_path / "images", *NETWORK, "--layer", "flatten", "--out", store).status == 0
    found = call("images", store, "--components", "2", "--out", out, "--plot", out / "p.png")
    assert (found.status, found.err) == (0, "")
    assert {row["label"] for row in read(out / "clusters.csv")} == {"b", os.fsdecode(b"\xff\xfe")}
