r"""How far healthy float32 kernels may be from float64, for the rows and coefficients at hand.

No fixed tolerance is right where precisions lambda reach 1e6, so it follows from the problem's conditioning. With u the
unit roundoff of float32, s what a split product loses (3 x 2^-20 for tf32, 3 x 2^-14 for bfloat16: low times low and
what each low part leaves, by truncation) and t = s + u min(D, 128) for a product and its accumulation, which a tensor
core rounds toward zero, ln rho_nk errs by at most

    diag, spherical       e_nk = t/2 sum_d lambda_kd (|y_nd| + |m_kd|)^2           written as products
    where sum lambda m^2  e_nk = 4u sqrt(q_nk sum_d lambda_kd (|y_nd| + |m_kd|)^2)   y - m is taken before it is squared
    is above FAR                 q_nk = sum_d lambda_kd (y_nd - m_kd)^2
    tied, full            e_nk = |R (y - m)| |E| + |E|^2 / 2,   E = t |R| |y - m| + 4u |R| (|y| + |m|)

and by u times what is added up. Between the ln rho that are all e too high or too low lie a row's log-density and its
responsibilities, and d_nk, how far from r_nk the latter may be, is what the sums over rows get:

    nk      sum_n w d_nk + a nk                 a = s + 256 u: sums over a few hundred rows are float32
    sx      sum_n w d_nk |y - m| + a sum_n w r_nk |y - m|, with |y - m| + |m| where moments are about the origin
    sxx     the same of squares                 Cauchy's inequality makes each a product of (K, N) and (N, D)

Over all components responsibilities sum up to one, whatever they are: sum_k nk, sum_k sx and sum_k sxx have only the
terms in a. Of rows of a fit they are held to what its passes will be held to (`fastclust.sums`), so that a kernel that
would fail there is passed over before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastclust.kernels.contract import Coefficients, Frame, Precision, Statistics

UNIT = 2.0**-24
WIDE_UNIT = 2.0**-45  # of float64, with room for a few hundred operations
SPLIT: dict[Precision, float] = {"high": 3 * 2.0**-20, "fast": 3 * 2.0**-14}
# Of sums over all components, relative to N rms(y) and its square. "high" loses 2^-20 of y, y^2 and r at most, and that
# much again, low times low: 5e-7 in the interpreter, of rows half of which are alike. "fast" loses 2^-14 of each, which
# of rows that are alike has one sign: 6e-5 there, and no more than 3 x 2^-14 whatever the rows. Responsibilities that
# are dropped are below e^-40 of a row's largest: far below either.
COLUMN_SUMS: dict[Precision, float] = {"high": 2e-6, "fast": 2e-4}
FAR = 1e4  # nats of sum lambda m^2: from 3e3 at the latest, every backend subtracts first
COLUMNS = 128  # of products at most accumulate before others are of their size
MOST = 60.0  # nats; beyond it nothing is known of a responsibility, and exp stays finite
GROUP_BYTES = 256 << 20

Found = dict[str, tuple[float, float]]  # quantity: the error and its tolerance, where it is worst


def checked(device: torch.device) -> bool:
    """Say whether passes on a device are held against the sums of their columns: on all but the CPU."""
    return device.type != "cpu"


@dataclass(frozen=True)
class Expected:
    """Hold what rows have in float64, (n, K) but for the last, and by how much a healthy kernel may err.

    log_rho: ln rho. e: its error. r, d: responsibilities and their error. density: ln sum_k rho (n,).
    """

    log_rho: torch.Tensor
    e: torch.Tensor
    r: torch.Tensor
    d: torch.Tensor
    density: torch.Tensor
    density_error: torch.Tensor


def expected(
    y: torch.Tensor, r: torch.Tensor, density: torch.Tensor, coefficients: Coefficients, precision: Precision
) -> Expected:
    """Return what is expected of rows y (n, D) as seen in the frame, float64; r (n, K), density (n,) in float64."""
    log_r = r.log().clamp(min=-745.0)  # the least that float64 has
    log_rho = log_r + density[:, None]
    square = 2 * (coefficients.offset - log_rho).clamp(min=0)  # (n, K)
    steps = 8 + min(coefficients.n_features, COLUMNS)
    product = SPLIT[precision] + UNIT * steps
    if coefficients.covariance_type in ("tied", "full"):
        size = _error_of_roots(y, coefficients, product if coefficients.covariance_type == "full" else 0.0)
        e = square.sqrt() * size + 0.5 * size**2
    else:
        both, square_of_mean = _magnitudes(y, coefficients)
        direct = 4 * UNIT * (square * both).sqrt() + (4 * UNIT) ** 2 * both
        e = torch.where(square_of_mean > FAR, direct, 0.5 * product * both)
    e = e + UNIT * (steps * (coefficients.offset.abs() + 0.5 * square) + 16 + 4 * log_r.abs())
    above, below = r * e.clamp(max=MOST).exp(), r * (-e.clamp(max=MOST)).exp()
    sum_above, sum_below = above.sum(1, keepdim=True), below.sum(1, keepdim=True)
    most = above / (above + (sum_below - below).clamp(min=0))
    least = below / (below + (sum_above - above).clamp(min=0))
    d = torch.maximum(most - r, r - least).nan_to_num(0.0).clamp(0, 1) + 1e-15
    spread = torch.maximum(sum_above.log(), -sum_below.log())[:, 0]
    return Expected(log_rho, e, r, d, density, spread + 8 * UNIT * (1 + density.abs()))


def _magnitudes(y: torch.Tensor, coefficients: Coefficients) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sum_d lambda (|y| + |m|)^2 (n, K) and sum_d lambda m^2 (K,)."""
    m = coefficients.means
    precision = coefficients.precision if coefficients.precision.ndim == 2 else coefficients.precision[:, None]
    scale = precision.expand_as(m)
    square = (scale * m**2).sum(1)
    return y**2 @ scale.T + 2 * y.abs() @ (scale * m.abs()).T + square, square


