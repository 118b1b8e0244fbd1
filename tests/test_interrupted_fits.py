"""Fitted attributes change all together or not at all, wherever a fit is stopped."""

import copy

import numpy as np
import pandas
import pytest
from conftest import blobs

from fastclust import DPGMM, BayesianGaussianMixture, Checkpoint
from fastclust.mixture import Mixture
from fastclust.rows import Rows

X = blobs(300, 3)
WIDER = X * 3 + 1
STEPS = ("_check_range", "_set_posterior", "_set_gammas", "_counted", "_keep", "_present")
FITS = {
    "fit": lambda model: model.fit(WIDER),
    "fit_predict": lambda model: model.fit_predict(WIDER),
    "warm fit": lambda model: model.set_params(warm_start=True).fit(WIDER),
    "partial_fit": lambda model: model.partial_fit(WIDER, batch="wider"),
    "partial_fit again": lambda model: model.partial_fit(WIDER, batch="fit"),
}
MODELS = {
    "native": DPGMM(4, feature_range=(0, 10), random_state=0, tol=0.1),
    "drop-in": BayesianGaussianMixture(n_components=4, random_state=0, tol=100),
}


def stop(*given, **more):
    raise KeyboardInterrupt


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("way", FITS)
@pytest.mark.parametrize("step", ["statistics", *STEPS])
def test_a_stopped_fit_changes_nothing(step, way, model, monkeypatch):
    fitted = copy.deepcopy(MODELS[model]).fit(X)
    labels, whole = fitted.predict(X), copy.deepcopy(fitted)
    before = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Rows if step == "statistics" else type(fitted), step, stop)
        FITS[way](fitted)
    after = {name: value for name, value in vars(fitted).items() if name.endswith("_")}
    assert set(after) == set(before) and all(after[name] is before[name] for name in before)
    assert (fitted.predict(X) == labels).all()
    for one in (fitted, whole):
        FITS[way](one)
    np.testing.assert_array_equal(fitted.means_, whole.means_)
    assert fitted.lower_bounds_ == whole.lower_bounds_


@pytest.mark.parametrize("way", ["fit", "fit_predict", "partial_fit"])
@pytest.mark.parametrize("step", STEPS)
def test_a_stopped_first_fit_leaves_no_fitted_attribute(step, way, monkeypatch):
    model = DPGMM(4, random_state=0, tol=0.1)
    monkeypatch.setattr(Mixture, step, stop)
    with pytest.raises(KeyboardInterrupt):
        FITS[way](model)
    assert [name for name in vars(model) if name.endswith("_")] == []


def test_what_a_fit_leaves_is_of_its_own_rows():
    """Names of features go where rows have none, and what on_pass sets on the mixture stays."""
    model = DPGMM(4, random_state=0, tol=0.1).fit(pandas.DataFrame(X, columns=["a", "b", "c"]))
    model.fit(X, on_pass=lambda *each: setattr(model, "passes", each[0]))
    assert not hasattr(model, "feature_names_in_")
    assert model.passes == model.n_iter_


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_refit_that_stopped_goes_on_from_its_checkpoint(tmp_path):
    model = DPGMM(4, feature_range=(0, 10), random_state=0, max_iter=6, tol=0, warm_start=True).fit(X)
    whole = copy.deepcopy(model).fit(WIDER)

    def on_pass(n_pass, bound, change):
        if n_pass == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.fit(WIDER, on_pass=on_pass, checkpoint=Checkpoint(tmp_path / "fit.h5"))
    passes = []
    model.fit(
        WIDER,
        on_pass=lambda *each: passes.append(each[0]),
        checkpoint=Checkpoint(tmp_path / "fit.h5", resume=True),
    )
    assert passes[0] == 3
    np.testing.assert_array_equal(model.means_, whole.means_)
    assert model.lower_bounds_ == whole.lower_bounds_
