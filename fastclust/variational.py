"""The equations of the variational mixture: priors, posteriors, expectations and the bound, on K-sized float64 tensors.

    alpha          concentration of the Dirichlet process, or of each weight of a finite Dirichlet
    gamma1, gamma2 Beta posterior of the sticks: v_k ~ Beta(gamma1_k, gamma2_k)   Blei & Jordan 2006, eq. 18-19
    beta, m        Gaussian posterior of the means: N(m_k, (beta_k Lambda_k)^-1)   Bishop 2006, eq. 10.60-10.61
    nu, W          Wishart posterior of the precisions                            Bishop 2006, eq. 10.62-10.63
    covariances    W_k^-1 / nu_k, the scale's inverse per degree of freedom

They follow scikit-learn's BayesianGaussianMixture, so that fits can be compared number by number, also where it departs
from the books:
- each component gets 10 eps rows at the origin of the user's coordinates and reg_covar on its covariance's diagonal;
- nu_k = nu_0 + N_k: the book's eq. 10.63 in its first printing adds one more, which its errata take back;
- spherical and diag use the Wishart's terms, not a product of Gammas;
- the last stick stays a Beta, with gamma2 = alpha, where Blei & Jordan set v_K = 1;
- the bound leaves out what no posterior changes. It is the summed bound, in nats.

Coordinates are relative to any fixed point; `Prior.origin` says where the user's own origin lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

CovarianceType = Literal["full", "tied", "diag", "spherical"]
WeightPrior = Literal["dirichlet_process", "dirichlet_distribution"]

PSEUDO_ROWS = 10 * torch.finfo(torch.float64).eps


class IllDefinedCovarianceError(ValueError):
    """A covariance is not positive definite."""

    def __init__(self) -> None:
        super().__init__(
            "Fitting the mixture model failed because some components have ill-defined empirical covariance: it is not "
            "positive definite (single or collapsed rows, or columns that are copies of one another). Use fewer "
            "components, a larger reg_covar, or float64"
        )


@dataclass(frozen=True)
class Prior:
    """Hold the priors of the mixture; all tensors float64.

    alpha: concentration. beta: prior weight of the mean, in rows. m: (D,) prior mean. nu: degrees of freedom, > D - 1.
    W_inv: inverse of the Wishart's scale: (D, D) for full and tied, (D,) for diag, () for spherical.
    reg_covar: added to the diagonal of each component's empirical covariance. origin: (D,), the user's origin.
    """

    covariance_type: CovarianceType
    weight_prior: WeightPrior
    alpha: float
    beta: float
    m: torch.Tensor
    nu: float
    W_inv: torch.Tensor
    reg_covar: float
    origin: torch.Tensor


@dataclass(frozen=True)
class Posterior:
    """Hold the posterior of the mixture; all tensors float64.

    gamma1: (K,) Beta's first parameter, or the Dirichlet's concentrations. gamma2: (K,), None for a finite Dirichlet.
    beta: (K,). m: (K, D). nu: (K,), for tied (). covariances, precisions_cholesky: (K, D, D) full, (D, D) tied,
    (K, D) diag, (K,) spherical; precision = U U^T with U upper triangular, precisions_cholesky = U.
    """

    covariance_type: CovarianceType
    gamma1: torch.Tensor
    gamma2: torch.Tensor | None
    beta: torch.Tensor
    m: torch.Tensor
    nu: torch.Tensor
    covariances: torch.Tensor
    precisions_cholesky: torch.Tensor


def update(
    prior: Prior,
    nk: torch.Tensor,
    sx: torch.Tensor,
    sxx: torch.Tensor,
    about: torch.Tensor,
    inverse_roots: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Posterior:
    """Return the posterior given the rows' statistics (the M-step).

    nk: (K,) responsibilities summed over rows. sx: (K, D) and sxx: first and second moments about the points `about`
    (K, D). sxx is (K, D, D) for full, (K, D) for diag, (K,) (summed over D) for spherical, and for tied (D, D), the
    scatter of all rows about the coordinates' zero.
    inverse_roots: what finds U^T (K, D, D) of full covariances faster than torch does, where there is such.
    Where a covariance is not positive definite, precisions_cholesky is NaN, and so is the lower bound; `check` raises
    then. Nothing here looks at a value: for that, the host would wait for a GPU.
    Source: Bishop 2006, eq. 10.51-10.53 and 10.58-10.63; Blei & Jordan 2006, eq. 18-19.
    """
    _, n_features = sx.shape
    kind = prior.covariance_type
    origin = prior.origin - about  # (K, D)
    rows = nk
    nk = rows + PSEUDO_ROWS
    offset = (sx + PSEUDO_ROWS * origin) / nk[:, None]  # (K, D), the mean as seen from `about`
    xbar = about + offset
    beta = prior.beta + nk
    m = (prior.beta * prior.m + nk[:, None] * xbar) / beta[:, None]
    away = xbar - prior.m  # (K, D)
    shrink = prior.beta / beta  # (K,)

    if kind == "full":
        # sxx - sx offset^T - offset sx^T + rows offset offset^T + shrink nk away away^T, written as three products of a
        # vector with itself, so that the sum is symmetric to the last bit.
        some = rows > 0
        mean = torch.where(some[:, None], sx / torch.where(some, rows, 1.0)[:, None], 0.0)
        vectors = torch.stack([rows.sqrt()[:, None] * (offset - mean), (shrink * nk).sqrt()[:, None] * away], 2)
        minus = (rows.sqrt()[:, None] * mean)[:, :, None]  # (K, D, 1)
        nu = prior.nu + nk
        # On the CPU in NumPy's memory, which for large arrays is of large pages: torch's costs more than the sums do.
        room = torch.from_numpy(np.empty(sxx.shape)) if sxx.device.type == "cpu" else torch.empty_like(sxx)
        left, right = torch.cat([vectors, -minus], 2), torch.cat([vectors, minus], 2).mT
        covariances = torch.baddbmm(sxx, left, right, out=room)
        covariances.add_(prior.W_inv).div_(nu[:, None, None])
        covariances.diagonal(dim1=1, dim2=2).add_((prior.reg_covar * nk / nu)[:, None])
    elif kind == "tied":
        n_components = len(nk)
        total = sxx + PSEUDO_ROWS * origin.T @ origin
        covariance = (total - (nk[:, None] * xbar).T @ xbar) / nk.sum()
        covariance = covariance + prior.reg_covar * torch.eye(n_features, dtype=nk.dtype, device=nk.device)
        mean_rows = nk.sum() / n_components
        W_inv = prior.W_inv + covariance * mean_rows
        W_inv = W_inv + prior.beta / n_components * ((nk / beta)[:, None] * away).T @ away
        nu = prior.nu + mean_rows
        covariances = W_inv / nu
    elif kind == "diag":
        second = (sxx + PSEUDO_ROWS * origin**2) / nk[:, None]
        covariance = second - offset**2 + prior.reg_covar
        nu = prior.nu + nk
        W_inv = prior.W_inv + nk[:, None] * (covariance + shrink[:, None] * away**2)
        covariances = W_inv / nu[:, None]
    else:
        second = (sxx + PSEUDO_ROWS * (origin**2).sum(1)) / nk
        covariance = (second - (offset**2).sum(1)) / n_features + prior.reg_covar
        nu = prior.nu + nk
        W_inv = prior.W_inv + nk * (covariance + shrink * (away**2).mean(1))
        covariances = W_inv / nu

    if prior.weight_prior == "dirichlet_process":
        from_here_on = nk.flip(0).cumsum(0).flip(0)
        after = torch.cat([from_here_on[1:], torch.zeros_like(nk[:1])])  # (K,), rows of the components that follow
        gamma1, gamma2 = 1.0 + nk, prior.alpha + after
    else:
        gamma1, gamma2 = prior.alpha + nk, None
    if kind == "full" and inverse_roots is not None:
        upper = inverse_roots(covariances).mT
    else:
        upper = precisions_cholesky(covariances, kind)
    return Posterior(kind, gamma1, gamma2, beta, m, nu, covariances, upper)


def precisions_cholesky(covariances: torch.Tensor, kind: CovarianceType) -> torch.Tensor:
    """Return U, upper triangular, with U U^T the inverse of each covariance; for diag and spherical its root.

    NaN for a covariance that is not positive definite.
    """
    if kind in ("diag", "spherical"):
        return covariances.rsqrt().masked_fill(~(covariances > 0), torch.nan)
    lower, failed = torch.linalg.cholesky_ex(covariances)
    positive = (failed == 0) & torch.isfinite(lower.diagonal(dim1=-2, dim2=-1)).all(-1)
    lower.diagonal(dim1=-2, dim2=-1).masked_fill_(~positive[..., None], torch.nan)
    identity = torch.eye(covariances.shape[-1], dtype=covariances.dtype, device=covariances.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    return inverse.mT


def check(posterior: Posterior) -> Posterior:
    """Return the posterior, or raise IllDefinedCovarianceError where a covariance is not positive definite."""
    if not bool(torch.isfinite(posterior.precisions_cholesky).all()):
        raise IllDefinedCovarianceError
    return posterior


def expected_log_weights(posterior: Posterior) -> torch.Tensor:
    """Return E[ln pi_k] (K,). Source: Blei & Jordan 2006, section 3.2; Bishop 2006, eq. 10.66."""
    if posterior.gamma2 is None:
        return torch.digamma(posterior.gamma1) - torch.digamma(posterior.gamma1.sum())
    both = torch.digamma(posterior.gamma1 + posterior.gamma2)
    log_stick = torch.digamma(posterior.gamma1) - both
    log_rest = torch.digamma(posterior.gamma2) - both
    return log_stick + torch.cat([torch.zeros_like(log_rest[:1]), log_rest.cumsum(0)[:-1]])


def weights(gamma1: torch.Tensor, gamma2: torch.Tensor | None) -> torch.Tensor:
    """Return the weights of the components (K,), at the means of the sticks, summing to one."""
    if gamma2 is None:
        return gamma1 / gamma1.sum()
    both = gamma1 + gamma2
    rest = (gamma2 / both).cumprod(0)
    pi = gamma1 / both * torch.cat([torch.ones_like(rest[:1]), rest[:-1]])
    return pi / pi.sum()


def without(
    gammas: tuple[torch.Tensor, torch.Tensor | None], keep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the sticks, or the finite Dirichlet, of some components (k,), with the same E[ln pi] as among all.

    gammas: gamma1 (K,) and gamma2 (K,) or None. keep: increasing index (k,). A stick that goes leaves E[ln(1 - v)] to
    the next that stays, in both of that one's expected logs; a Beta with these is found by Newton's method. A finite
    Dirichlet of one component has E[ln pi] = 0, whatever it was.
    """
    gamma1, gamma2 = gammas
    if gamma2 is None:
        expected = torch.digamma(gamma1) - torch.digamma(gamma1.sum())
        kept = gamma1[keep]
        return (kept if len(keep) == 1 else _dirichlet_of(expected[keep], kept)), None
    pair = torch.stack([gamma1, gamma2], 1)  # (K, 2)
    expected = torch.digamma(pair) - torch.digamma(pair.sum(1, keepdim=True))
    gone = expected[:, 1].clone()
    gone[keep] = 0
    left = gone.cumsum(0)[keep]  # of all that are gone before each that stays
    left = left - torch.cat([torch.zeros_like(left[:1]), left[:-1]])
    found = _dirichlet_of(expected[keep] + left[:, None], pair[keep])
    return found[:, 0], found[:, 1]


