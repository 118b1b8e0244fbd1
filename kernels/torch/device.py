"""The forms of `forms` where rows are on an accelerator: none looks at a value, for then the host would wait.

    spherical, diag    Linear in float64: in float32, tight components would have to be found and taken again
    tied               as on the CPU, where it is float64 and chooses nothing
    full               every row for every component, several components in one batched product

The scatter of full covariance is summed in float64, as on the CPU, and its ln rho is in the dtype of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastclust.kernels.contract import Coefficients
from fastclust.kernels.memory import share_of_free
from fastclust.kernels.torch import forms
from fastclust.kernels.torch.forms import TILE_BYTES_DEVICE, Form, Linear, Space, Sums, Tied

WIDE = 2 * 8  # bytes that a component's differences from a row take, a feature, and again with weights


def form_on(device: torch.device, coefficients: Coefficients, dtype: torch.dtype) -> Form:
    """Return the E-step of coefficients for rows of a dtype on a device."""
    if device.type == "cpu":
        return forms.form_of(coefficients, dtype)
    return form_of(coefficients, dtype)


def form_of(coefficients: Coefficients, dtype: torch.dtype) -> Form:
    """Return the E-step of coefficients without a look at their values."""
    if coefficients.covariance_type == "full":
        return Full(coefficients, dtype)
    if coefficients.covariance_type == "tied":
        return Tied(coefficients, dtype)
    return Linear(coefficients, torch.float64)


class Full(forms.Full):
    """The E-step of full covariance, for several components at once."""

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype) -> None:
        super().__init__(coefficients, dtype)
        self.room = share_of_free(coefficients.means.device, TILE_BYTES_DEVICE)

    def row_bytes(self) -> int:
        """Return what a row of a tile takes, with one component's differences, and row and shares in float64."""
        return super().row_bytes() + WIDE * self.n_features + 8 * (self.n_features + self.n_components)

    def log_rho(self, y: torch.Tensor, space: Space) -> torch.Tensor:
        """Return ln rho (K, n) of rows (n, D)."""
        logits = space.logits(len(y))
        roots, bias = self.roots[:, :, :-1], self.roots[:, None, :, -1]  # (K, D, D), (K, 1, D)
        for some in _groups(y, self.n_components, self.room):
            root = torch.baddbmm(bias[some], y - self.means[some, None], roots[some].mT)  # (g, n, D)
            torch.sum(root.square_(), 2, out=logits[some])
        return torch.add(self.const, logits, alpha=-0.5, out=logits)

    def add_moments(self, y: torch.Tensor, p: torch.Tensor, space: Space, total: Sums) -> None:
        """Add the moments of rows (n, D) for responsibilities p (K, n)."""
        total.rest += p.sum(1, keepdim=True, dtype=torch.float64)
        sx, sxx = scatter(y.double(), p.double(), self.about, self.room)
        total.sx += sx
        total.sxx += sxx


def scatter(
    y: torch.Tensor, r: torch.Tensor, about: torch.Tensor, room: int = TILE_BYTES_DEVICE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sum_n r_kn (y_n - c_k) (K, D) and the same sum of outer products (K, D, D).

    y: (n, D) float64. r: (K, n) float64. about: c (K, D) float64. room: bytes for what is found at a time.
    """
    k, d = about.shape
    sx, sxx = y.new_empty(k, d), y.new_empty(k, d, d)
    for some in _groups(y, k, room):
        difference = y - about[some, None]  # (g, n, D)
        weighted = difference * r[some, :, None]
        torch.sum(weighted, 1, out=sx[some])
        torch.bmm(weighted.mT, difference, out=sxx[some])
    return sx, sxx


def _groups(y: torch.Tensor, n_components: int, room: int) -> Iterator[slice]:
    """Iterate over the components, as many at once as have room for their differences from rows (n, D)."""
    size = max(1, room // (WIDE * max(y.numel(), 1)))
    for low in range(0, n_components, size):
        yield slice(low, low + size)
