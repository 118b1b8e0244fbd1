r"""Small problems on which float32 errs by little, and a kernel that is broken by much.

Values have a few bits and a remainder that is the same part of a unit in all of them: rows, their squares, lambda and
lambda m. What a split product loses without its low terms then adds up over columns and rows, and does not average out.

    mixed     rows lie halfway between two components: responsibilities of all sizes
    pairs     components are the same by twos but for a share of 1/3 and 2/3, numbers with a remainder, and the pairs
              lie far apart where there are columns enough: what is left is the error of the sums
    tight     as pairs, every second pair 32 away from the origin: sum lambda m^2 is above 1e4, and written as products
              ln rho would be lost

Weights, where there are any, are 0, 1/3, 1/2, 1 or 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastclust.kernels.contract import Coefficients, CovarianceType, Frame, Precision

PROBLEMS = ("mixed", "pairs", "tight")
AWAY = 32.0  # bfloat16 has quarters there
SHARP = {"mixed": 3.0, "pairs": 32.0, "tight": 32.0}  # sum lambda of a component
BITS: dict[Precision, int] = {"high": 10, "fast": 7}  # of the mantissa of a split's parts
ROWS = (1031, 4099)
ROOTS = 7  # different ones: the host makes them


@dataclass(frozen=True)
class Problem:
    """Hold rows (n, D) as stored, the frame that they are read in, coefficients and weights (n,), on one device.

    at_hand: whether the rows are some of those that the proof is for.
    """

    rows: torch.Tensor
    coefficients: Coefficients
    frame: Frame
    weights: torch.Tensor | None
    at_hand: bool = False


def rows_for(n_components: int) -> int:
    """Return how many rows a problem has, so that every component has some: no multiple of a tile."""
    return min(max(4 * n_components + 7, ROWS[0]), ROWS[1])


def make(
    name: str,
    like: torch.Tensor,
    coefficients: Coefficients,
    frame: Frame,
    weighted: bool,
    precision: Precision,
    n_rows: int | None = None,
) -> Problem:
    """Return a problem that a kernel cannot tell by its shape from one of rows like these (N, D) and coefficients."""
    kind, device = coefficients.covariance_type, like.device
    k, d = coefficients.means.shape
    n = n_rows or rows_for(k)
    random = torch.Generator().manual_seed(PROBLEMS.index(name))
    part = (0.4 if kind == "full" else 0.12) * 2.0 ** -BITS[precision]  # of a unit, of what is split
    groups = k if name == "mixed" else -(-k // 2)
    centres = _few_bits(random, groups, d)  # (G, D)
    first, second = (torch.randint(groups, (n,), generator=random) for _ in range(2))
    first[: min(groups, n)] = torch.arange(min(groups, n))  # each has a row at least
    other = centres[second] if name == "mixed" else _few_bits(random, n, d).abs() * centres[first].sign()
    chance = 0.5 if name == "mixed" else 0.2
    y = torch.where(torch.rand(n, d, generator=random) < chance, other, centres[first])
    away = torch.zeros(groups)
    if name == "tight":
        away[::2] = AWAY
    centres, y = centres + away[:, None], y + away[first, None]
    stored, read = _stored(y.double(), like.dtype, frame, part)
    group = torch.arange(k) if name == "mixed" else torch.arange(k) // 2
    share = 0.5 * torch.randn(k, generator=random) if name == "mixed" else torch.log1p((torch.arange(k) % 2).float())
    weights = None
    if weighted:
        weights = torch.tensor([0.0, 1 / 3, 0.5, 1.0, 2.0], dtype=torch.float64)
        weights = weights[torch.randint(5, (n,), generator=random)].to(device)
    offset, means = share.double(), centres[group].double()
    of_kind = Coefficients(
        kind, offset.to(device), means.to(device), _precision(kind, name, group, d, part, random, device)
    )
    return Problem(laid_out(stored.to(device), like), of_kind, read.to(device), weights)


def laid_out(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return rows (n, D) in the dtype of others, with strides of the same kind: a compiler looks at 1 and 16."""
    n, d = rows.shape
    down, along = like.stride()
    if along == 1 or d == 1:
        out = torch.empty(n, d + (down - d) % 16, dtype=like.dtype, device=rows.device)[:, :d]
    elif down == 1:
        out = torch.empty(d, n + (along - n) % 16, dtype=like.dtype, device=rows.device)[:, :n].T
    else:
        out = torch.empty(n, d, 2, dtype=like.dtype, device=rows.device)[:, :, 0]
    return out.copy_(rows)


def _few_bits(random: torch.Generator, *size: int) -> torch.Tensor:
    """Return numbers of three bits, 1 to 1.75 with a sign."""
    size_of = 1 + 0.25 * torch.randint(4, size, generator=random)
    return torch.where(torch.rand(size, generator=random) < 0.5, -size_of, size_of)


def _stored(y: torch.Tensor, stored: torch.dtype, frame: Frame, part: float) -> tuple[torch.Tensor, Frame]:
    """Return rows as stored, and a frame of the same parts as another, in which they are y (n, D) with a remainder."""
    one = torch.ones(y.shape[1], dtype=torch.float64)
    if frame.shift is not None:  # the remainder is in the shift
        scale = 0.5 if frame.scale is not None else 1.0
        shift = (0.5 - part / scale) * one
        return y / scale + 0.5, Frame(shift.float().double(), None if frame.scale is None else scale * one)
    if frame.scale is not None:
        return y, Frame(None, ((1 + part) * one).float().double())
    remainder = {torch.float16: 2.0**-10, torch.bfloat16: 3 * 2.0**-7}.get(stored, part)
    return torch.where(y.abs() < 4, y + remainder, y), Frame()


def _precision(
    kind: CovarianceType,
    name: str,
    group: torch.Tensor,
    d: int,
    part: float,
    random: torch.Generator,
    device: torch.device,
) -> torch.Tensor:
    """Return lambda or R, float64: powers of two and numbers of three bits, with a remainder. group: (K,), of R."""
    k = len(group)
    sharp = 2.0 ** math.floor(math.log2(SHARP[name] / d)) * (1 + part)
    if kind in ("diag", "spherical"):
        size = (k, d) if kind == "diag" else (k,)
        power = torch.randint(-1, 2, size, generator=random) if name == "mixed" else torch.zeros(size)
        return (sharp * 2.0 ** power.double()).to(device)
    below = _few_bits(random, min(k, ROOTS), d, d).double().tril(-1) * 2.0 ** -math.ceil(2 + 0.5 * math.log2(d))
    size_of = 2.0 ** math.floor(0.5 * math.log2(SHARP[name] / d)) * (1 + part)
    root = (size_of * (torch.eye(d, dtype=torch.float64) + below)).to(device)
    return root[(group % len(root)).to(device)] if kind == "full" else root[0]