def _dirichlet_of(expected: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Return Dirichlet parameters (..., k) with these expected logs (..., k), by Newton's method.

    Source: Minka 2000, Estimating a Dirichlet distribution, section 1.
    """
    a = start.clone()
    for _ in range(100):
        total = a.sum(-1, keepdim=True)
        error = torch.digamma(a) - torch.digamma(total) - expected
        slope, shared = torch.polygamma(1, a), torch.polygamma(1, total)
        common = (error / slope).sum(-1, keepdim=True) / (1 / slope).sum(-1, keepdim=True).sub(1 / shared)
        step = (error - common) / slope
        a = torch.where(a > step, a - step, a / 2)
        if float((step / a).abs().max()) < 1e-14:
            break
    return a


def log_det_precision(posterior: Posterior) -> torch.Tensor:
    """Return ln |U_k|, half the log determinant of each precision: (K,), for tied ()."""
    U, n_features = posterior.precisions_cholesky, posterior.m.shape[1]
    if posterior.covariance_type in ("full", "tied"):
        return U.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return U.log().sum(1) if posterior.covariance_type == "diag" else n_features * U.log()


def over_halves(nu: torch.Tensor, n_features: int, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return sum_d f((nu - d) / 2), d from 0 to D - 1, of f = digamma or lgamma, for nu (...), more than D - 1.

    Every second term follows from the one before, by psi(x) = psi(x - 1) + 1 / (x - 1) and ln Gamma(x) =
    ln Gamma(x - 1) + ln(x - 1), which take a tenth of the time. Source: Abramowitz and Stegun, 6.1.15 and 6.3.5.
    """
    total = torch.zeros_like(nu)
    for first in range(min(2, n_features)):
        terms = (n_features - first + 1) // 2
        x = 0.5 * (nu - first)
        step = torch.arange(1, terms, dtype=nu.dtype, device=nu.device)
        lower = x[..., None] - step  # (..., terms - 1)
        change = lower.reciprocal() if function is torch.digamma else lower.log()
        total = total + terms * function(x) - (change * (terms - step)).sum(-1)
    return total


def log_rho_terms(posterior: Posterior) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (a, m, lambda or R): the E-step as an offset (K,) and a quadratic form about the means (K, D).

    ln rho_nk = a_k - 1/2 sum_d lambda_kd (x_nd - m_kd)^2 or a_k - 1/2 ||R_k (x_n - m_k)||^2, where E[ln pi_k],
    1/2 E[ln |Lambda_k|], -1/2 D ln 2 pi and -1/2 D / beta_k are in a_k. Source: Bishop 2006, eq. 10.46, 10.64, 10.65.
    """
    n_features = posterior.m.shape[1]
    # The precisions are per degree of freedom: ln |nu W| = ln |W| + D ln nu.
    log_det_W = 2 * log_det_precision(posterior) - n_features * posterior.nu.log()
    expected = over_halves(posterior.nu, n_features, torch.digamma) + n_features * math.log(2) + log_det_W
    a = expected_log_weights(posterior) + 0.5 * (
        expected - n_features / posterior.beta - n_features * math.log(2 * math.pi)
    )
    U = posterior.precisions_cholesky
    return a, posterior.m, U.mT if posterior.covariance_type in ("full", "tied") else U**2


def lower_bound(posterior: Posterior, entropy: torch.Tensor) -> torch.Tensor:
    """Return the evidence lower bound up to a constant (), in nats, summed over rows.

    posterior: that of the responsibilities whose entropy, - sum_nk r_nk ln r_nk, is given; so the bound holds before
    the next E-step. Source: Bishop 2006, eq. 10.70-10.77, at the posterior's own optimum, where the terms of rows and
    priors cancel against those of the posterior. With reg_covar the posterior is not at that optimum, for what it adds
    to a covariance is no part of the bound: so the bound can fall, as scikit-learn's does; without it, it never does.
    """
    n_components, n_features = posterior.m.shape
    nu = posterior.nu
    log_det_root_W = log_det_precision(posterior) - 0.5 * n_features * nu.log()
    log_wishart_norm = -(
        nu * log_det_root_W + nu * n_features * 0.5 * math.log(2) + over_halves(nu, n_features, torch.lgamma)
    )
    wishart = log_wishart_norm.sum() * (n_components if posterior.covariance_type == "tied" else 1)
    if posterior.gamma2 is None:
        log_norm_weights = torch.lgamma(posterior.gamma1.sum()) - torch.lgamma(posterior.gamma1).sum()
    else:
        both = torch.lgamma(posterior.gamma1 + posterior.gamma2)
        log_norm_weights = (both - torch.lgamma(posterior.gamma1) - torch.lgamma(posterior.gamma2)).sum()
    return entropy - wishart - log_norm_weights - 0.5 * n_features * posterior.beta.log().sum()
