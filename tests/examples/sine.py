"""Cover a noisy sine curve with a Dirichlet-process mixture, at a low and a high concentration, and draw from it."""

import json
import sys

import numpy as np
from sklearn.mixture import BayesianGaussianMixture

random = np.random.RandomState(0)
angle = np.linspace(-6, 4 * np.pi - 6, 100, endpoint=False)
across, up = random.normal(scale=[[0.1], [0.6]], size=(2, 100))
X = np.column_stack([angle + across, 3 * np.sin(angle) + up])

found = {}
for concentration, start in ((1e-2, "random"), (1e2, "random"), (1e2, "kmeans")):
    mixture = BayesianGaussianMixture(
        n_components=10,
        covariance_type="full",
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=concentration,
        mean_precision_prior=1e-2,
        mean_prior=np.zeros(2),
        covariance_prior=np.eye(2),
        init_params=start,
        max_iter=100,
        random_state=2,
    ).fit(X)
    drawn, components = mixture.sample(2000)
    found[f"{start} {concentration}"] = {
        "counts": np.bincount(mixture.predict(X), minlength=10).tolist(),
        "weights": mixture.weights_.tolist(),
        "n_iter": mixture.n_iter_,
        "converged": mixture.converged_,
        "lower_bound": mixture.lower_bound_,
        "drawn": np.bincount(components, minlength=10).tolist(),
        "sums": drawn.sum(axis=0).tolist(),
        "square_sums": (drawn**2).sum(axis=0).tolist(),
    }
json.dump(found, sys.stdout)
