"""Checkpoints: a fit that goes on from one ends with the bits of a fit that was never stopped."""

import io
import logging
import pickle
import warnings

import numpy as np
import pytest
import torch
from conftest import blobs, relu_features
from sklearn.exceptions import ConvergenceWarning

from fastclust import DPGMM, BayesianGaussianMixture, Checkpoint, checkpoint, group, model_file

KINDS = ("full", "tied", "diag", "spherical")


class Stop(BaseException):
    """What ends a fit in the middle."""


def stopped(model, X, path, at, **options):
    """Fit until pass number `at`, counted over all starts, and stop there."""
    passes = iter(range(1, 10_000))

    def on_pass(n_pass, bound, change):
        if next(passes) == at:
            raise Stop

    with pytest.raises(Stop):
        model.fit(X, on_pass=on_pass, checkpoint=Checkpoint(path, **options))


def same(one, other):
    """Assert that two fitted models have the same bits."""
    assert one.lower_bounds_ == other.lower_bounds_
    ours, theirs = ({k: v for k, v in vars(model).items() if k.endswith("_")} for model in (one, other))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        flat = value.items() if isinstance(value, dict) else [(0, value)]
        for key, part in flat:
            other_part = theirs[name][key] if isinstance(value, dict) else theirs[name]
            if isinstance(part, dict):
                assert all(np.array_equal(part[k], other_part[k]) for k in part), name
            else:
                np.testing.assert_array_equal(part, other_part, err_msg=name)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@pytest.mark.parametrize("every", [0, 1000], ids=["each pass", "at the stop alone"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_fit_goes_on_to_the_same_bits(kind, every, tmp_path):
    X = relu_features(1200, 8).astype(np.float32)
    model = DPGMM(
        7, covariance_type=kind, random_state=0, max_iter=30, tol=1e-3, sort_sticks=True, feature_range=(0, 10)
    )
    whole = DPGMM(**model.get_params()).fit(X)
    path = tmp_path / "fit.h5"
    for at in (1, 4, 2):  # the second from where the first stopped, and so on
        stopped(model, X, path, at, every=every, resume=True)
    _, found = model_file.read_groups(path, checkpoint.FORMAT, checkpoint.VERSION, ("state",), "a checkpoint")
    assert len(found["state"]["now"]["lower_bounds"]) == 7
    same(model.fit(X, checkpoint=Checkpoint(path, resume=True)), whole)


def test_later_starts_and_the_best_of_earlier_ones_go_on_too(tmp_path):
    X = blobs(600, 3, 4)
    model = BayesianGaussianMixture(
        n_components=5, n_init=4, init_params="random", random_state=np.random.RandomState(5), max_iter=12, tol=0
    )
    whole = BayesianGaussianMixture(**model.get_params() | {"random_state": np.random.RandomState(5)}).fit(X)
    for at in (3, 12, 20):
        stopped(model, X, tmp_path / "fit.h5", at, every=0, resume=True)
    same(model.fit(X, checkpoint=Checkpoint(tmp_path / "fit.h5", resume=True)), whole)


def test_weights_and_more_passes_go_on_and_a_finished_fit_stays_finished(tmp_path):
    X, weights = blobs(600, 3, 4), np.random.default_rng(0).integers(0, 3, 600)
    path, passes = tmp_path / "fit.h5", []
    model = DPGMM(4, random_state=0, max_iter=5, tol=0)
    model.fit(X, sample_weight=weights, checkpoint=Checkpoint(path))
    again = DPGMM(4, random_state=0, max_iter=9, tol=0)
    again.fit(
        X, sample_weight=weights, on_pass=lambda *each: passes.append(each[0]), checkpoint=Checkpoint(path, resume=True)
    )
    assert passes == [6, 7, 8, 9]
    same(again, DPGMM(4, random_state=0, max_iter=9, tol=0).fit(X, sample_weight=weights))
    passes.clear()
    same(
        DPGMM(4, random_state=0, max_iter=9, tol=0).fit(
            X, sample_weight=weights, checkpoint=Checkpoint(path, resume=True)
        ),
        again,
    )
    assert passes == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n_components": 5}, "its parameters is"),
        ({"tol": 0.1}, "its parameters is"),
        ({"X": "other rows"}, "its rows is"),
        ({"X": "fewer rows"}, "its rows is"),
        ({"weights": True}, "its rows is"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_fit_is_refused(change, named, tmp_path):
    X, path = blobs(600, 3, 4), tmp_path / "fit.h5"
    DPGMM(4, random_state=0, max_iter=2).fit(X, checkpoint=Checkpoint(path))
    before = path.read_bytes()
    rows = {"other rows": X + 1e-6, "fewer rows": X[:599]}.get(change.get("X"), X)
    weights = np.full(len(rows), 2.0) if change.get("weights") else None
    parameters = {"n_components": 4, "random_state": 0, "max_iter": 3} | {
        name: value for name, value in change.items() if name not in ("X", "weights")
    }
    with pytest.raises(ValueError, match=f"of another fit: {named}"):
        DPGMM(**parameters).fit(rows, sample_weight=weights, checkpoint=Checkpoint(path, resume=True))
    with pytest.raises(FileExistsError, match="resume goes on"):
        DPGMM(4, random_state=0, max_iter=3).fit(X, checkpoint=Checkpoint(path))
    assert path.read_bytes() == before


def test_what_is_no_checkpoint_is_refused_and_left_alone(tmp_path):
    X, path = blobs(100, 3, 4), tmp_path / "fit.h5"
    DPGMM(2, random_state=0, max_iter=2).fit(X).save(path)
    cut = tmp_path / "cut.h5"
    DPGMM(2, random_state=0, max_iter=2).fit(X, checkpoint=Checkpoint(cut))
    cut.write_bytes(cut.read_bytes()[:-100])
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    for name, said in (
        (path, "is a fastclust.model file"),
        (cut, "is cut short"),
        (text, "is not an HDF5 file"),
    ):
        before = name.read_bytes()
        with pytest.raises(ValueError, match=said):
            DPGMM(2, random_state=0).fit(X, checkpoint=Checkpoint(name, resume=True))
        assert name.read_bytes() == before
    with pytest.raises(FileNotFoundError, match="is not a folder: create it first"):
        DPGMM(2, random_state=0).fit(X, checkpoint=Checkpoint(tmp_path / "none" / "fit.h5"))
    with pytest.raises(ValueError, match="expected seconds"):
        Checkpoint(path, every=-1)


def test_a_fit_goes_on_where_a_checkpoint_cannot_be_written(tmp_path, monkeypatch, caplog):
    def full(*given, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastclust.checkpoint.model_file.write_groups", full)
    X = blobs(300, 3, 4)
    with caplog.at_level(logging.WARNING, "fastclust"):
        model = DPGMM(3, random_state=0, max_iter=4, tol=0).fit(X, checkpoint=Checkpoint(tmp_path / "fit.h5", every=0))
    assert model.n_iter_ == 4
    assert "cannot be written" in caplog.text and "the fit goes on" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_goes_to_the_others_of_a_group_from_the_host_to_devices_of_their_own(tmp_path):
    X, path, devices = blobs(300, 3, 4), tmp_path / "fit.h5", []
    model = DPGMM(3, random_state=0, max_iter=3, tol=0)
    model.fit(X, checkpoint=Checkpoint(path))

    class Watching(pickle.Pickler):
        def reducer_override(self, value):
            if isinstance(value, torch.Tensor):
                devices.append(value.device.type)
            return NotImplemented

    class Group(group.Group):
        size = 2

        def first(self, value):
            packed = io.BytesIO()
            Watching(packed).dump(value)
            return pickle.loads(packed.getvalue())

    about, _ = checkpoint._read(path)
    state = Checkpoint(path, resume=True).open(about, Group(), torch.device("meta"))  # a device that tests have
    assert set(devices) <= {"cpu"}
    assert {state.now.posterior.m.device.type, state.now.statistics.sx.device.type} == {"meta"}
    assert state.summary.mean.device.type == "cpu"
