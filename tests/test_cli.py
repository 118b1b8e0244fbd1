"""The command line under bad input: one clear line, a status that is not 0, and nothing there is harmed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from command_line import MIXTURE, NETWORK, SMALL, call, contents, photographs
from PIL import Image
from read_only import immutable
from sealing import reseal
from test_images import photograph
from torchvision import models

from fastclust.store import open_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs, a run of two layers (out), weights and files that are wrong in some way."""
    folder = tmp_path_factory.mktemp("made")
    photographs(folder / "images")
    assert call("run", folder / "images", *SMALL, "--layer", "classifier.1", "--out", folder / "out").status == 0
    store, model = folder / "out" / "features.h5", folder / "out" / "1" / "model.h5"
    assert call("extract", folder / "images", *NETWORK, "--layer", "1", "--out", folder / "one.h5").status == 0

    photographs(folder / "more", 1)
    more = ("--layer", "1", "--out", folder / "one-more.h5")
    assert call("extract", folder / "more", *NETWORK, *more).status == 0

    before = ("--layer", "features.0", "--out", folder / "before.h5")  # before the activation: as many features
    assert call("extract", folder / "images", *NETWORK, *before).status == 0
    seeded = ("--layer", "1", "--seed", "7", "--out", folder / "seeded.h5")
    assert call("extract", folder / "images", *NETWORK, *seeded).status == 0

    (folder / "empty").mkdir()
    (folder / "text.h5").write_text("this is text")
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["x"] = [1]
    for source, name in ((store, "store"), (model, "model")):
        (folder / f"{name}-cut.h5").write_bytes(source.read_bytes()[: source.stat().st_size // 2])
        shutil.copy(source, folder / f"{name}-newer.h5")
        reseal(folder / f"{name}-newer.h5", version=99)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        shutil.copy(store, folder / f"{name}.h5")
        with h5py.File(folder / f"{name}.h5", "r+") as file:
            file["layers/1/rows"][100, 3] = value
    shutil.copy(store, folder / "pending.h5")
    with h5py.File(folder / "pending.h5", "r+") as file:
        file["images/state"][:] = 0

    state = models.squeezenet1_1(weights=None).state_dict()
    torch.save({**state, "features.0.bias": state["features.0.bias"] * np.nan}, folder / "nan.pth")
    torch.save({**state, "features.0.weight": state["features.0.weight"] * 1e7}, folder / "large.pth")
    torch.save({name: value for name, value in state.items() if "0.bias" not in name}, folder / "missing.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, folder / "other.pth")
    return folder


BAD: dict[str, tuple[str, str]] = {
    # name: (command, words of the message); {} is the folder made above, $out a folder or file that is not there
    "no folder": ("run {}/nowhere SMALL --out $out", "{}/nowhere does not exist: expected an image or a folder"),
    "no image": ("run {}/empty SMALL --out $out", "no image in {}/empty: expected files that end in"),
    "layer": ("run {}/images NETWORK --layer featurs.2 --out $out", "did you mean features.2"),
    "layer number": (
        "run {}/images NETWORK --layer 99 --out $out",
        "squeezenet1_1 has no layer '99': it has 26",
    ),
    "layer twice": ("run {}/images NETWORK --layer 1 --layer 1 --out $out", "ask for it once"),
    "layer of two names": ("run {}/images NETWORK --layer 1 --layer features.1 --out $out", "are one: features.1"),
    "layer outside": ("run {}/images NETWORK --layer ../x --out $out", "has no layer '../x'"),
    "layer elsewhere": ("run {}/images NETWORK --layer {} --out $out", "has no layer '{}'"),
    "model": ("run {}/images SMALL --model vgg61 --out $out", "no classification model 'vgg61': did you mean vgg"),
    "layers of no model": ("layers resnet", "did you mean resnet"),
    "weights misspelt": (
        "run {}/images SMALL --weights pretained --out $out",
        "weights are 'pretrained', 'random', or a .pth or .safetensors file; no file 'pretained'",
    ),
    "no weights": ("run {}/images SMALL --weights {}/no.pth --out $out", "{}/no.pth"),
    "weights of text": ("run {}/images SMALL --weights {}/text.h5 --out $out", "not a file of plain weights"),
    "weights with NaN": (
        "run {}/images SMALL --weights {}/nan.pth --out $out",
        "features.0.bias holds NaN",
    ),
    "weights of another model": ("run {}/images SMALL --weights {}/other.pth --out $out", "weights of another model"),
    "weights with gaps": ("run {}/images SMALL --weights {}/missing.pth --out $out", "misses 1 of the 2"),
    "beyond float16": ("run {}/images SMALL --weights {}/large.pth --out $out", "extract anew with --dtype float32"),
    "run exists": ("run {}/images SMALL --out {}/out", "--resume goes on with them, --overwrite replaces them"),
    "both": ("run {}/images SMALL --out {}/out --resume --overwrite", "give one of them"),
    "run into a file": ("run {}/images SMALL --out {}/text.h5", "{}/text.h5 is a file, and a folder is wanted"),
    "run below a file": ("run {}/images SMALL --out {}/text.h5/x", "{}/text.h5/x: Not a directory"),
    "other images": ("run {}/images/0.png SMALL --out {}/out --resume", "cannot be resumed"),
    "input in the output": ("run {}/out SMALL --out {}/out --overwrite", "all images lie in {}/out"),
    "few rows": ("run {}/images NETWORK --layer classifier.1 --components 200 --out $out", "36 rows (pixels) and the"),
    "few rows, replacing": (
        "run {}/images SMALL --components 9999 --out {}/out --overwrite",
        "1 has 3844 rows (pixels)",
    ),
    "few rows, resuming": (
        "run {}/images SMALL --layer classifier.1 --components 99 --out {}/out --resume",
        "classifier.1 has 36 rows",
    ),
    "few images": (
        "run {}/images --model resnet18 --weights random --size 32 --layer fc --components 5 --out $out",
        "fc has 4 rows (images) and the mixture 5 components: use fewer components (--components) or more images",
    ),
    "run on no backend": ("run {}/images SMALL --backend abacus --out $out", "backend"),
    "run on no device": ("run {}/images SMALL --device abacus --out $out", "device 'abacus' cannot be used here"),
    "labels": ("run {}/images SMALL --labels {}/no.csv --out $out", "columns path, label"),
    "extract exists": ("extract {}/images NETWORK --layer 1 --out {}/one.h5", "--resume continues it, --overwrite"),
    "extract to a folder": ("extract {}/images NETWORK --layer 1 --out {}/empty", "is a folder: name a file in it"),
    "extract to no folder": ("extract {}/images NETWORK --layer 1 --out $out/f.h5", "create it first"),
    "extract onto an input": (
        "extract {}/images NETWORK --layer 1 --out {}/images/0.png --overwrite",
        "{}/images/0.png is a file that fastclust did not write",
    ),
    "extract onto a model": (
        "extract {}/images NETWORK --layer 1 --out {}/out/1/model.h5 --overwrite",
        "fastclust.model",
    ),
    "resume other": ("extract {}/images NETWORK --layer 2 --out {}/one.h5 --resume", "its layers is ['1'], now ['2']"),
    "fit nothing": ("fit {}/no.h5 --out $out", "{}/no.h5 does not exist"),
    "fit a folder": ("fit {}/out --out $out", "{}/out is a folder"),
    "fit text": ("fit {}/text.h5 --out $out", "{}/text.h5 is not an HDF5 file"),
    "fit foreign": ("fit {}/foreign.h5 --out $out", "not one of fastclust's"),
    "fit a model": ("fit {}/out/1/model.h5 --out $out", "is a fastclust.model file"),
    "fit a newer store": ("fit {}/store-newer.h5 --out $out", "has format version 99"),
    "fit half a store": ("fit {}/store-cut.h5 --out $out", "is cut short"),
    "fit which layer": (
        "fit {}/out/features.h5 --out $out",
        "choose one with --layer, of 1, classifier.1",
    ),
    "fit no such layer": ("fit {}/one.h5 --layer clasifier.1 --out $out", "has no layer 'clasifier.1'"),
    "fit too few": ("fit {}/one.h5 --components 4000 --out $out", "has 3844 rows (pixels) and the mixture 4000"),
    "fit pending": ("fit {}/pending.h5 --layer 1 --out $out", "none of its 4 images is extracted yet"),
    "fit NaN": ("fit {}/nan.h5 --layer 1 MIXTURE --out $out", "NaN"),
    "fit infinity": ("fit {}/inf.h5 --layer 1 MIXTURE --out $out", "inf"),
    "fit exists": ("fit {}/one.h5 MIXTURE --out {}/out/1/model.h5", "exists: --overwrite replaces it"),
    "fit onto its store": ("fit {}/one.h5 MIXTURE --out {}/one.h5 --overwrite", "is a fastclust.features file"),
    "fit onto text": ("fit {}/one.h5 MIXTURE --out {}/text.h5 --overwrite", "a file that fastclust did not write"),
    "fit to no folder": ("fit {}/one.h5 MIXTURE --out $out/m.h5", "is not a folder: create it first"),
    "fit to a folder": ("fit {}/one.h5 MIXTURE --out {}/empty --overwrite", "is a folder: name a file in it"),
    "fit on no device": ("fit {}/one.h5 MIXTURE --device abacus --out $out", "device 'abacus' cannot be used here"),
    "label no model": ("label {}/one.h5 --model {}/no.h5 --out $out", "{}/no.h5"),
    "label with a store": ("label {}/one.h5 --model {}/one.h5 --out $out", "expected a model"),
    "label with text": ("label {}/one.h5 --model {}/text.h5 --out $out", "{}/text.h5 is not an HDF5 file"),
    "label with half a model": ("label {}/one.h5 --model {}/model-cut.h5 --out $out", "cut short"),
    "label with a newer model": ("label {}/one.h5 --model {}/model-newer.h5 --out $out", "format version 99"),
    "label half a store": ("label {}/store-cut.h5 --model {}/out/1/model.h5 --out $out", "is cut short"),
    "label another layer": (
        "label {}/before.h5 --model {}/out/1/model.h5 --out $out",
        "the model was fitted to 1 (features.1) of squeezenet1_1, and {}/before.h5 has features.0 (features.0)",
    ),
    "label other weights": ("label {}/seeded.h5 --model {}/out/1/model.h5 --out $out", ", of other weights"),
    "label another width": (
        "label {}/out/features.h5 --layer classifier.1 --model {}/out/1/model.h5 --out $out",
        "classifier.1 has 1000 features and the model was fitted to 64",
    ),
    "label NaN": ("label {}/nan.h5 --layer 1 --model {}/out/1/model.h5 --out $out", "has NaN or infinite features"),
    "label pending": ("label {}/pending.h5 --layer 1 --model {}/out/1/model.h5 --out $out", "none of its 4 images"),
    "label exists": (
        "label {}/one.h5 --model {}/out/1/model.h5 --out {}/out/1",
        "{}/out/1/labels exists: --resume goes on",
    ),
    "label into a file": ("label {}/one.h5 --model {}/out/1/model.h5 --out {}/text.h5", "is a file: name a folder"),
    "verify nothing": ("verify {}/no.h5", "{}/no.h5 does not exist"),
    "verify a model": ("verify {}/out/1/model.h5", "is a fastclust.model file"),
    "verify half a store": ("verify {}/store-cut.h5", "`fastclust extract --resume`, with all else as it was, repairs"),
    "merge one": ("merge {}/one.h5 --out $out", "expected at least two stores to merge, got 1"),
    "merge twice": ("merge {}/one.h5 {}/one.h5 --out $out", "{}/images/0.png is in both"),
    "merge other layers": ("merge {}/one.h5 {}/out/features.h5 --out $out", "their layers is ['1'] and ['1', 'class"),
    "merge other weights": ("merge {}/one.h5 {}/seeded.h5 --out $out", "their seed is 0 and 7"),
    "merge a model": ("merge {}/one.h5 {}/out/1/model.h5 --out $out", "is a fastclust.model file"),
    "merge half a store": ("merge {}/one.h5 {}/store-cut.h5 --out $out", "is cut short"),
    "merge exists": ("merge {}/one.h5 {}/one-more.h5 --out {}/before.h5", "{}/before.h5 exists"),
    "merge into its own": ("merge {}/one.h5 {}/one-more.h5 --out {}/one.h5 --overwrite", "is one of the stores to"),
    "merge onto text": ("merge {}/one.h5 {}/one-more.h5 --out {}/text.h5 --overwrite", "that fastclust did not write"),
    "merge to no folder": ("merge {}/one.h5 {}/one-more.h5 --out $out/m.h5", "create it first"),
    "inspect nothing": ("inspect {}/no.h5", "no such file: {}/no.h5"),
    "inspect an empty folder": ("inspect {}/empty", "is a folder without a summary.json"),
    "inspect text": ("inspect {}/text.h5", "not an HDF5 file"),
    "inspect foreign": ("inspect {}/foreign.h5", "not one of fastclust's"),
    "inspect half a model": ("inspect {}/model-cut.h5", "is cut short"),
    "inspect a newer model": ("inspect {}/model-newer.h5", "format version 99"),
}
UNPARSED = {
    "components 0": ("run x --layer 1 --out y --components 0", "--components"),
    "alpha 0": ("run x --layer 1 --out y --alpha 0", "expected a number above 0, got 0"),
    "alpha nan": ("run x --layer 1 --out y --alpha nan", "expected a number above 0, got nan"),
    "size 0": ("run x --layer 1 --out y --size 0", "expected a number of pixels, such as 224, or 'full', got '0'"),
    "size large": ("extract x --layer 1 --out y --size large", "or 'full', got 'large'"),
    "tol": ("fit x --out y --tol -1", "expected 0 or a number above it, got -1"),
    "range": ("fit x --out y --feature-range 10 0", "the second not below the first, got 10 0"),
    "seed": ("fit x --out y --seed 4294967296", "--seed"),
    "covariance": ("fit x --out y --covariance round", "'full', 'tied', 'diag', 'spherical'"),
    "two layers to fit": ("fit x --out y --layer 1 --layer 2", "expected one layer, got 1, 2"),
    "no layer": ("run x --out y", "--layer"),
    "no output": ("run x --layer 1", "--out"),
    "no images": ("run --layer 1 --out y", "images"),
    "a name like options": ("run -rf.png --layer 1 --out y", "-r"),
    "two stores to verify": ("verify x y", "y"),
    "no such command": ("runn", "runn"),
}


def words(command: str, made: Path, out: Path) -> list[str]:
    spread = command.replace("SMALL", " ".join(SMALL)).replace("NETWORK", " ".join(NETWORK))
    spread = spread.replace("MIXTURE", " ".join(MIXTURE))
    return [word.replace("{}", str(made)).replace("$out", str(out)) for word in spread.split()]


@pytest.mark.parametrize(("command", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_harms_nothing(made: Path, tmp_path: Path, command: str, message: str) -> None:
    before = contents(made)
    result = call(*words(command, made, tmp_path / "out"))
    assert (result.status, result.out) == (1, "")
    assert message.replace("{}", str(made)) in result.err
    assert result.err.startswith("fastclust: ")
    assert result.err.count("\n") == 1
    assert contents(made) == before
    left = {path.name for path in tmp_path.rglob("*")}
    assert left == ({"out", "features.h5"} if "float32" in message else set())


@pytest.mark.parametrize(("command", "message"), UNPARSED.values(), ids=UNPARSED)
def test_words_that_cannot_be_parsed(command: str, message: str) -> None:
    result = call(*command.split())
    assert (result.status, result.out) == (2, "")
    assert message in " ".join(result.err.split())
    assert "Traceback" not in result.err


def test_too_little_disk_is_found_before_writing(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    before = contents(made)
    for out, more in ((tmp_path / "a" / "out", []), (made / "out", ["--overwrite"])):
        result = call("run", made / "images", *SMALL, "--out", out, *more)
        assert (result.status, result.err.count("\n")) == (1, 1)
        assert "has 100000 bytes free: free some, or take fewer images or layers" in result.err
    assert contents(made) == before
    assert contents(tmp_path) == {}


def test_a_read_only_folder(made: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    with immutable(locked):
        for command, where in (
            ("run {}/images SMALL --out $out/locked/x", "x"),
            ("extract {}/images NETWORK --layer 1 --out $out/locked/f.h5", "f.h5"),
            ("fit {}/one.h5 MIXTURE --out $out/locked/m.h5", "m.h5"),
            ("label {}/one.h5 --model {}/out/1/model.h5 --out $out/locked/x", "x"),
            ("merge {}/one.h5 {}/one-more.h5 --out $out/locked/all.h5", "all.h5"),
        ):
            result = call(*words(command, made, tmp_path))
            assert (result.status, result.out) == (1, "")
            assert result.err == f"fastclust: {locked / where}: Operation not permitted\n"
    assert not list(locked.iterdir())


def test_results_that_may_not_be_replaced(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    before = contents(tmp_path)
    for command, place, words_of_it in (
        ("fit {}/one.h5 MIXTURE --out $out/out/1/model.h5", "out/1/model.h5", " cannot be replaced (Operation not"),
        ("label {}/one.h5 --model {}/out/1/model.h5 --out $out/out/1", "out/1/labels/0.png", ": Operation not"),
    ):
        with immutable(tmp_path / place):
            result = call(*words(command, made, tmp_path), "--overwrite")
        assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
        assert result.err.startswith(f"fastclust: {tmp_path / place}{words_of_it} permitted")
        assert (tmp_path / place).read_bytes() == before[place]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="wants a folder where nothing can be made, such as /proc")
def test_a_folder_where_nothing_can_be_made(made: Path) -> None:
    for command in (
        "run {}/images SMALL --out /proc/x",
        "extract {}/images NETWORK --layer 1 --out /proc/f.h5",
        "fit {}/one.h5 MIXTURE --out /proc/m.h5",
        "label {}/one.h5 --model {}/out/1/model.h5 --out /proc/x",
    ):
        result = call(*words(command, made, made))
        assert (result.status, result.out, result.err.count("\n")) == (1, "", 1), result.err
        assert result.err.startswith("fastclust: ")
        assert "/proc" in result.err


def test_images_of_every_kind_and_those_left_out(tmp_path: Path) -> None:
    folder, picture = photographs(tmp_path / "images", 1), Image.fromarray(photograph(70, 90, 5))
    for mode in ("L", "RGBA", "P"):
        picture.convert(mode).save(folder / f"{mode}.png")
    picture.convert("CMYK").save(folder / "CMYK.jpg")
    Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) * 257).save(folder / "I16.png")
    picture.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:700])
    (folder / "text.png").write_text("no image")
    (folder / "\x1b[31mred.png").write_text("no image")
    result = call("run", folder, *SMALL, "--out", tmp_path / "out")
    assert result.status == 3
    lines = result.err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [
        str(folder / name) for name in ("\\x1b[31mred.png", "cut.jpg", "text.png")
    ]
    assert all(line.startswith("left out: ") for line in lines)
    assert {path.stem for path in (tmp_path / "out/1/labels").iterdir()} == {"0", "L", "RGBA", "P", "CMYK", "I16"}
    store = open_store(tmp_path / "out" / "features.h5")
    assert len([image for image in store.images if image.reason]) == 3
    inspected = call("inspect", tmp_path / "out" / "features.h5").out
    assert "9: 6 done, 0 pending, 3 left out" in inspected
    assert f"left out  {folder / 'text.png'}: " in inspected


HOSTILE = [
    "-rf.png",
    "a\nb.png",
    "<b>[red]x.png",
    "x" * 200 + ".png",
    "été 日本.png",
    ":warning:.png",
    "=1+1.png",
    "CON.png",
]


def test_hostile_names_stay_inside_and_apart(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "images"
    for name in (*HOSTILE, "a/same.png", "b/same.png", "c/../SAME.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph(70, 90, len(name))).save(path)
    (folder / "[bold]bad:x:\x1b[31m.png").write_text("no image")
    if sys.platform == "linux":
        shutil.copy(folder / "-rf.png", os.fsencode(folder) + b"/\xff.png")
    before = contents(tmp_path / "in")
    result = call(
        "run", folder, folder / "a" / ".." / "-rf.png", *SMALL, "--layer", "flatten", "--out", tmp_path / "out"
    )
    assert result.status == 3, result.err
    assert "left out: " in result.err
    assert "[bold]bad:x:\\x1b[31m.png" in result.err
    assert result.err.count("\n") == 1
    assert all(c.isprintable() or c == "\n" for c in result.out + result.err)
    assert contents(tmp_path / "in") == before
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}
    store = open_store(tmp_path / "out" / "features.h5")
    assert len(store.finished) == len(HOSTILE) + 3 + (sys.platform == "linux")
    for part in ("labels", "enlarged"):
        names = [path.name for path in (tmp_path / "out" / "1" / part).iterdir()]
        assert len(names) == len({name.casefold() for name in names}) == len(store.finished)
        assert all(len(name.encode()) < 200 and name.isprintable() and name[0] not in "-." for name in names)
    described = call("inspect", tmp_path / "out" / "features.h5")
    assert described.status == 0
    assert "[bold]bad:x:\\x1b[31m.png" in described.out


def test_names_in_a_store_cannot_leave_the_folder(made: Path, tmp_path: Path) -> None:
    for number, name in enumerate([b"../../x", b"a/b", b"/x", b"..", b"", b"1"]):
        store = tmp_path / f"{number}.h5"
        shutil.copy(made / "one.h5", store)
        with h5py.File(store, "r+") as file:
            del file["images/name"]
            kind = h5py.string_dtype("utf-8", 20)
            file["images"].create_dataset("name", data=np.array([name, b"1", b"2", b"3"], dtype=kind))
        reseal(store)
        result = call("label", store, "--model", made / "out/1/model.h5", "--out", tmp_path / "out" / "deep")
        assert (result.status, result.err.count("\n")) == (1, 1)
        assert "is damaged" in result.err
    assert not (tmp_path / "out").exists()


def test_control_characters_in_arguments_are_escaped(tmp_path: Path) -> None:
    result = call("run", tmp_path / "\x1b[31mno\n[red]x[/red]", *SMALL, "--out", tmp_path / "out")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "\x1b" not in result.err
    assert "[red]x[/red]" in result.err


@pytest.mark.parametrize("moment", ["extract", "fit"])
def test_ctrl_c_in_a_run_keeps_what_is_done_and_resuming_ends_it(
    made: Path, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastclust import extract as extracting
    from fastclust.estimator import DPGMM

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    command = ["run", made / "images", *SMALL, "--batch-size", "2", "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        if moment == "fit":
            patch.setattr(DPGMM, "fit", interrupt)
        else:
            write = extracting._write
            patch.setattr(
                extracting,
                "_write",
                lambda writer, done, rows: interrupt() if 2 in done else write(writer, done, rows),
            )
        result = call(*command)
    assert (result.status, result.out) == (130, "")
    assert result.err == "stopped; finished images are kept: the same command with --resume goes on\n"
    assert len(open_store(tmp_path / "out" / "features.h5").finished) == {"extract": 2, "fit": 4}[moment]
    assert "a run that has not ended" in call("inspect", tmp_path / "out").out
    again = call(*command)
    assert again.status == 1
    assert "--resume" in again.err
    assert call(*command, "--resume").status == 0
    whole = call(*command[:-1], tmp_path / "whole")
    assert whole.status == 0
    assert contents(tmp_path / "out" / "1" / "labels") == contents(tmp_path / "whole" / "1" / "labels")


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_sigint_ends_a_running_process_with_130(tmp_path: Path) -> None:
    photographs(tmp_path / "images", 120)
    options = (*NETWORK, "--layer", "1", "--batch-size", "1", "--out", str(tmp_path / "out"))
    command = [sys.executable, "-m", "fastclust", "run", str(tmp_path / "images"), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    store = tmp_path / "out" / "features.h5"
    end = time.monotonic() + 200
    while (
        time.monotonic() < end and process.poll() is None and not (store.exists() and len(open_store(store).finished))
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert (process.returncode, out) == (130, "")
    assert err == "stopped; finished images are kept: the same command with --resume goes on\n"
    assert len(open_store(store).finished) >= 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="runs scripts")
@pytest.mark.parametrize(("script", "calls"), [("figure2", 3), ("figure3", 3)])
def test_a_figure_is_drawn_whole_where_an_image_is_left_out(tmp_path: Path, script: str, calls: int) -> None:
    root, data = Path(__file__).parent.parent, tmp_path / "data"
    for folder, name in (("bsds500/val", "1.jpg"), ("histology", "2.png")):
        (data / "images" / folder).mkdir(parents=True)
        (data / "images" / folder / name).touch()
    (tmp_path / "scripts").mkdir()
    shutil.copy(root / "scripts" / script, tmp_path / "scripts")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    fastclust = tmp_path / ".venv" / "bin" / "fastclust"
    fastclust.write_text('#!/bin/sh\necho "$1" >> "$(dirname "$0")/calls"\nexit 3\n')
    fastclust.chmod(0o755)
    (tmp_path / ".venv" / "ready").touch()
    os.utime(tmp_path / "pyproject.toml", (0, 0))
    command = ["bash", tmp_path / "scripts" / script, tmp_path / "out"]
    result = subprocess.run(command, env={**os.environ, "FASTCLUST_DATA": str(data)}, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert len((fastclust.parent / "calls").read_text().splitlines()) == calls


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_a_reader_that_has_left_is_no_traceback(word: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, "-m", "fastclust", word], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


def test_help_names_every_command_and_option() -> None:
    listed = call("--help").out
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    commands = re.findall(r"^  ([a-z0-9]+)  ", listed.partition("Commands:")[2], flags=re.MULTILINE)
    assert {"run", "fit", "report", "atlas", "centres", "images", "compare", "agree", "plot"} < set(commands)
    for command in commands:
        assert re.search(rf"fastclust {command}\b|scripts/{command}\b", readme), "the README names every command"
        result = call(command, "--help")
        assert (result.status, result.err) == (0, "")
        assert call(command, "-h").out == result.out
    names = (
        "model weights layer out size dtype batch-size labels resume overwrite components alpha covariance tol max-iter"
    )
    for name in (*names.split(), "seed", "device", "backend", "precision", "workers", "no-store"):
        assert f" --{name} " in call("run", "--help").out
    assert call("--version").out.startswith("fastclust ")
