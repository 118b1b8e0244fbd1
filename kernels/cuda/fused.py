"""Coefficients as the kernel on tensor cores reads them."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from fastclust.kernels.contract import Coefficients
from fastclust.kernels.cuda import launch
from fastclust.kernels.expanded import LEAST, expand

FLUSH = np.int32(8)  # tiles that float32 sums hold before they go to float64


class Tables:
    """Coefficients of K components of D features, padded to a cut, at addresses that stay.

    padded: float32, see products.cuh. tight: (1 + K,) int32: how many are tight, and all, those first.
    """

    def __init__(self, cut: launch.Fused, k: int, d: int, device: torch.device) -> None:
        self._k, self._d = k, d
        cells = cut.components * cut.columns
        sizes = [2 * cells, 3 * cells, cut.spans * cut.components, cut.components]
        self.padded = launch.empty(sum(sizes), dtype=torch.float32, device=device)
        self.tight = launch.empty(1 + k, dtype=torch.int32, device=device)
        table, direct, constants, offsets = torch.split(self.padded.zero_(), sizes)
        self._table = table.view(cut.components, cut.columns // 8, 4, 2, 2)  # of column 8 i + j + 4 h: (K, i, j, _, h)
        self._direct = direct.view(3, cut.components, cut.columns)[:, :k, :d]
        self._constants, self._offsets = constants.view(cut.spans, cut.components), offsets[:k]
        self._constants[0].fill_(LEAST)

    def renew(self, coefficients: Coefficients, table: torch.Tensor) -> None:
        """Take coefficients, on the device alone; table: (K + 3 K D,) float32, as the other kernels read them."""
        found, k, beyond = expand(coefficients), self._k, (0, self._table.shape[1] * 8 - self._d)
        for i, part in enumerate((found.linear, found.quadratic.expand_as(found.linear))):
            self._table[:k, :, :, i].copy_(pad(part, beyond).view(k, -1, 2, 4).transpose(2, 3))
        self._offsets.copy_(table[:k])
        self._direct.copy_(table[k:].view(self._direct.shape))
        square = pad(found.linear * coefficients.means, beyond).view(k, len(self._constants), -1).sum(2)
        constants = -0.5 * square  # (K, spans)
        constants[:, 0] += found.constant - constants.sum(1)
        self._constants[:, :k].copy_(constants.T)
        self.tight[0].copy_(found.tight.sum())
        self.tight[1:].copy_((~found.tight).int().argsort(stable=True))
