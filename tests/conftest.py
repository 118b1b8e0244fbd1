"""Data that tests share: easy blobs, features as a ReLU leaves them, and rows far from the origin."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch


def blobs(n: int = 1000, d: int = 5, k: int = 6, seed: int = 0) -> np.ndarray:
    """Return (n, d) rows around k centres, four deviations apart on average; neighbours overlap."""
    random = np.random.default_rng(seed)
    return random.normal(size=(k, d))[random.integers(k, size=n)] * 3 + random.normal(size=(n, d))


def relu_features(n: int = 2000, d: int = 16, seed: int = 0) -> np.ndarray:
    """Return (n, d) rows like those of a layer after its ReLU: half zeros, heavy tails, channel 3 dead, 0 to 10."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(n, 6)) * random.lognormal(sigma=0.5, size=(n, 1)) @ random.normal(size=(6, d))
    rows = np.maximum(mixed, 0)
    rows[:, 3] = 0
    return rows * 10 / rows.max()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real weights and images; tests that need it skip where there is none."""
    if "FASTCLUST_DATA" not in os.environ:
        pytest.skip("FASTCLUST_DATA is not set: it names the folder of real weights and images")
    return Path(os.environ["FASTCLUST_DATA"]).resolve()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: networks this small only wait for several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
