"""Coefficients as the Triton kernels read them: padded, split in two, and with the tight components marked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastclust.kernels.contract import Coefficients

TIGHT = 2e3  # nats of sum lambda m^2; on relu1_2 of VGG-19, 1e3 marks 15 components of 50 and 3e3 marks 2


@dataclass(frozen=True)
class Terms:
    """Hold the coefficients as kernels read them, padded to (components, width); see `triton_parts.log_rho`."""

    diag: bool
    tables: torch.Tensor
    square: torch.Tensor
    const: torch.Tensor
    offset: torch.Tensor
    high: torch.Tensor
    low: torch.Tensor
    precision: torch.Tensor
    loose: torch.Tensor
    order: torch.Tensor
    n_tight: torch.Tensor

    def for_log_rho(self) -> tuple[torch.Tensor, ...]:
        """Return the arguments of `triton_parts.log_rho`."""
        c = self
        return c.tables, c.square, c.const, c.offset, c.high, c.low, c.precision, c.order, c.n_tight

    def about(self, k: int, d: int) -> torch.Tensor:
        """Return the reference points (K, D) float64 of the kernel's moments: m_k of tight components, the origin."""
        there = self.high.double() + self.low.double()
        return (there * (1 - self.loose.double())[:, None])[:k, :d]


def terms(coefficients: Coefficients, components: int, width: int, fast: bool = False) -> Terms:
    """Return coefficients as kernels read them, padded to components and width; the host does not wait for them."""
    m, diag = coefficients.means, coefficients.covariance_type == "diag"
    precision = coefficients.precision if diag else coefficients.precision[:, None]
    square = (precision * m**2).sum(1)  # (K,)
    tight = square > TIGHT
    loose = (~tight).double()
    half = -0.5 * coefficients.precision * (loose[:, None] if diag else loose)
    tables = [*split_in_two(padded(precision * m * loose[:, None], components, width).T, fast)]
    if diag:
        tables += split_in_two(padded(half, components, width).T, fast)
    const = (coefficients.offset - 0.5 * square).masked_fill(tight, -torch.inf)
    padded_tight = padded(tight.double(), components) > 0
    high = m.float()
    return Terms(
        diag,
        torch.stack(tables),
        torch.zeros(1, device=m.device) if diag else padded(half, components).float(),
        padded(const, components, fill=-torch.inf).float(),
        padded(coefficients.offset, components, fill=-torch.inf).float(),
        padded(high, components, width),
        padded((m - high.double()).float(), components, width),
        padded(precision.expand_as(m), components, width).float(),
        (~padded_tight).float(),
        (~padded_tight).int().argsort(stable=True).int(),
        tight.sum(dtype=torch.int32)[None],
    )


def split_in_two(values: torch.Tensor, fast: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float64 values as a sum of two, as `triton_parts.split`: bfloat16 where fast, else float32 of ten bits."""
    if fast:
        high = values.bfloat16()
        return high, (values - high.double()).bfloat16()
    high = _rounded(values.float())
    return high, _rounded((values - high.double()).float())


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return ((values.contiguous().view(torch.int32) + 0x1000) & -0x2000).view(torch.float32)


def plain_terms(diag: bool, about: torch.Tensor, components: int, width: int) -> Terms:
    """Return terms for moments of given responsibilities: no component is tight."""
    zero = torch.zeros_like(about)
    precision = zero if diag else zero[:, 0]
    return terms(Coefficients("diag" if diag else "spherical", zero[:, 0], zero, precision), components, width)


def padded(values: torch.Tensor, *size: int, fill: float = 0.0) -> torch.Tensor:
    """Return values in the first places of a tensor of a size, and fill in the others."""
    out = torch.full(size, fill, dtype=values.dtype, device=values.device)
    out[tuple(slice(n) for n in values.shape)] = values
    return out
