"""What the plans of the numba backend share: what they were prepared with, and what they leave to the torch backend."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch

from fastclust.kernels import torch as plain
from fastclust.kernels.contract import Coefficients, Frame, Totals

T = TypeVar("T")


class Prepared(Totals, Generic[T]):
    """An E-step whose coefficients are in tables, as a kernel reads them; see `fastclust.kernels.contract.Plan`."""

    def __init__(
        self, tables: T, coefficients: Coefficients, frame: Frame, dtype: torch.dtype, block_rows: int | None
    ) -> None:
        super().__init__()
        self.tables, self.coefficients, self.frame = tables, coefficients, frame
        self.dtype, self.block_rows = dtype, block_rows

    def responsibilities(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the responsibilities (n, K), which a user asks for once: by the torch backend."""
        whole = plain.prepare(self.coefficients, self.frame, self.dtype, block_rows=self.block_rows)
        return whole.responsibilities(rows)
