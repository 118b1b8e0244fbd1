"""The E-step and the moments of a tile of rows in plain torch, one class for each way of writing the quadratic form.

Linear: spherical and diag are linear in a few columns of a row, so the E-step is one product and the moments another:

    diag        columns y and [y^2, 1]      ln rho = y . (lambda m) + [y^2, 1] . [-1/2 lambda, const]
    spherical   columns y and [|y|^2, 1]    ln rho = y . (lambda m) + [|y|^2, 1] . [-1/2 lambda, const]

That form cancels in float32 for a component whose precision is large against its distance from the frame's origin:
the error of ln rho is about 1e-7 sum_d lambda_kd m_kd^2, and that of a variance up to 2e-6 lambda_kd m_kd^2, for sums
of STRIP rows that are alike all round the same way. Where the sum passes TIGHT, or a term of it PEAKED (spherical:
the mean of the terms), rows that float32 leaves any chance to belong to the component are taken again in float64,
subtracted before they are squared; other rows have no part in it. Where more than a quarter of the components are
tight, the whole pass is in float64, which is faster then.

Tied: rows are whitened once, R (y - c), c the mean of the means, and then spherical. Full: R_k (y - m_k).
"""

from __future__ import annotations

import math

import torch

from fastclust.kernels.contract import Coefficients, Statistics
from fastclust.kernels.memory import share_of_free

TIGHT, PEAKED = 3e3, 2e2  # nats
STRIP = 512  # rows whose sums are float32; of 30,000 rows that were alike, a variance erred by a third
TILE_BYTES = {"cpu": 4 << 20}  # measured best of 0.25 to 4 MiB: smaller tiles pay more for starting operations
TILE_BYTES_DEVICE = 512 << 20  # on an accelerator: enough work for one launch; less where less is free
TILE_ROWS = (64, 1 << 20)


