"""Memory beyond the input: nothing that grows with N x K. scikit-learn holds three such float64 arrays, 600 MB here."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, warnings
import numpy as np
from fastclust import BayesianGaussianMixture
warnings.simplefilter("ignore")

def memory(what):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what)) * 1024

X = np.random.default_rng(0).standard_normal((500_000, 32), dtype=np.float32)
parameters = {"n_components": 50, "covariance_type": "diag", "random_state": 0, "max_iter": 1}
model = BayesianGaussianMixture(init_params=sys.argv[1], **parameters)
model.fit(X[:1000]).predict(X[:1000])  # libraries are loaded, threads have their buffers
before = memory("VmRSS")
for step in (model.fit, model.predict):
    open("/proc/self/clear_refs", "w").write("5")
    step(X)
    print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc to read the peak from")
@pytest.mark.parametrize(("start", "limit"), [("kmeans", 400e6), ("random", 100e6)])
def test_half_a_million_rows_of_numpy_need_little_more_than_themselves(start, limit):
    """The rows are 64 MB. With "kmeans", KMeans makes a copy of them, and needs 250 MB for any number."""
    run = subprocess.run([sys.executable, "-c", PROGRAM, start], capture_output=True, text=True, check=True)
    fitting, predicting = map(int, run.stdout.split())
    assert fitting < limit
    assert predicting < limit
