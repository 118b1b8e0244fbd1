"""Choose a mixture behind a scaler by its held-out density."""

import json
import sys

import numpy as np
from sklearn.mixture import BayesianGaussianMixture
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

random = np.random.RandomState(5)
centres = random.normal(scale=4, size=(4, 3))
X = (centres[random.randint(4, size=400)] + random.normal(size=(400, 3))) * [1, 10, 100]

pipeline = Pipeline([("scale", StandardScaler()), ("mixture", BayesianGaussianMixture(max_iter=300, random_state=0))])
choices = {"mixture__n_components": [2, 4, 6], "mixture__covariance_type": ["full", "tied", "diag", "spherical"]}
search = GridSearchCV(pipeline, choices, cv=3).fit(X)
result = {
    "best": search.best_params_,
    "scores": search.cv_results_["mean_test_score"].tolist(),
    "labels": search.predict(X).tolist(),
    "score": search.score(X),
    "centres": search.best_estimator_["mixture"].means_.tolist(),
}
json.dump(result, sys.stdout)