def _error_of_roots(y: torch.Tensor, coefficients: Coefficients, product: float) -> torch.Tensor:
    """Return |E| (n, K), see the module."""
    m, root = coefficients.means, coefficients.precision.abs()
    if root.ndim == 2:
        each = 4 * UNIT * (y.abs() + m.abs().amax(0))  # (n, D)
        size_of: torch.Tensor = torch.linalg.vector_norm(each @ root.T, dim=1)
        return size_of[:, None].expand(-1, len(m))
    out = y.new_empty(len(y), len(m))
    size = max(1, GROUP_BYTES // (32 * max(y.numel(), 1)))
    for low in range(0, len(m), size):
        some = slice(low, low + size)
        centre = m[some, None]
        each = product * (y - centre).abs() + 4 * UNIT * (y.abs() + centre.abs())  # (g, n, D)
        out[:, some] = torch.linalg.vector_norm(torch.bmm(each, root[some].mT), dim=2).T
    return out


def of_labels(labels: torch.Tensor, density: torch.Tensor, known: Expected, copies: int = 1) -> Found:
    """Return the errors of labels and log-densities (copies n,), of copies of the rows one after the other.

    A label errs by what its component is less probable.
    """
    n, k = known.r.shape
    if labels.shape != (copies * n,) or density.shape != labels.shape or bool(((labels < 0) | (labels >= k)).any()):
        return {"labels": (math.inf, 0.0)}
    index = labels.long().view(copies, n).T  # (n, copies)
    best, place = known.log_rho.max(1, keepdim=True)
    less = best - known.log_rho.gather(1, index)
    allowed = known.e.gather(1, place) + known.e.gather(1, index)
    difference = density.double().view(copies, n) - known.density
    return {"labels": worst(less, allowed), "density": worst(difference, known.density_error)}


def of_responsibilities(found: torch.Tensor, known: Expected) -> Found:
    """Return the error of responsibilities (n, K)."""
    if found.shape != known.r.shape:
        return {"responsibilities": (math.inf, 0.0)}
    return {"responsibilities": worst(found.double() - known.r, known.d + 8 * UNIT * known.r)}


def of_statistics(
    found: Statistics,
    truth: Statistics,
    y: torch.Tensor,
    weighted: torch.Tensor,
    errors: torch.Tensor | None,
    coefficients: Coefficients,
    direct: torch.Tensor,
    precision: Precision,
) -> Found:
    """Return the errors of sums over rows y (n, D), all float64.

    truth: the same sums in float64, about the means m_k of components that are direct, and the origin. weighted:
    (n, K), w r. errors: (n, K), w d, or None where responsibilities are given. direct: (K,), whether every backend
    takes a component's moments about its mean from the start; others may be about the mean or the origin.
    """
    if (found.sxx is None) != (truth.sxx is None) or found.sx.shape != truth.sx.shape:
        return {"shapes": (math.inf, 0.0)}
    about, adding = truth.about, SPLIT[precision] + 256 * UNIT
    at_origin = torch.zeros_like(about)
    here = found.moved(about)
    nk = weighted.sum(0)
    lost = torch.zeros_like(nk) if errors is None else errors.sum(0)
    tiny = WIDE_UNIT * (nk.sum() + 1)
    moving = WIDE_UNIT * nk.sum() * (1 + coefficients.means**2)  # (K, D), what float64 loses between reference points
    own = _second(weighted, y, about)  # sum w r (y - c)^2
    far = nk[:, None] * coefficients.means**2
    reach = torch.where(direct[:, None], own.sqrt() + 8 * UNIT / adding * far.sqrt(), own.sqrt() + far.sqrt())  # (K, D)
    missed = torch.zeros_like(own) if errors is None else _second(errors, y, about)
    out = {
        "nk": worst(here.nk - truth.nk, lost + adding * nk + tiny),
        "sx": worst(here.sx - truth.sx, (lost[:, None] * missed).sqrt() + adding * nk.sqrt()[:, None] * reach + moving),
        "sum of nk": worst(here.nk.sum() - nk.sum(), adding * nk.sum() + tiny),
    }
    origin, whole = here.moved(at_origin), truth.moved(at_origin)
    level = _second(weighted, y, at_origin).sqrt() + torch.where(direct[:, None], 0.0, far.sqrt())  # (K, D)
    spread = (nk.sqrt()[:, None] * level).sum(0)
    out["sum of sx"] = worst(origin.sx.sum(0) - whole.sx.sum(0), adding * spread + moving.sum(0))
    if here.sxx is not None and truth.sxx is not None and origin.sxx is not None and whole.sxx is not None:
        allowed, total = missed + adding * reach**2 + moving, (adding * level**2 + moving).sum(0)
        difference, sums = here.sxx - truth.sxx, origin.sxx.sum(0) - whole.sxx.sum(0)
        if coefficients.covariance_type == "full":
            root, of_total = allowed.sqrt(), total.sqrt()
            allowed, total = root[:, :, None] * root[:, None, :], of_total[:, None] * of_total
        elif coefficients.covariance_type == "spherical":
            allowed, total = allowed.sum(1), total.sum()
        out["sxx"], out["sum of sxx"] = worst(difference, allowed), worst(sums, total)
    return out


def of_columns(found: Statistics, y: torch.Tensor, w: torch.Tensor, frame: Frame, precision: Precision) -> Found:
    """Return the errors of sums over all components, as a pass is held against those of its columns.

    y: (n, D) float64, rows as seen in the frame; w: (n,) float64.
    """
    number, about, resolved = w.sum(), found.about, torch.zeros_like(y[0])
    if frame.shift is not None:  # what float32 resolves of a stored value there
        resolved = UNIT * frame.shift.abs() * (1.0 if frame.scale is None else frame.scale)
    rms = ((w @ y**2) / number.clamp(min=WIDE_UNIT)).sqrt() + resolved  # (D,)
    moved = found.nk[:, None] * about  # (K, D)
    most, tiny = COLUMN_SUMS[precision], WIDE_UNIT**2
    out = {
        "rows of columns": worst(found.nk.sum() - number, most * number + tiny),
        "columns": worst((found.sx + moved).sum(0) - w @ y, most * (number * rms + moved.abs().sum(0)) + tiny),
    }
    if found.sxx is None:
        return out
    across, own = ((2 * found.sx + moved) * about).sum(0), (moved * about).sum(0)  # (D,)
    square, level = w @ y**2, number * rms**2 + own
    if found.sxx.ndim == 1:
        across, square, level = across.sum(), square.sum(), level.sum()
    squares = found.sxx.diagonal(dim1=1, dim2=2) if found.sxx.ndim == 3 else found.sxx
    return out | {"squares of columns": worst(squares.sum(0) + across - square, most * level + tiny)}


def of_totals(found: Statistics, truth: Statistics, known: Expected, w: torch.Tensor) -> Found:
    """Return the errors of log_norm and entropy; w: (n,) float64."""
    log_r = known.r.log().clamp(min=-745.0).abs()
    spread = (w[:, None] * known.d * (1 + torch.minimum(log_r, 1 - known.d.log()))).sum()
    return {
        "log_norm": worst(found.log_norm - truth.log_norm, (w * known.density_error).sum() + 1e-12),
        "entropy": worst(found.entropy - truth.entropy, spread + 2.0**-18 * (w.sum() + truth.entropy) + 1e-12),
    }


def _second(share: torch.Tensor, y: torch.Tensor, about: torch.Tensor) -> torch.Tensor:
    """Return sum_n share_nk (y_nd - c_kd)^2 (K, D)."""
    return (share.T @ y**2 - 2 * about * (share.T @ y) + share.sum(0)[:, None] * about**2).clamp(min=0)


def worst(difference: torch.Tensor, allowed: torch.Tensor) -> tuple[float, float]:
    """Return the difference and the tolerance where their ratio is largest; what is no number is infinitely wrong."""
    if difference.numel() == 0:
        return 0.0, 1.0
    allowed = allowed.expand(difference.shape).reshape(-1)
    difference = difference.abs().nan_to_num(math.inf, math.inf).reshape(-1)
    place = (difference / allowed).argmax()
    return float(difference[place]), float(allowed[place])
