"""What every fitted mixture does: reading rows under its posterior, drawing from it, and keeping it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from numbers import Number
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_feature_names, _check_sample_weight, check_is_fitted, validate_data

from fastclust import engine, kernels, memo, model_file, variational
from fastclust.arrays import Given, host, receive
from fastclust.blocks import Blocks, check_finite
from fastclust.group import ALONE, Group
from fastclust.rows import Rows

log = logging.getLogger("fastclust")

DTYPES = {"float32": torch.float32, "float64": torch.float64}
ELSEWHERE = ("device", "backend", "block_rows", "verbose", "verbose_interval")  # no part of what a fit finds
BY_COMPONENT = ("mean_precision_", "means_")  # the posterior's attributes that have an entry a component
BY_COVARIANCE = ("degrees_of_freedom_", "covariances_", "precisions_cholesky_", "precisions_")  # but for tied


class FittedMixture(DensityMixin, BaseEstimator):  # type: ignore[misc]
    """The methods of a fitted mixture; the parameters are those of the estimator that inherits them."""

    batch_statistics_: dict[str, memo.Batch]
    counts_: np.ndarray
    covariances_: Any
    degrees_of_freedom_: Any

    def predict(self, X: Any) -> Any:
        """Return the most probable component of each row: (n_samples,) int64, the kind of array that X is."""
        given, rows = self._rows_of(X)
        return given.like(self._of_each(rows, 0, torch.int64))

    def score_samples(self, X: Any) -> Any:
        """Return the log-density of each row, in nats, (n_samples,), under the expected log parameters."""
        given, rows = self._rows_of(X)
        return self._floats(given, self._of_each(rows, 1, rows.dtype))

    def score(self, X: Any, y: object = None) -> float:
        """Return the mean log-density of the rows, in nats per row. y: ignored."""
        _, rows = self._rows_of(X)
        total = sum(float(density.sum(dtype=torch.float64)) for _, density in self._assigned(rows))
        return total / rows.blocks.n_rows

    def predict_proba(self, X: Any) -> Any:
        """Return the responsibilities (n_samples, n_components)."""
        given, rows = self._rows_of(X)
        parts, seen = [], 0
        for block, proba in rows.responsibilities(engine.coefficients(self._posterior(rows))):
            _check_results(proba, block, seen, rows.dtype)
            parts.append(proba)
            seen += len(block)
        return self._floats(given, torch.cat(parts) if len(parts) > 1 else parts[0])

    def sample(self, n_samples: int = 1) -> tuple[Any, Any]:
        """Draw rows from the mixture at its posterior means, in unmapped units.

        Returns rows (n_samples, n_features) float64, component by component, and their components (n_samples,) int64,
        in the kind of array that means_ is.
        Raises ValueError for n_samples < 1.
        """
        self._check_fitted()
        if n_samples < 1:
            raise ValueError(f"Invalid value for 'n_samples': {n_samples} . The sampling requires at least one sample.")
        random = check_random_state(self.random_state)
        weights, means, covariances = (host(getattr(self, name)) for name in ("weights_", "means_", "covariances_"))
        counts = random.multinomial(n_samples, weights)
        rows = []
        for k, count in enumerate(counts):
            if self.covariance_type in ("full", "tied"):
                covariance = covariances[k] if self.covariance_type == "full" else covariances
                rows.append(random.multivariate_normal(means[k], covariance, int(count)))
            else:
                noise = random.standard_normal(size=(count, self.n_features_in_))
                rows.append(means[k] + noise * np.sqrt(covariances[k]))
        stored = np.vstack(rows) / self.feature_scale_ + self.feature_offset_
        like = receive(self.means_).like
        labels = np.repeat(np.arange(len(counts)), counts)
        return like(torch.from_numpy(stored)), like(torch.from_numpy(labels))

    def prune(self) -> Self:
        """Drop the components that win no row of the fit and have less than 1e-8 of a row, in place.

        The labels and probabilities of the fit's rows, and the expected log weights of what is left, stay as they were:
        a stick that goes leaves its share to those behind it. Rows unlike any of the fit's may have belonged to a
        dropped component, which is as wide as the prior. `n_components` stays as well: it is the truncation of the next
        fit. Returns the mixture. Raises ValueError where scikit-learn fitted it, which leaves no counts_.
        """
        self._check_fitted()
        if not hasattr(self, "counts_"):
            raise ValueError("prune needs counts_, which scikit-learn's fit does not leave: fit the mixture again")
        nk = sum(batch["nk"] for batch in self.batch_statistics_.values())
        keep = np.flatnonzero((self.counts_ > 0) | (nk > 1e-8))
        if len(keep) == len(self.counts_):
            return self
        like = receive(self.means_).like
        gammas = variational.without(self._gammas(), torch.from_numpy(keep))
        self._set_gammas(*gammas, like)
        for name in BY_COMPONENT + (() if self.covariance_type == "tied" else BY_COVARIANCE):
            setattr(self, name, like(torch.from_numpy(host(getattr(self, name))[keep])))
        self.counts_ = self.counts_[keep]
        index = torch.from_numpy(keep)
        self.batch_statistics_ = {key: memo.taken(batch, index) for key, batch in self.batch_statistics_.items()}
        return self

    @property
    def responsibilities_statistics_(self) -> dict[str, np.ndarray]:
        """The statistics of the rows under the last responsibilities, from which the posterior follows.

        Float64 arrays, in the units of means_, with w_n how often a row counts and r_nk its responsibilities:
        nk (n_components,) = sum_n w_n r_nk; about (n_components, n_features), points c_k;
        sx (n_components, n_features) = sum_n w_n r_nk (x_n - c_k);
        sxx, the same sum of (x_n - c_k)^2: (n_components,) summed over features for spherical, (n_components,
        n_features) for diag, of the outer products (n_components, n_features, n_features) for full; for tied
        (n_features, n_features), of all rows about about[0], whatever their responsibilities;
        entropy () = -sum_nk w_n r_nk ln r_nk and log_norm () = sum_n w_n ln sum_k rho_nk, in nats.
        """
        self._check_fitted()
        if not self.batch_statistics_:
            raise AttributeError("responsibilities_statistics_ needs a pass over rows, and max_iter was 0")
        batches = list(self.batch_statistics_.values())
        found = memo.remember(memo.statistics(batches, memo.CPU), memo.summary(batches), torch.empty(0))
        if self.covariance_type == "tied":
            mean = (found["mean"] - self.feature_offset_) * self.feature_scale_ - self.centre_
            found["sxx"] = found["scatter"] * self.feature_scale_**2 + found["total"] * np.outer(mean, mean)
        found["about"] = found["about"] + self.centre_
        return {name: found[name] for name in memo.STATISTICS}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted mixture to an HDF5 file, whole or not at all. A RandomState is not kept; a seed is."""
        self._check_fitted()
        parameters = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        fitted = {name: value for name, value in self.__getstate__().items() if name.endswith("_")}
        model_file.write(path, type(self).__name__, parameters, fitted)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with its arrays on the host, so that it can be read where there is no GPU."""
        return {name: _on_host(value) for name, value in super().__getstate__().items()}

    # The rest is not public.

    def _check_fitted(self) -> None:
        """Raise NotFittedError, or ValueError where the fit was of another covariance_type than the parameter now."""
        check_is_fitted(self)
        by_size = ("spherical", "diag", "full")[host(self.covariances_).ndim - 1]
        kind = by_size if host(self.degrees_of_freedom_).ndim else "tied"
        if kind != self.covariance_type:
            raise ValueError(
                f"covariance_type is {self.covariance_type!r} now, and the mixture was fitted with {kind!r}: set it "
                "back, or fit a new one"
            )

    def _open(
        self,
        X: Any,
        *,
        fitting: bool = False,
        reset: bool = False,
        least: int = 1,
        sample_weight: Any = None,
        group: Group = ALONE,
    ) -> tuple[Given, Blocks, kernels.Backend, str]:
        """Return X as given, its rows as blocks on the device, the backend, and the name of what passes over the rows.

        fitting: whether to make numbers of strings and other objects, as scikit-learn's fit does and its predict does
        not. reset: whether X says how many features there are, and their names. least: rows that there must be.
        group: processes that have rows of their own, which are this one's too.
        """
        if not reset:
            self._check_fitted()
        given = receive(X)
        alone = least if group.size == 1 else 0  # what a group has is counted below
        if given.host:
            dtype = "numeric" if not fitting or _numeric(X) else [np.float64, np.float32]
            X = validate_data(self, X, reset=reset, dtype=dtype, ensure_all_finite=False, ensure_min_samples=alone)
            given = Given([X], given.like, host=True)
        else:
            _check_feature_names(self, given.parts[0], reset=reset)
        device = self._device(given.parts[0])
        if sample_weight is not None:
            one_each = np.broadcast_to(0.0, (sum(int(part.shape[0]) for part in given.parts), 1))
            if not isinstance(sample_weight, Number):
                sample_weight = host(sample_weight)
            sample_weight = _check_sample_weight(sample_weight, one_each, dtype=np.float64, ensure_non_negative=True)
        self._check_alike(given, group)
        blocks = Blocks(given.parts, device, sample_weight, group=group)
        if group.size > 1 and blocks.n_rows == 0:
            raise ValueError(f"process {group.rank} of {group.size} has no rows: give it some, or use fewer processes")
        shape = (blocks.n_total, blocks.n_features)
        for count, what, minimum in ((blocks.n_total, "sample", least), (blocks.n_features, "feature", 1)):
            if count < minimum:
                raise ValueError(
                    f"Found array with {count} {what}(s) (shape={shape}) while a minimum of {minimum} is required by "
                    f"{type(self).__name__}."
                )
        if reset:
            self.n_features_in_ = blocks.n_features
        elif blocks.n_features != self.n_features_in_:
            raise ValueError(
                f"X has {blocks.n_features} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input."
            )
        name, backend, passed_over = kernels.select(self.backend, device)
        reason = kernels.left(backend, self.covariance_type, self._arithmetic(blocks.parts), blocks.dtypes)
        if reason is not None:
            name, passed_over = "torch", passed_over | {name: reason}
        if isinstance(backend, kernels.Chosen):  # which says it when it has seen the first rows
            backend.passes = ("statistics",) if fitting else backend.passes  # labels of a k-means start are no pass
        else:
            reasons = "".join(f"; not {other}: {reason}" for other, reason in passed_over.items())
            log.info("backend %s on %s%s", name, device, reasons)
        if self.precision != "high" and (reason is not None or "fast" not in backend.PRECISIONS):
            log.info("backend %s has one arithmetic: precision %r changes nothing", name, self.precision)
        return given, blocks, backend, name

    def _check_alike(self, given: Given, group: Group) -> None:
        """Raise ValueError where the processes of a group are about to fit different things."""
        if group.size == 1:
            return
        what = {"features": int(given.parts[0].shape[1]), "dtype": str(self._arithmetic(given.parts))}
        free = (*ELSEWHERE, "random_state")  # of which the first process's counts
        what |= {name: memo.said(value) for name, value in self.get_params(deep=False).items() if name not in free}
        for rank, other in enumerate(group.objects(what)):
            for name, value in what.items():
                if other.get(name) != value:
                    raise ValueError(
                        f"the processes of a group fit one model: {name} is {value} in process {group.rank}, and "
                        f"{other.get(name)} in process {rank}"
                    )

    def _device(self, part: Any) -> torch.device:
        if str(self.device) != "auto":
            device = torch.device(self.device)
            if device.type == "cuda" and not torch.cuda.is_available():
                raise RuntimeError("device 'cuda' was asked for, and torch finds no CUDA device: use device='cpu'")
            return device
        if isinstance(part, torch.Tensor) and part.device.type != "cpu":
            return part.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def _arithmetic(self, parts: list[Any]) -> torch.dtype:
        """Return the dtype of the arithmetic over rows: the parameter's, or float32 where all rows fit it."""
        if self.dtype is not None:
            return DTYPES[self.dtype]
        names = (getattr(part.dtype, "name", str(part.dtype).removeprefix("torch.")) for part in parts)
        return torch.float32 if set(names) <= {"float16", "bfloat16", "float32"} else torch.float64

    def _bind(self, blocks: Blocks, backend: kernels.Backend) -> Rows:
        """Return rows in the frame of the fit."""
        device = blocks.device
        offset = torch.full((blocks.n_features,), self.feature_offset_, dtype=torch.float64, device=device)
        scale = torch.full((blocks.n_features,), self.feature_scale_, dtype=torch.float64, device=device)
        centre = torch.from_numpy(self.centre_).to(device)
        dtype = self._arithmetic(blocks.parts)
        precision: kernels.Precision = "fast" if self.precision == "fast" else "high"  # "mixed" is the engine's
        return Rows(blocks, backend, dtype, offset, scale, centre, self.block_rows, precision)

    def _rows_of(self, X: Any) -> tuple[Given, Rows]:
        given, blocks, backend, _ = self._open(X)
        return given, self._bind(blocks, backend)

    def _gammas(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the posterior of the sticks, or of the finite Dirichlet."""
        if isinstance(self.weight_concentration_, tuple):
            gamma1, gamma2 = (torch.from_numpy(host(part)) for part in self.weight_concentration_)
            return gamma1, gamma2
        return torch.from_numpy(host(self.weight_concentration_)), None

    def _set_gammas(
        self, gamma1: torch.Tensor, gamma2: torch.Tensor | None, like: Callable[[torch.Tensor], Any]
    ) -> None:
        self.weight_concentration_ = like(gamma1) if gamma2 is None else (like(gamma1), like(gamma2))
        self.weights_ = like(variational.weights(gamma1, gamma2))

    def _posterior(self, rows: Rows) -> variational.Posterior:
        """Return the posterior that the fitted attributes say, in the passes' coordinates."""
        device = rows.blocks.device

        def fitted(name: str) -> torch.Tensor:
            return torch.as_tensor(host(getattr(self, name)), dtype=torch.float64).to(device)

        gamma1, gamma2 = self._gammas()
        return variational.Posterior(
            covariance_type=self.covariance_type,
            gamma1=gamma1.to(device),
            gamma2=None if gamma2 is None else gamma2.to(device),
            beta=fitted("mean_precision_"),
            m=fitted("means_") - rows.centre,
            nu=fitted("degrees_of_freedom_"),
            covariances=fitted("covariances_"),
            precisions_cholesky=fitted("precisions_cholesky_"),
        )

    def _assigned(self, rows: Rows) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Return the labels (n,) int32 and log-densities (n,) of each block of rows."""
        seen = 0
        for block, labels, density in rows.assigned(engine.coefficients(self._posterior(rows))):
            _check_results(density, block, seen, rows.dtype)
            seen += len(block)
            yield labels, density

    def _of_each(self, rows: Rows, which: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the labels (0) or the log-densities (1) of all rows (N,), which are in memory once."""
        found, low = torch.empty(rows.blocks.n_rows, dtype=dtype, device=rows.blocks.device), 0
        for pair in self._assigned(rows):
            found[low : low + len(pair[which])] = pair[which]
            low += len(pair[which])
        return found

    def _floats(self, given: Given, result: torch.Tensor) -> Any:
        """Return densities or probabilities as the user gets them."""
        return given.like(result)


def overflow(what: str, dtype: torch.dtype) -> ValueError:
    """Return the error that something is beyond the range of the arithmetic; what: said before its name."""
    ways = ["scale the rows"] + ["dtype='float64'"] * (dtype == torch.float32)
    return ValueError(f"{what} {str(dtype).removeprefix('torch.')}: {' or '.join(ways)}")


def _check_results(results: torch.Tensor, block: torch.Tensor, first: int, dtype: torch.dtype) -> None:
    """Raise ValueError where a row of a block has a log-density (n,) or responsibilities (n, K) that are not finite."""
    finite = torch.isfinite(results)
    if not bool(finite.all()):
        check_finite(block, first)
        raise overflow(f"the log-density of row {first + int((~finite).nonzero()[0, 0])} overflows", dtype)


def _numeric(X: Any) -> bool:
    """Say whether X is a frame, or an array of numbers, that can be read as it is stored."""
    return hasattr(X, "dtypes") or getattr(getattr(X, "dtype", None), "kind", "O") in "fiub"


def _on_host(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_on_host(part) for part in value)
    return host(value) if hasattr(value, "__dlpack__") and not isinstance(value, np.generic) else value


def _plain(value: Any) -> Any:
    """Return a parameter as it is written to a file."""
    if value is None or isinstance(value, (bool, int, float, str, tuple, np.generic)):
        return value
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, np.random.RandomState):
        return None
    return host(value)
