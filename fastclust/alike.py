"""How many components of a device's passes are read as one: what is dead has the prior's posterior, and so is alike.

The host would have to wait to find components that are equal, so it is told how many are, with the bound of the pass
before, and which they are the device finds out. What comes of it depends on what the passes told and on nothing else,
so a fit that goes on from a checkpoint reads as one what the fit that was not stopped does.

Coefficients of another number of components are another plan, and another graph where passes are recorded. A plan is
new in each pass where there is no graph, and there all that are alike are one at once. A recording costs as much as
dozens of small passes, and kernels treat components in blocks: there they become one where blocks are saved, of many
rows, and when it has settled how many. When fewer are alike than are one, the next pass has another plan at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastclust.variational import Posterior

SETTLED = 8  # passes: of 50 on relu1_2 of VGG-19, most that die early do so within as many, and then one in three
RECORDED_FROM = 1 << 20  # rows: a pass over fewer is predicted to take no longer than the K-sized work that follows
BLOCK = 64  # components that kernels treat at a time; fewer are padded to a power of two, 16 at least
MIX = 0x1E3779B97F4A7C15  # odd: a product with it leaves no bit of a number without effect


class Alike(NamedTuple):
    """Say how many components are alike.

    found: in the posterior; 1 where nobody looked. passes: since kernels would save as much. merged: how many the next
    pass reads as one.
    """

    found: int = 1
    passes: int = 0
    merged: int = 1

    def next(self, found: int, n_components: int, recorded: bool, n_rows: int) -> Alike:
        """Return what follows from what a pass told. recorded: whether its K-sized work is, or would be, a graph."""
        before, there = (_places(n_components - n + 1) for n in (self.found, found))
        passes = self.passes + 1 if there == before else 1
        if not recorded:
            return Alike(found, passes, found)
        merged = self.merged if self.merged <= found else 1
        worth_it = n_rows >= RECORDED_FROM and passes >= SETTLED and there < _places(n_components - merged + 1)
        return Alike(found, passes, found if worth_it else merged)


UNKNOWN = Alike()


def _places(k: int) -> int:
    """Return how many components kernels treat in place of k."""
    return max(1 << (k - 1).bit_length(), 16) if k <= BLOCK else -(-k // BLOCK) * BLOCK


def alike(posterior: Posterior) -> torch.Tensor:
    """Say which components (K,) have one mean and precision, to the last bit: the most that have, one at least.

    Not those that are as the smallest is: of several that die, all with next to no rows, that one may differ by a bit.
    """
    numbers = [posterior.m] if posterior.covariance_type == "tied" else [posterior.m, posterior.precisions_cholesky]
    bits = [part.view(torch.int64) for part in numbers]  # of a number that is none, too
    marks = torch.stack([_marks(part) for part in bits]).sum(0)  # equal for equal components, and seldom for others
    one = (marks[:, None] == marks).sum(1).argmax(0, keepdim=True)
    return torch.stack([(part == part[one]).reshape(len(part), -1).all(1) for part in bits]).all(0)


def _marks(bits: torch.Tensor) -> torch.Tensor:
    """Return a number (K,) int64 that follows from the bits of each component's mean, or of its precision."""
    some = bits.diagonal(dim1=1, dim2=2) if bits.ndim == 3 else bits.reshape(len(bits), -1)  # (K, D)
    odd = 2 * torch.arange(some.shape[1], device=bits.device) + 1
    return (some * (odd * MIX)).sum(1)
