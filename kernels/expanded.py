r"""ln rho of spherical and diag covariance expanded into two products of rows, as tensor cores want it.

    log2 rho_nk = constant_k + y_n . linear_k + y_n^2 . quadratic_k
    linear = lambda m,   quadratic = -lambda / 2,   constant_k = a_k - 1/2 sum_d lambda_kd m_kd^2        times log2 e

It cancels where sum_d lambda_kd m_kd^2 is large. Such components are tight: they have no products and a constant of
LEAST here, and kernels take y - m before they square it, as ln rho is written in `kernels.contract`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from fastclust.kernels.contract import Coefficients

TIGHT = 2e3  # nats of sum lambda m^2; on relu1_2 of VGG-19, 1e3 marks 15 components of 50 and 3e3 marks 2
LEAST = -1e30  # of log2 rho: finite, so that nothing times zero is not a number
LOG2_E = math.log2(math.e)


class Expanded(NamedTuple):
    """Hold coefficients in base 2, float64: constant (K,), linear (K, D), quadratic (K, D), of spherical (K, 1).

    tight: (K,) bool, which components have none.
    """

    constant: torch.Tensor
    linear: torch.Tensor
    quadratic: torch.Tensor
    tight: torch.Tensor


def expand(coefficients: Coefficients) -> Expanded:
    """Return the coefficients of spherical or diag covariance for the expanded form; the host does not wait for it."""
    m, precision = coefficients.means, coefficients.precision
    if coefficients.covariance_type == "spherical":
        precision = precision[:, None]
    square = (precision * m**2).sum(1)  # (K,)
    tight = square > TIGHT
    own = LOG2_E * precision * (~tight)[:, None]
    constant = (LOG2_E * (coefficients.offset - 0.5 * square)).masked_fill(tight, LEAST)
    return Expanded(constant, own * m, -0.5 * own, tight)
