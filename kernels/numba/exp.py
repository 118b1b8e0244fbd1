"""exp for numba, vectorised: it has the C library's alone, which is not."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numba.extending import overload

# exp on [-ln 2 / 2, ln 2 / 2] after Cephes (Moshier 1989), to 2e-7; numba has no vectorised one.
EXP = tuple(np.float32(c) for c in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 1.6666665e-1, 0.5))
LOG2_E, LN2_HIGH, LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
HALF, ONE = np.float32(0.5), np.float32(1.0)


def exp(depth: Any, power: Any, count: int) -> None:
    """Write exp of depth (n,), not positive and not below -80, into power (n,); the first `count` of them."""


@overload(exp, inline="always")
def _exp_of(depth: Any, power: Any, count: Any) -> Any:
    if depth.dtype != numba.float32:

        def exactly(depth: Any, power: Any, count: Any) -> None:  # pragma: no cover - compiled
            for h in range(count):
                power[h] = math.exp(depth[h])

        return exactly

    def by_polynomial(depth: Any, power: Any, count: Any) -> None:  # pragma: no cover - compiled
        bits = power.view(np.int32)
        for h in range(count):
            whole = np.floor(depth[h] * LOG2_E + HALF)
            f = (depth[h] - whole * LN2_HIGH) - whole * LN2_LOW
            p = EXP[0]
            p = p * f + EXP[1]
            p = p * f + EXP[2]
            p = p * f + EXP[3]
            p = p * f + EXP[4]
            p = p * f + EXP[5]
            p = p * f * f + f + ONE
            power[h] = p
            bits[h] += np.int32(whole) << np.int32(23)

    return by_polynomial
