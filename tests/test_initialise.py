"""The sums of a partition, however they are made."""

import numpy as np
import pytest
import torch
from conftest import relu_features

from fastclust import DPGMM, initialise


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", ["diag", "spherical", "tied"])
def test_sums_by_label_are_products_with_one_hot_responsibilities(kind, weighted):
    X = relu_features(5000, 8).astype(np.float32) + 100
    model = DPGMM(4, covariance_type=kind, random_state=0, max_iter=2, feature_range=(0, 10)).fit(X)
    _, rows = model._rows_of(X)
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (len(X),), generator=random, dtype=torch.int32) * (torch.arange(len(X)) > 50)
    w = torch.randint(0, 3, (len(X),), generator=random).double() if weighted else None
    part = torch.from_numpy(X)
    found = initialise._moments_by_label(rows, part, labels, w, 7, kind)  # component 6 has no row
    expected = initialise._moments(
        rows, part, initialise._one_hot(labels, 7), w, torch.zeros(7, 8, dtype=torch.float64), kind
    )
    assert found.nk[6] == 0
    for name in ("nk", "sx", "sxx", "about"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-9, msg=name)
