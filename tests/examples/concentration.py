"""Show how the concentration, of a process and of a finite mixture, decides how many components share the rows."""

import json
import sys

import numpy as np
from sklearn.mixture import BayesianGaussianMixture

CONCENTRATIONS = {"dirichlet_distribution": (1e-3, 1.0, 1e3), "dirichlet_process": (1.0, 1e3, 1e5)}

random = np.random.RandomState(2)
stripes = [
    random.normal(size=(n, 2)) * np.sqrt([width, 0.1]) + [0, height]
    for n, width, height in ((200, 0.7, -1.4), (500, 0.5, 0.0), (200, 0.5, 1.4))
]
X = np.concatenate(stripes)

found = []
for kind, concentrations in CONCENTRATIONS.items():
    for concentration in concentrations:
        mixture = BayesianGaussianMixture(
            n_components=6,
            covariance_type="full",
            weight_concentration_prior_type=kind,
            weight_concentration_prior=concentration,
            mean_precision_prior=0.8,
            reg_covar=0,
            init_params="random",
            max_iter=1500,
            random_state=2,
        ).fit(X)
        found.append(
            {
                "prior": kind,
                "concentration": concentration,
                "weights": mixture.weights_.tolist(),
                "means": mixture.means_.tolist(),
                "n_iter": mixture.n_iter_,
                "labels": mixture.predict(X).tolist(),
            }
        )
json.dump(found, sys.stdout)