class Linear:
    """Spherical and diag: ln rho is linear in the columns of a row."""

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype) -> None:
        self.kind = coefficients.covariance_type
        self.dtype = dtype
        m, precision = coefficients.means, coefficients.precision
        self.n_components, self.n_features = m.shape
        scale = precision if self.kind == "diag" else precision[:, None]
        terms = scale * m**2  # (K, D)
        square = terms.sum(1)  # (K,)
        first = scale * m  # (K, D)
        rest = torch.cat([(-0.5 * scale), (coefficients.offset - 0.5 * square)[:, None]], 1)  # (K, D + 1) or (K, 2)
        self.n_rest = rest.shape[1]
        self.first, self.rest = first.to(dtype), rest.to(dtype)
        self.tight: torch.Tensor | None = None
        peak = terms.amax(1) if self.kind == "diag" else terms.mean(1)
        tight = (square > TIGHT) | (peak > PEAKED)
        if dtype != torch.float64 and bool(tight.any()):
            self.tight = torch.nonzero(tight)[:, 0]
            self.reach = (80 + 1e-5 * square[self.tight]).tolist()  # nats: twice the floor, and what float32 may err by
            self.means, self.scale, self.offset = m, scale.expand_as(m), coefficients.offset
        self.about = torch.zeros_like(m)

    def row_bytes(self) -> int:
        """Return what a row of a tile takes in the cache."""
        return self.first.element_size() * (self.n_features + self.n_rest + 2 * self.n_components)

    def log_rho(self, y: torch.Tensor, space: Space) -> torch.Tensor:
        """Return ln rho (K, n) of rows (n, D)."""
        logits = torch.mm(self.rest, self.squares(y, space.rest(len(y))).T, out=space.logits(len(y)))
        logits.addmm_(self.first, y.T)
        if self.tight is not None:
            space.near = []
            peak = logits.amax(0)
            for k, reach in zip(self.tight.tolist(), self.reach, strict=True):
                near = torch.nonzero(logits[k] > peak - reach)[:, 0]
                y64 = y[near].double()
                square = (y64 - self.means[k]).square_() @ self.scale[k]
                logits[k, near] = (self.offset[k] - 0.5 * square).to(self.dtype)
                space.near.append((k, near, y64))
        return logits

    def add_moments(self, y: torch.Tensor, p: torch.Tensor, space: Space, total: Sums) -> None:
        """Add the moments of rows (n, D), of which log_rho was asked last, for responsibilities p (K, n)."""
        if self.tight is None:
            total.sx += _product(p, y)
            total.rest += _product(p, space.rest(len(y)))
            return
        both = torch.cat([_product(p, y), _product(p, space.rest(len(y)))], 1)
        for k, near, y64 in space.near:  # all sums of a tight component, for they are subtracted from one another
            p64, square = p[k, near].double(), y64.square()
            squares = p64 @ square if self.kind == "diag" else (p64 @ square).sum()[None]
            both[k] = torch.cat([p64 @ y64, squares, p64.sum()[None]])
        total.sx += both[:, : self.n_features]
        total.rest += both[:, self.n_features :]

    def squares(self, y: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the columns that follow y (n, D) into out (n, D + 1 or 2): squares, or their sum, and ones."""
        if self.kind == "diag":
            torch.mul(y, y, out=out[:, :-1])
        else:
            torch.linalg.vecdot(y, y, out=out[:, 0])
        out[:, -1] = 1
        return out


class Tied:
    """Tied covariance: ln rho is linear in the whitened row, and the scatter is not the kernel's to find.

    All products are in float64. The covariance is the scatter of all rows less that of the means, and in float32 the
    rounding of the means, 1e-7, is a hundredth of the small eigenvalues that ReLU features have. It is still a small
    part of scikit-learn's arithmetic, which whitens for every component.
    """

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype) -> None:
        self.kind = coefficients.covariance_type
        m, root = coefficients.means, coefficients.precision
        self.n_components, self.n_features = m.shape
        self.n_rest = 1
        self.dtype = dtype
        self.middle = m.mean(0)  # (D,)
        self.root = root.T.contiguous()
        self.linear = (m - self.middle) @ self.root  # (K, D)
        self.const = (coefficients.offset - 0.5 * self.linear.square().sum(1))[:, None]
        self.about = torch.zeros_like(m)

    def row_bytes(self) -> int:
        """Return what a row of a tile takes in the cache."""
        return 8 * (3 * self.n_features + 2 * self.n_components)

    def log_rho(self, y: torch.Tensor, space: Space) -> torch.Tensor:
        """Return ln rho (K, n) of rows (n, D)."""
        y64 = space.wide(len(y), self.n_features).copy_(y)
        whitened = (y64 - self.middle) @ self.root  # (n, D)
        linear = torch.addmm(self.const, self.linear, whitened.T)
        return space.logits(len(y)).copy_(linear.sub_(whitened.square().sum(1), alpha=0.5))

    def add_moments(self, y: torch.Tensor, p: torch.Tensor, space: Space, total: Sums) -> None:
        """Add the moments of rows (n, D) for responsibilities p (K, n)."""
        p64 = p.double()
        total.rest += p64.sum(1, keepdim=True)
        total.sx += p64 @ space.wide(len(y), self.n_features)


class Full:
    """The E-step of full covariance: R_k (y - m_k), a component at a time, columns along the rows.

    The scatter is summed in float64: in float32 its rounding, 1e-7 of the large variances, drowns the small eigenvalues
    that ReLU features have. Rows whose responsibility is zero are left out, and on real features that is most.
    """

    def __init__(self, coefficients: Coefficients, dtype: torch.dtype) -> None:
        self.kind = coefficients.covariance_type
        self.n_components, self.n_features = coefficients.means.shape
        self.n_rest = 1
        self.dtype = dtype
        self.means = coefficients.means.to(dtype)  # (K, D)
        lost = coefficients.means - self.means.double()
        bias = -(coefficients.precision @ lost[:, :, None])  # what rounding the mean did to R (y - m)
        self.roots = torch.cat([coefficients.precision, bias], 2).to(dtype)  # (K, D, D + 1)
        self.const = coefficients.offset.to(dtype)[:, None]  # (K, 1)
        self.about = coefficients.means

    def row_bytes(self) -> int:
        """Return what a row of a tile takes: its logits, for the rows themselves go through the cache in strips."""
        return self.roots.element_size() * 2 * self.n_components

    def log_rho(self, y: torch.Tensor, space: Space) -> torch.Tensor:
        """Return ln rho (K, n) of rows (n, D)."""
        logits = space.logits(len(y))
        size = tile_rows(self.n_features * 3 * y.element_size(), y.device) if y.device.type == "cpu" else len(y)
        for low in range(0, len(y), size):
            strip = y[low : low + size].T  # (D, n)
            across, moved, root = space.strips(self.n_features, strip.shape[1])
            across.copy_(strip)
            moved[-1] = 1
            for k in range(self.n_components):
                torch.sub(across, self.means[k, :, None], out=moved[:-1])
                torch.mm(self.roots[k], moved, out=root)
                torch.sum(root.square_(), 0, out=logits[k, low : low + size])
        return torch.add(self.const, logits, alpha=-0.5, out=logits)

    def add_moments(self, y: torch.Tensor, p: torch.Tensor, space: Space, total: Sums) -> None:
        """Add the moments of rows (n, D) for responsibilities p (K, n)."""
        total.rest += p.sum(1, keepdim=True)
        component, row = torch.nonzero(p, as_tuple=True)
        counts = torch.bincount(component, minlength=self.n_components).tolist()
        weight = p[component, row][:, None]
        for k, index, r in zip(
            range(self.n_components), torch.split(row, counts), torch.split(weight, counts), strict=True
        ):
            if len(index):
                difference = y[index].double().sub_(self.about[k])
                weighted = difference * r.double()
                total.sx[k] += weighted.sum(0)
                total.sxx[k].addmm_(weighted.T, difference)


def _product(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return p y (K, D) float64 of p (K, n) and y (n, D), summed over at most STRIP rows in their own dtype."""
    n = len(y)
    whole = n - n % STRIP
    if p.dtype == torch.float64 or not whole:
        return (p @ y).double()
    of_p, of_y = p[:, :whole].view(len(p), -1, STRIP), y[:whole].view(-1, STRIP, y.shape[1])
    strips = torch.bmm(of_p.transpose(0, 1), of_y)
    return strips.sum(0, dtype=torch.float64) + p[:, whole:] @ y[whole:]


Form = Linear | Tied | Full


def form_of(coefficients: Coefficients, dtype: torch.dtype) -> Form:
    """Return the E-step of coefficients for rows of a dtype."""
    if coefficients.covariance_type in ("full", "tied"):
        return (Full if coefficients.covariance_type == "full" else Tied)(coefficients, dtype)
    form = Linear(coefficients, dtype)
    many = form.tight is not None and 4 * len(form.tight) > coefficients.n_components
    return Linear(coefficients, torch.float64) if many else form


def tile_rows(row_bytes: int, device: torch.device) -> int:
    """Return how many rows of a size fit the cache, or give an accelerator enough to do: a power of two."""
    budget = TILE_BYTES.get(device.type) or share_of_free(device, TILE_BYTES_DEVICE)
    return max(TILE_ROWS[0], min(TILE_ROWS[1], 1 << max(budget // row_bytes, 1).bit_length() - 1))


class Space:
    """The buffers of one worker, allocated once: fresh memory at every tile would cost more than the arithmetic."""

    def __init__(self, form: Form, tile: int, dtype: torch.dtype, device: torch.device) -> None:
        self._y = torch.empty(tile, form.n_features, dtype=dtype, device=device)
        self._rest = torch.empty(tile, form.n_rest, dtype=dtype, device=device)
        self._pair = torch.empty(2, form.n_components * tile, dtype=dtype, device=device)
        self._k = form.n_components
        self.near: list[tuple[int, torch.Tensor, torch.Tensor]] = []  # tight components, their rows, these in float64
        self._wide = self._strips = torch.empty(0, device=device)
        self._device, self.dtype = device, dtype
        self._rooms: dict[str, torch.Tensor] = {}

    def y(self, n: int) -> torch.Tensor:
        return self._y[:n]

    def rest(self, n: int) -> torch.Tensor:
        return self._rest[:n]

    def wide(self, n: int, columns: int) -> torch.Tensor:
        """Return room for rows in float64; what was written there stays until the next tile."""
        if self._wide.numel() < n * columns:
            self._wide = torch.empty(n * columns, dtype=torch.float64, device=self._device)
        return self._wide[: n * columns].view(n, columns)

    def strips(self, d: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return room for rows on their side: (d, n), (d + 1, n) and (d, n)."""
        if self._strips.numel() < (3 * d + 1) * n:
            self._strips = torch.empty((3 * d + 1) * n, dtype=self.dtype, device=self._device)
        whole = self._strips[: (3 * d + 1) * n].view(3 * d + 1, n)
        return whole[:d], whole[d : 2 * d + 1], whole[2 * d + 1 :]

    def room(self, name: str, *shape: int) -> torch.Tensor:
        """Return room of a shape that a form asks for by name; it grows with the largest that was asked for."""
        if name not in self._rooms or self._rooms[name].numel() < math.prod(shape):
            self._rooms[name] = torch.empty(math.prod(shape), dtype=self.dtype, device=self._device)
        return self._rooms[name][: math.prod(shape)].view(shape)

    def logits(self, n: int) -> torch.Tensor:
        return self._pair[0, : self._k * n].view(self._k, n)

    def p(self, n: int) -> torch.Tensor:
        return self._pair[1, : self._k * n].view(self._k, n)


class Sums:
    """The running sums of one worker, in float64."""

    def __init__(self, form: Form, device: torch.device) -> None:
        k, d = form.n_components, form.n_features
        full = (k, d, d) if form.kind == "full" else (0,)
        self.kind, self.about = form.kind, form.about
        # rest: what stands beside sx in a linear form, the squares' sums, and nk in the last column
        self.sx, self.rest, self.sxx = (
            torch.zeros(size, dtype=torch.float64, device=device) for size in ((k, d), (k, form.n_rest), full)
        )
        self._rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add_rows(
        self, peak: torch.Tensor, log_sum: torch.Tensor, p: torch.Tensor, logits: torch.Tensor, w: torch.Tensor | None
    ) -> None:
        """Add ln sum rho = peak + log_sum, and the entropy of a row, log_sum - sum_k r (ln rho - peak)."""
        if w is not None:
            peak, log_sum = peak * w, log_sum * w
        # One sum over a tile would lose digits of the entropy; one a component does not.
        product = torch.linalg.vecdot(p, logits).sum(dtype=torch.float64)
        self._rows.append((peak.sum(), log_sum.sum(), product))

    def result(self) -> Statistics:
        """Return the sums of all rows added so far."""
        peak, spread, product = (torch.stack(column).double().sum() for column in zip(*self._rows, strict=True))
        squares = {"diag": self.rest[:, :-1], "spherical": self.rest[:, 0], "full": self.sxx}.get(self.kind)
        return Statistics(self.rest[:, -1], self.sx, squares, peak + spread, spread - product, self.about)
