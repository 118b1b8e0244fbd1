"""What `inspect`, `layers` and `doctor` say, and which files may be replaced."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from command_line import NETWORK, SMALL, call, contents, photographs
from conftest import blobs
from sklearn.mixture import BayesianGaussianMixture as Theirs

from fastclust import BayesianGaussianMixture, kernels, load
from fastclust.describe import check_replaceable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run (out)."""
    folder = tmp_path_factory.mktemp("made")
    photographs(folder / "images")
    assert call("run", folder / "images", *SMALL, "--out", folder / "out").status == 0
    return folder


def test_a_store(made: Path) -> None:
    result = call("inspect", made / "out" / "features.h5")
    assert (result.status, result.err) == (0, "")
    for words in (
        "features.h5: features, float16",
        "squeezenet1_1, weights random (random (seed 0))",
        "size      64",
        "4: 4 done, 0 pending, 0 left out",
        "1 (features.1), conv: 3844 rows of 64",
    ):
        assert words in result.out


def test_a_model(made: Path) -> None:
    result = call("inspect", made / "out" / "1" / "model.h5")
    assert (result.status, result.err) == (0, "")
    assert "3844 of 64 features" in result.out
    assert "3 in use of 3, diag covariance" in result.out
    shares = [float(line.split()[2].rstrip("%")) for line in result.out.splitlines() if line.startswith("cluster ")]
    assert len(shares) == 3
    assert shares == sorted(shares, reverse=True)
    assert abs(sum(shares) - 100) < 1e-3


def test_a_model_that_scikit_learn_fitted_is_described_and_not_pruned(tmp_path: Path) -> None:
    theirs = Theirs(n_components=3, random_state=0, tol=1).fit(blobs(200, 4))
    model = BayesianGaussianMixture()
    model.__setstate__(theirs.__getstate__())
    with pytest.raises(ValueError, match="prune needs counts_"):
        model.prune()
    model.save(tmp_path / "model.h5")
    result = call("inspect", tmp_path / "model.h5")
    assert (result.status, result.err) == (0, "")
    size = "3 components, full covariance, 4 features"
    said = f"fit       by scikit-learn, {theirs.n_iter_} passes, converged: {size}"
    assert result.out.splitlines()[1:] == [said]
    load(tmp_path / "model.h5").fit(blobs(200, 4)).prune().save(tmp_path / "model.h5")
    assert "cluster      0" in call("inspect", tmp_path / "model.h5").out


def test_a_run_by_its_folder_or_its_summary(made: Path) -> None:
    result = call("inspect", made / "out")
    assert (result.status, result.err) == (0, "")
    assert result.out == call("inspect", made / "out" / "summary.json").out
    assert "a run of squeezenet1_1, weights random, 4 images" in result.out
    assert "1: 3844 rows, 3 clusters in use" in result.out


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"layers": []}', "no json", '{"model": 1, "weights": 2, "images": 3, "layers": []}']
)
def test_a_summary_of_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    result = call("inspect", tmp_path)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "is not a summary that `fastclust run` wrote" in result.err


def test_damaged_files_are_described_in_one_line(made: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("features.h5", "1/model.h5"):
        whole = (made / "out" / name).read_bytes()
        damaged = tmp_path / "damaged.h5"
        for _ in range(100):
            content = bytearray(whole)
            for place in random.integers(0, min(len(whole), 20_000), 3):
                content[place] = random.integers(256)
            damaged.write_bytes(content)
            result = call("inspect", damaged)
            assert result.status in (0, 1)
            assert result.err.count("\n") == result.status


def test_layers_are_listed_with_names_and_shapes() -> None:
    result = call("layers", "vgg16")
    assert (result.status, result.err) == (0, "")
    lines = {line.split()[0]: line for line in result.out.splitlines()}
    assert "relu1_2, 2" in lines["features.3"]
    assert lines["features.3"].endswith("conv   224 x 224 x 64")
    assert lines["classifier.1"].endswith("dense  4096")
    assert "fc6" in lines["classifier.0"]


def test_doctor_names_machine_versions_and_backends() -> None:
    result = call("doctor")
    assert (result.status, result.err) == (0, "")
    for word in ("platform", "cpu", "cores", "memory", "python", "torch", "numpy", "scikit-learn", "h5py", "device"):
        assert f"\n{word} " in f"\n{result.out}"
    for backend in kernels.BACKENDS:
        assert f"{backend} on cpu: " in result.out
    assert result.out.count("on cpu: chosen by auto") == 1
    assert "numba on cpu: chosen by auto; torch passes over the rows for tied covariance" in result.out


def test_doctor_says_why_a_backend_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available", lambda device: {"torch": None, "abacus": "it has no beads"})
    assert "abacus on cpu: cannot run: it has no beads" in call("doctor").out


def test_only_files_of_the_same_kind_are_replaced(made: Path, tmp_path: Path) -> None:
    store, model = "fastclust.features", "fastclust.model"
    shutil.copy(made / "out" / "features.h5", tmp_path / "store.h5")
    (tmp_path / "empty").touch()
    (tmp_path / "photograph.png").write_bytes(b"\x89PNG")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "store.h5").read_bytes()[:5000])
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = 1
    content = bytearray((tmp_path / "store.h5").read_bytes())
    content[40] ^= 1
    (tmp_path / "no-seal.h5").write_bytes(content)
    for name in ("none", "empty", "no-seal.h5"):
        check_replaceable(tmp_path / name, store)
        check_replaceable(tmp_path / name, model)
    for name in ("store.h5", "cut.h5"):
        check_replaceable(tmp_path / name, store)
    for name in ("photograph.png", "foreign.h5", "store.h5", "cut.h5"):
        with pytest.raises(FileExistsError, match="name another file"):
            check_replaceable(tmp_path / name, model)


def test_an_extraction_replaces_a_store(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "out" / "features.h5", tmp_path / "f.h5")
    before = contents(tmp_path)
    command = ("extract", made / "images", *NETWORK, "--layer", "2", "--out", tmp_path / "f.h5")
    assert call(*command).status == 1
    assert contents(tmp_path) == before
    assert call(*command, "--overwrite").status == 0
    assert "2 (features.3.squeeze_activation)" in call("inspect", tmp_path / "f.h5").out


def test_a_run_describes_itself_as_json(made: Path) -> None:
    text = (made / "out" / "summary.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["images"] == 4
