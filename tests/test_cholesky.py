"""Triangular roots of inverses on the CPU, held to torch's."""

import numpy as np
import pytest
import torch

from fastclust.kernels.numba.cholesky import inverse_roots
from fastclust.variational import precisions_cholesky


@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 64, 131])
@pytest.mark.parametrize("decades", [0, 6])
def test_roots_are_torchs(d, decades):
    random = np.random.default_rng(d)
    turned = np.linalg.qr(random.normal(size=(3, d, d)))[0]
    wide = turned * np.logspace(0, decades, d)
    covariances = torch.from_numpy(wide @ turned.swapaxes(1, 2))
    found, expected = inverse_roots(covariances), precisions_cholesky(covariances, "full").mT
    assert found.shape == (3, d, d)
    assert (found.triu(1) == 0).all()
    torch.testing.assert_close(found, expected, rtol=1e-9 * 10**decades, atol=1e-12 * 10**decades)
    torch.testing.assert_close(
        found @ covariances @ found.mT, torch.eye(d).double().expand(3, d, d), rtol=0, atol=1e-11 * 10 ** (decades / 2)
    )


@pytest.mark.parametrize("what", ["negative", "zero", "NaN", "infinite"])
def test_what_is_not_positive_definite_is_nan_and_the_others_are_not(what):
    covariances = torch.eye(40, dtype=torch.float64).repeat(4, 1, 1)
    covariances[1, 33, 33] = {"negative": -1.0, "zero": 0.0, "NaN": torch.nan, "infinite": torch.inf}[what]
    found = inverse_roots(covariances)
    assert torch.isnan(found[1]).all()
    assert (found[[0, 2, 3]] == torch.eye(40)).all()
