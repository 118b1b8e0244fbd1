r"""Whether a pass adds up: its sums over components against the column sums that a fit knows before its first pass.

Responsibilities of a row sum to one, so for moments about points c_k, whatever the mixture,

    sum_k nk_k = sum_n w_n,   sum_k (sx_k + nk_k c_k) = sum_n w_n y_n,   sum_k sum_n w_n r_nk y_n^2 = sum_n w_n y_n^2

column by column; for spherical covariance the last summed over columns, for tied it is not the pass's. It holds over
all rows and all components, so it sees what no sample of rows can: a tile left out, or float32 sums that drift.

Errors are relative to what cannot cancel: N, N rms(y_d) and N rms(y_d)^2, and what moving the moments from c_k to the
origin takes away again. In rms(y_d) is what float32 resolves of a stored value there, so that a column without
variance is no division by zero. What the rounding of the frame's shift does to a column is allowed on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from fastclust.kernels import Backend, CovarianceType, Precision, Statistics, precisions, ran
from fastclust.kernels.bounds import COLUMN_SUMS as TOLERANCE
from fastclust.kernels.bounds import checked as checked
from fastclust.rows import Rows
from fastclust.summary import Summary

STRICTEST = min(TOLERANCE.values())


class WrongSumsError(RuntimeError):
    """The sums of a pass over the rows are not the rows' own: the kernels of a backend do not work on this device."""


@dataclass(frozen=True)
class ColumnSums:
    """Hold what the statistics of a pass have to sum to; on the passes' device, float64.

    backend, precision: of the passes; module: what chooses the backend, if anything does. expected: (1 + D + D,), the
    rows' number, sums and sums of squares, of which spherical has one and tied none. scale: the same shape, what errors
    are relative to.
    """

    backend: str
    precision: Precision
    expected: torch.Tensor
    scale: torch.Tensor
    module: Backend | None = None

    def of(self, rows: Rows) -> ColumnSums:
        """Return these sums for the same rows in another precision."""
        return replace(self, precision=_precision(rows))

    @property
    def tolerance(self) -> float:
        """The largest relative error that is no fault, of the arithmetic of what passed over rows last."""
        exact = self.module is not None and "fast" not in precisions(self.module)
        return TOLERANCE["high" if exact else self.precision]

    def worst(self, statistics: Statistics) -> torch.Tensor:
        """Return the largest relative error () of the sums over components; the host does not wait for it."""
        found, scale = self._found(statistics)
        return ((found - self.expected).abs() / scale).amax()

    def _found(self, statistics: Statistics) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sums over components, and what their errors are relative to, as `expected`."""
        nk, sx, sxx, about = statistics.nk[:, None], statistics.sx, statistics.sxx, statistics.about
        moved = nk * about  # (K, D)
        found, own = [nk, sx + moved], [torch.zeros_like(nk), moved.abs()]
        if sxx is not None:
            across, square = torch.add(moved, sx, alpha=2) * about, moved * about  # 2 sx c + nk c^2 and nk c^2
            if sxx.ndim == 1:
                sxx, across, square = sxx[:, None], across.sum(1, keepdim=True), square.sum(1, keepdim=True)
            found.append((sxx.diagonal(dim1=1, dim2=2) if sxx.ndim == 3 else sxx) + across)
            own.append(square)
        return torch.cat(found, 1).sum(0), self.scale + torch.cat(own, 1).sum(0)

    def check(self, statistics: Statistics, n_pass: int) -> None:
        """Raise WrongSumsError where a sum is wrong; the host waits for the device."""
        self.judge(float(self.worst(statistics)), statistics, n_pass)

    def judge(self, worst: float, statistics: Statistics, n_pass: int) -> None:
        """Raise WrongSumsError, with its numbers, where the largest relative error of the sums is too large."""
        if worst <= self.tolerance:
            return
        found, scale = (part.cpu() for part in self._found(statistics))
        expected = self.expected.cpu()
        error = ((found - expected).abs() / scale).nan_to_num(nan=math.inf)
        at, n_features = int(error.argmax()), statistics.sx.shape[1]
        if at == 0:
            what = "the number of rows"
        elif at <= n_features:
            what = f"the sum of column {at - 1}"
        elif statistics.sxx is not None and statistics.sxx.ndim == 1:
            what = "the sum of the squares of all columns"
        else:
            what = f"the sum of the squares of column {at - 1 - n_features}"
        device = statistics.sx.device
        backend = self.backend if self.module is None else ran(self.module, self.backend)
        instead = "device='cpu'" if backend == "torch" else "backend='torch'"
        raise WrongSumsError(
            f"pass {n_pass} of backend {backend} (precision {self.precision}) on {device} does not add up: over "
            f"all components {what} (counted from 0, in the passes' coordinates) is {float(found[at]):.9g}, and over "
            f"the rows {float(expected[at]):.9g}: an error of {float(error[at]):.2g}, where {self.tolerance:.0e} is "
            f"allowed. A model of such sums would be wrong. `fastclust doctor --prove` says which kernels work on this "
            f"device; fit with {instead} meanwhile"
        )


def column_sums(summary: Summary, rows: Rows, kind: CovarianceType, backend: str) -> ColumnSums:
    """Return what passes over rows have to sum to, from the rows' summary; backend: its name."""
    offset, scale, centre = (part.cpu() for part in (rows.offset, rows.scale, rows.centre))
    total = summary.total
    mean = (summary.mean - offset) * scale - centre  # (D,)
    scatter = summary.scatter if summary.scatter.ndim == 1 else summary.scatter.diagonal()
    square = scale**2 * scatter + total * mean**2  # (D,)
    shift = offset + centre / scale
    rms = (square / total).sqrt() + 2.0**-24 * shift.abs() * scale
    rounding = 64 * torch.finfo(torch.float64).eps * shift.abs()
    if rows.dtype != torch.float64:
        rounding = rounding + (shift - shift.float()).abs()
    allowed = rounding * scale  # (D,), of a row, whatever the tolerance
    first, second = rms + allowed / STRICTEST, rms**2 + (2 * rms * allowed + allowed**2) / STRICTEST
    squares = {"spherical": (square.sum()[None], second.sum()[None]), "tied": (square[:0], second[:0])}
    last = squares.get(kind, (square, second))
    number = torch.tensor([total], dtype=torch.float64)
    expected = torch.cat([number, total * mean, last[0]])
    relative_to = torch.cat([number, total * first, total * last[1]]) + torch.finfo(torch.float64).tiny
    device = rows.blocks.device
    return ColumnSums(backend, _precision(rows), expected.to(device), relative_to.to(device), rows.backend)


def _precision(rows: Rows) -> Precision:
    """Return the precision of passes over rows: a backend of one arithmetic uses it, whatever it is asked for."""
    return rows.precision if "fast" in rows.backend.PRECISIONS else "high"
