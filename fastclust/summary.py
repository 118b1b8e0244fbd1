"""What the whole of the rows says of each column: how many there are, their mean, scatter and range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from fastclust.blocks import Blocks, check_finite
from fastclust.kernels.memory import share_of_free
from fastclust.kernels.threads import over_parts

CHUNK = 4096  # rows that a thread of the CPU looks at in float64 at a time
CHUNK_BYTES = 512 << 20  # that an accelerator takes for what it looks at


@dataclass(frozen=True)
class Summary:
    """Hold what the whole of the rows says of each column; summaries of disjoint sets of rows add. All float64.

    total: number of rows, each as often as it counts. mean, minimum, maximum: (D,). scatter: sum_n (x_n - mean)^2,
    (D,), or the outer products (D, D).
    """

    total: float
    mean: torch.Tensor
    scatter: torch.Tensor
    minimum: torch.Tensor
    maximum: torch.Tensor

    @property
    def variance(self) -> torch.Tensor:
        """The sample variance of each column (D,), with N - 1 in the denominator."""
        scatter = self.scatter if self.scatter.ndim == 1 else self.scatter.diagonal()
        return scatter / max(self.total - 1, 1)

    def __add__(self, other: Summary) -> Summary:
        """Add two summaries. Source: Chan, Golub and LeVeque 1983, the pairwise update of mean and scatter."""
        total = self.total + other.total
        share = other.total / total
        step = other.mean - self.mean
        between = (torch.outer(step, step) if self.scatter.ndim == 2 else step * step) * (self.total * share)
        return Summary(
            total,
            self.mean + step * share,
            self.scatter + other.scatter + between,
            torch.minimum(self.minimum, other.minimum),
            torch.maximum(self.maximum, other.maximum),
        )


def summarise(blocks: Blocks, *, outer: bool) -> Summary:
    """Return the summary of all rows that count, the group's other processes' too, in one pass, in float64, on the CPU.

    outer: whether the scatter is (D, D). Raises ValueError where a value is NaN or infinite, or where no row counts.
    """
    own = _total(summary for summary in _summaries(blocks, outer) if summary is not None)
    if own is not None:
        own = Summary(own.total, *(part.cpu() for part in (own.mean, own.scatter, own.minimum, own.maximum)))
    whole = _total(summary for summary in blocks.group.objects(own) if summary is not None)
    if whole is None:
        raise ValueError("no row counts: every sample_weight is zero")
    return whole


def _total(summaries: Iterable[Summary]) -> Summary | None:
    """Return the sum of summaries, of which two are in memory at a time: each of many would keep much around it."""
    found: Summary | None = None
    for summary in summaries:
        found = summary if found is None else found + summary
    return found


def _summaries(blocks: Blocks, outer: bool) -> Iterator[Summary | None]:
    first = 0
    for block, weights in blocks.weighted():
        yield from over_parts(len(block), blocks.device, partial(_summary_of_part, block, weights, outer, first))
        first += len(block)


def _summary_of_part(
    block: torch.Tensor, weights: torch.Tensor | None, outer: bool, first: int, start: int, stop: int
) -> Summary | None:
    found: Summary | None = None
    bytes_of_row = 8 * 4 * block.shape[1]  # in float64, less the mean, times its weight, and one to spare
    step = CHUNK if block.device.type == "cpu" else max(1, share_of_free(block.device, CHUNK_BYTES) // bytes_of_row)
    for low in range(start, stop, step):
        some = slice(low, min(low + step, stop))
        here = _summary(block[some], None if weights is None else weights[some], outer, first + low)
        if here is not None:
            found = here if found is None else found + here
    return found


def _summary(rows: torch.Tensor, weights: torch.Tensor | None, outer: bool, first: int) -> Summary | None:
    """Return the summary of rows (n, D), of which the first is row `first`; None where none of them counts."""
    wide = rows.double()
    total = float(len(rows))
    if weights is not None:
        check_finite(wide, first)
        wide, weights = wide[weights > 0], weights[weights > 0]
        total = float(weights.sum())
        if not len(wide):
            return None
    low, high = wide.aminmax(dim=0)
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        check_finite(wide, first)
    mean = wide.mean(0) if weights is None else (weights @ wide) / total
    wide = wide - mean
    right = wide if weights is None else wide * weights[:, None]
    return Summary(total, mean, wide.T @ right if outer else (wide * right).sum(0), low, high)
