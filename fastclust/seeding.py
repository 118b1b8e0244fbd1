"""k-means++ seeds where the rows are, without a look at any value: on an accelerator the host waits for none of them.

Greedy k-means++ (Arthur and Vassilvitskii 2007): with d_n the squared distance of row n from its nearest seed so far
and w_n its weight, some candidates are drawn with chances in proportion to w_n d_n, and the one that leaves the least
potential sum_n w_n d_n becomes a seed. Random numbers are drawn in scikit-learn's order, so that of float64 rows the
same become seeds, but for ties, which rounding decides there and here: two rows that nothing else is near leave one
potential, whichever is taken.
"""

from __future__ import annotations

import numpy as np
import torch


def plus_plus(
    rows: torch.Tensor, n_components: int, weights: torch.Tensor | None, random: np.random.RandomState
) -> torch.Tensor:
    """Return which rows (n, D), of any float dtype, are the seeds: (K,) int64, on their device.

    weights: (n,), not negative, how often each row counts; None for once. Arithmetic is float64.
    Raises ValueError where there are fewer rows than seeds.
    """
    n = len(rows)
    if n < n_components:
        raise ValueError(f"{n_components} seeds were asked for, and there are {n} rows: use fewer components")
    w = torch.ones(n, dtype=torch.float64, device=rows.device) if weights is None else weights.double()
    chances = w.cpu().numpy()
    first = random.choice(n, p=chances / chances.sum())
    trials = 2 + int(np.log(n_components))
    shares = torch.from_numpy(random.uniform(size=(n_components - 1, trials))).to(rows.device)
    return chosen(rows.double(), w, torch.full((1,), int(first), device=rows.device), shares)


def chosen(rows: torch.Tensor, weights: torch.Tensor, first: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Return the seeds (K,) int64 that follow from the first (1,) and from where in the potential candidates are.

    rows: (n, D) float64. weights: (n,) float64. shares: (K - 1, trials) float64, in [0, 1).
    """
    square = rows.square().sum(1)  # (n,)
    nearest = _distances(rows, square, first)  # (1, n)
    potential = nearest @ weights  # (1,)
    seeds = [first]
    for share in shares:
        bounds = torch.cumsum(weights * nearest[0], 0)  # (n,)
        candidates = torch.searchsorted(bounds, share * potential).clamp_(max=len(rows) - 1)  # (trials,)
        near = torch.minimum(nearest, _distances(rows, square, candidates))  # (trials, n)
        potential, best = (near @ weights).min(0, keepdim=True)  # (1,)
        nearest = near.index_select(0, best)
        seeds.append(candidates.index_select(0, best))
    return torch.cat(seeds)


def _distances(rows: torch.Tensor, square: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the squared distances (m, n) of all rows from those of an index (m,)."""
    product = rows.index_select(0, index) @ rows.T  # (m, n)
    return product.mul_(-2).add_(square.index_select(0, index)[:, None]).add_(square).clamp_(min=0)
