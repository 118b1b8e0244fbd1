"""Fit five components to two Gaussians, and tell their ellipses and the density on a grid."""

import json
import sys

import numpy as np
from sklearn.mixture import BayesianGaussianMixture

random = np.random.RandomState(0)
slanted = random.normal(size=(300, 2)) @ [[0.0, -0.1], [1.7, 0.4]]
round_one = 0.7 * random.normal(size=(300, 2)) + [-6, 3]
X = np.concatenate([slanted, round_one])

mixture = BayesianGaussianMixture(n_components=5, covariance_type="full", random_state=1).fit(X)
labels = mixture.predict(X)
lengths, axes = np.linalg.eigh(mixture.covariances_[np.unique(labels)])
grid = np.stack(np.meshgrid(np.linspace(-9, 5, 15), np.linspace(-4, 6, 11)), axis=-1).reshape(-1, 2)
result = {
    "labels": labels.tolist(),
    "centres": mixture.means_[np.unique(labels)].tolist(),
    "half_axes": (2 * np.sqrt(2 * lengths)).tolist(),
    "slopes": (axes[:, 1, 1] / axes[:, 0, 1]).tolist(),
    "log_density": mixture.score_samples(grid).tolist(),
    "mean_log_density": mixture.score(X),
    "responsibilities": mixture.predict_proba(grid).tolist(),
}
json.dump(result, sys.stdout)
