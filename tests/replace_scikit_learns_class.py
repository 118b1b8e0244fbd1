"""Pytest plugin: put our BayesianGaussianMixture in the place of scikit-learn's before its own tests import it."""

import sys

import pytest
import sklearn.mixture

import fastclust

MODULES = ("sklearn.mixture.tests.test_bayesian_mixture", "sklearn.mixture.tests.test_mixture")

THEIRS = sklearn.mixture.BayesianGaussianMixture
sklearn.mixture.BayesianGaussianMixture = fastclust.BayesianGaussianMixture


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run where a module was not collected, or a test of it can reach scikit-learn's own class."""
    for name in MODULES:
        module = sys.modules.get(name)
        if module is None or not any(item.module is module for item in session.items):
            raise pytest.UsageError(f"{name} was not collected")
        if module.BayesianGaussianMixture is not fastclust.BayesianGaussianMixture:
            raise pytest.UsageError(f"{name} tests {module.BayesianGaussianMixture}")
        if any(value is THEIRS for value in vars(module).values()):
            raise pytest.UsageError(f"{name} sees scikit-learn's own class too")
    parametrised = [item.callspec.params.get("estimator") for item in session.items if hasattr(item, "callspec")]
    if any(isinstance(estimator, THEIRS) for estimator in parametrised):
        raise pytest.UsageError("a test is given scikit-learn's own class")
