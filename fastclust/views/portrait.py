"""What marks a mixture's clusters out: channels, clusters that are near, and those that overlap in another layer.

With weights w_k, means m_kd and variances v_kd of the components, a channel d of the mixture has

    mean m_d = sum_k w_k m_kd        variance v_d = sum_k w_k (v_kd + m_kd^2) - m_d^2

so that (m_kd - m_d) / sqrt(v_d) says, in deviations of the mixture, how far a cluster is from what is usual there. The
distance of two clusters is the root mean square over channels of the difference of these, as a palette compares them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastclust.arrays import host
from fastclust.fitted import FittedMixture

Ranked = list[tuple[int, float]]
"""Channels or components, with a number each, the first that matters most."""


def deviations(model: FittedMixture) -> NDArray[np.float64]:
    """Return how far each component's mean is from the mixture's in each channel: (K, D), in deviations of the mixture.

    A channel that does not vary is 0 everywhere.
    """
    means, weights = (np.asarray(host(getattr(model, name)), dtype=np.float64) for name in ("means_", "weights_"))
    weights = weights / weights.sum()
    centred = means - weights @ means
    spread = np.sqrt(weights @ (_variances(model) + centred**2))
    varies = spread > 1e-12 * np.abs(means).max(axis=0)  # less is rounding
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=varies))


def _variances(model: FittedMixture) -> NDArray[np.float64]:
    """Return the variance of each channel in each component, (K, D)."""
    covariances = np.asarray(host(model.covariances_), dtype=np.float64)
    shape = host(model.means_).shape
    if model.covariance_type == "spherical":
        covariances = covariances[:, None]
    elif model.covariance_type in ("tied", "full"):
        covariances = np.diagonal(covariances, axis1=-2, axis2=-1)
    return np.broadcast_to(covariances, shape)


def marks(table: NDArray[np.float64], k: int, most: int = 5) -> Ranked:
    """Return the channels in which a component is furthest from the mixture, with the deviations, of `deviations`."""
    order = np.argsort(-np.abs(table[k]), kind="stable")[:most]
    return [(int(d), float(table[k, d])) for d in order if table[k, d]]


def nearest(table: NDArray[np.float64], k: int, used: NDArray[np.intp], most: int = 3) -> Ranked:
    """Return the components in use that are nearest to another, with their distances, from `deviations`."""
    others = used[used != k]
    distance = np.sqrt(np.mean((table[others] - table[k]) ** 2, axis=1))
    return [(int(others[i]), float(distance[i])) for i in np.argsort(distance, kind="stable")[:most]]


def overlapping(counts: NDArray[np.int64], most: int = 3, enough: float = 0.5) -> Ranked:
    """Return the components of another layer that overlap one most, with the share of it that each covers.

    counts: (K',) places of the component in each of the other layer's. The largest come first, and no more of them than
    cover `enough` together, nor than `most`.
    """
    total, found, covered = int(counts.sum()), Ranked(), 0.0
    for k in np.argsort(-counts, kind="stable")[:most]:
        if covered >= enough or not counts[k]:
            break
        found.append((int(k), float(counts[k] / total)))
        covered += found[-1][1]
    return found
