"""A colour for each cluster: like colours for clusters that are alike, and none that cannot be told from another.

A palette is a map of the clusters into DIN99 (DIN 6176:2001), CIELAB (ISO/CIE 11664-4) curved so that distance is
roughly difference as perceived. Rank correlation of CIEDE2000 between colours with distance between clusters, on
relu1_2, relu2_2 and conv3_1 of VGG-19 (50, 43 and 8 in use): 0.67, 0.73, 0.80, and 0.65, 0.67, 0.85 with the map made
in CIELAB itself; on twenty points in three dimensions, the mean of six draws: 0.90, and 0.85.

1. clusters in use are compared by their means, each channel divided by the spread of the features in it;
2. those distances become targets by rank: the r-th smallest gets the r-th quantile of the distances between colours.
   Raw distances will not do: features after a ReLU have heavy tails, and a few remote clusters would leave one colour
   to all others;
3. scaling to three dimensions (Torgerson 1952; then SMACOF, de Leeuw 1977) gives every cluster a place, the centre of
   mass on the grey axis, so that what covers most of the images is calm and what is rare is vivid;
4. each cluster takes a colour of a fixed list, the heaviest first and then in turns, so as to keep to its targets, the
   less vivid the more it covers, and at a CIEDE2000 distance (ISO/CIE 11664-6) from all others: in gamut and apart by
   construction.
"""

import functools

import numpy as np
import numpy.typing as npt
from skimage.color import deltaE_ciede2000, rgb2lab

UNUSED = (96, 96, 96)  # the colour of a component that no row is in
LIGHTNESS = (38.0, 90.0)  # of colours in use: darker ones cannot be told apart, lighter ones are lost on white paper
CHROMA = 72.0  # more is neon
APART = 10.0  # CIEDE2000 between colours in use, where so many colours that far apart exist
ROOM = 60.0  # two clusters are at least half of this apart in DIN99, three a third: few have room to spare
CALM = 2.0  # what a vivid colour costs, for a cluster that covers everything, against one that is misplaced
SWEEPS = 6

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]


def palette(means: npt.ArrayLike, weights: npt.ArrayLike, covariances: npt.ArrayLike | None = None) -> Bytes:
    """Give each component a colour, like ones to those that are alike and none to two that are in use.

    Permuting the components permutes the colours (two with the same mean and weight may swap theirs). The same input
    gives the same colours: nothing is random.

    Args:
        means: (K, D), finite.
        weights: (K,), not negative, any unit; the share of rows that each wins. A component of weight 0 is not in use:
            it has the colour UNUSED and no say in the others'.
        covariances: (K,), (K, D), (K, D, D) or one (D, D) for all, for the spread within components; without them the
            spread is that of the means.

    Returns:
        (K, 3) uint8, sRGB.

    Raises:
        ValueError: shapes do not fit, or a value is not finite, or a weight negative.
    """
    means, weights = np.asarray(means, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if means.ndim != 2 or weights.shape != means.shape[:1]:
        raise ValueError(f"means (K, D) and weights (K,) expected, got {means.shape} and {weights.shape}")
    if not (np.isfinite(means).all() and np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("means and weights must be finite, and no weight negative: fit again or drop such components")
    variances = _variances(covariances, *means.shape)
    colours = np.full((len(means), 3), UNUSED, dtype=np.uint8)
    used = np.flatnonzero(weights)
    used = used[np.lexsort((*means[used].T[::-1], -weights[used]))]  # heaviest first, whatever the order of components
    if used.size:
        share = weights[used] / weights[used].sum()
        points = _standardise(means[used], share, variances[used])
        colours[used] = _colours(points, share)
    return colours


def _variances(covariances: npt.ArrayLike | None, k: int, d: int) -> Floats:
    """The variance of each channel in each component, (K, D), from any of the four shapes."""
    if covariances is None:
        return np.zeros((k, d))
    given = np.asarray(covariances, dtype=np.float64)
    if given.shape not in {(k,), (k, d), (k, d, d), (d, d)}:
        raise ValueError(f"covariances of {k} components in {d} dimensions expected, got the shape {given.shape}")
    if not np.isfinite(given).all():
        raise ValueError("covariances must be finite: fit again or leave them out")
    if given.shape == (k,) and given.ndim == 1:
        given = given[:, None]
    elif given.shape == (d, d) and (k != d or np.array_equal(given, given.T)):
        given = np.diagonal(given)[None]
    elif given.ndim == 3:
        given = np.diagonal(given, axis1=1, axis2=2)
    return np.broadcast_to(given, (k, d))


def _standardise(means: Floats, share: Floats, variances: Floats) -> Floats:
    """Means about their centre in units of the features' deviation; a channel that is constant counts for nothing."""
    centred = means - means[0]  # exactly zero where a channel is constant
    centred -= share @ centred
    largest = np.maximum(np.abs(centred).max(axis=0), np.sqrt(np.maximum(variances, 0).max(axis=0)))
    varies = largest > 1e-12 * np.abs(means).max(axis=0)  # less is rounding
    unit = np.where(varies, largest, 1)  # so that no square under- or overflows
    centred, deviations = centred / unit, np.sqrt(np.maximum(variances, 0)) / unit
    spread = np.sqrt(share @ (centred**2 + deviations**2))
    return np.asarray(np.divide(centred, spread, out=np.zeros_like(centred), where=varies & (spread > 0)))


@functools.cache
def _candidates() -> tuple[Bytes, Floats, Floats, Floats]:
    """The colours to choose from: sRGB, CIELAB and DIN99, (M, 3) each, and their distances (M, M) in the last."""
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = rgb2lab(rgb[None] / 255)[0]
    keep = (lab[:, 0] >= LIGHTNESS[0]) & (lab[:, 0] <= LIGHTNESS[1]) & (np.hypot(lab[:, 1], lab[:, 2]) <= CHROMA)
    keep &= _difference(lab, rgb2lab(np.array([[UNUSED]]) / 255)[0]) >= APART
    place = _din99(lab[keep])
    return rgb[keep], lab[keep], place, _distances(place, place)


def _din99(lab: Floats) -> Floats:
    """CIELAB to DIN99 (DIN 6176:2001), centred in lightness."""
    turn = np.deg2rad(16)
    e = lab[:, 1] * np.cos(turn) + lab[:, 2] * np.sin(turn)
    f = 0.7 * (lab[:, 2] * np.cos(turn) - lab[:, 1] * np.sin(turn))
    chroma = np.hypot(e, f)
    shrink = np.divide(np.log1p(0.045 * chroma), 0.045 * chroma, out=np.ones_like(chroma), where=chroma > 0)
    return np.stack([105.51 * np.log1p(0.0158 * lab[:, 0]), e * shrink, f * shrink], axis=1)


def _difference(a: Floats, b: Floats) -> Floats:
    return np.asarray(deltaE_ciede2000(*np.broadcast_arrays(a, b)))  # type: ignore[no-untyped-call]


def _distances(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1)))


def _colours(points: Floats, share: Floats) -> Bytes:
    """Colours (K, 3) of standardised means (K, D), the heaviest first."""
    rgb, lab, places, between = _candidates()
    count = len(points)
    rows, columns = np.triu_indices(count, 1)
    target = np.zeros((count, count))
    distances = np.linalg.norm(points[rows] - points[columns], axis=1)
    _, rank, ties = np.unique(distances.round(9), return_inverse=True, return_counts=True)
    quantile = ((np.cumsum(ties) - ties / 2) / max(len(rows), 1))[rank]
    floor = ROOM / count
    reach = np.sort(between[::13, ::13], axis=None)
    even = np.linspace(0, 1, len(reach))
    target[rows, columns] = floor + (1 - floor / reach[-1]) * np.interp(quantile, even, reach)
    target += target.T
    matter = np.maximum(np.sqrt(share), 0.02)  # a rarer one still wants its place, and the scaling its condition
    place = _turn(_scale(target, matter), matter, places)
    apart = APART + ROOM / 3 / count
    while (taken := _snap(place, target, matter, lab, places, between, apart)) is None:
        apart = 0.9 * apart if apart > 1 else 0.0  # with 0, colours repeat: more components than colours
    return np.asarray(rgb[taken])


def _scale(target: Floats, matter: Floats) -> Floats:
    """Places (K, 3) at the target distances of one another, about their centre of mass, principal axis first."""
    count = len(target)
    mass = matter / matter.sum()
    centring = np.eye(count) - mass[None]
    gram = -centring @ target**2 @ centring.T / 2
    values, vectors = np.linalg.eigh(gram)
    place = np.zeros((count, 3))
    for axis, index in enumerate(np.argsort(-values)[:3]):
        place[:, axis] = vectors[:, index] * np.sqrt(max(values[index], 0))
    pair = matter[:, None] * matter[None]
    np.fill_diagonal(pair, 0)
    laplacian = np.diag(pair.sum(axis=1)) - pair
    inverse = np.linalg.pinv(laplacian) if count > 1 else np.zeros((1, 1))
    for _ in range(100):
        now = _distances(place, place)
        ratio = pair * np.divide(target, now, out=np.zeros_like(now), where=now > 0)
        place = inverse @ ((np.diag(ratio.sum(axis=1)) - ratio) @ place)
    place -= mass @ place
    _, axes = np.linalg.eigh((place * mass[:, None]).T @ place)
    place = place @ axes[:, ::-1]
    return np.asarray(place * np.where(place[0] < 0, -1, 1))  # a mirror image is as good: the heaviest decides


def _turn(place: Floats, matter: Floats, places: Floats) -> Floats:
    """Places (K, 3) in CIELAB, turned so that they stick out of the colours there are as little as can be."""
    best, least, middle = place, np.inf, (places[:, 0].min() + places[:, 0].max()) / 2
    for light in range(3):
        for sign in (1, -1):
            for angle in np.arange(24) * np.pi / 12:
                a, b = place[:, light - 2], place[:, light - 1]
                turned = (
                    sign * place[:, light],
                    a * np.cos(angle) - b * np.sin(angle),
                    a * np.sin(angle) + b * np.cos(angle),
                )
                here = np.stack(turned, axis=1) + np.array([middle, 0, 0])
                out = float(matter @ (_distances(here, places[::7]).min(axis=1) ** 2))
                if out < least * (1 - 1e-6):
                    best, least = here, out
    return best


def _snap(
    place: Floats, target: Floats, matter: Floats, lab: Floats, places: Floats, between: Floats, apart: float
) -> npt.NDArray[np.intp] | None:
    """The candidate of each place, at least `apart` from the others; None where they do not all find one."""
    count = len(place)
    taken = np.full(count, -1)
    near = np.zeros((count, len(lab)), dtype=bool)
    reach = np.zeros((count, len(lab)))  # from the colour taken to every other
    square = np.zeros((count, len(lab)))
    for sweep in range(SWEEPS):
        before = taken.copy()
        for k in range(count):
            other = (taken >= 0) & (np.arange(count) != k)
            cost = ((places - place[k]) ** 2).sum(axis=1)
            if sweep and other.any():
                weight = matter * other / matter[other].sum()
                stress = np.einsum("k,km->m", weight, square) - 2 * np.einsum("k,km->m", weight * target[k], reach)
                cost = stress + 0.2 * cost  # less the targets' own squares, the same for all colours
            cost += CALM * matter[k] ** 2 * (places[:, 1:] ** 2).sum(axis=1)
            cost[near[other].any(axis=0)] = np.inf
            best = int(np.argmin(cost))
            if not np.isfinite(cost[best]):
                return None
            if best != taken[k]:
                taken[k] = best
                reach[k], square[k] = between[best], between[best] ** 2
                near[k] = _difference(lab, lab[best]) < apart
        if np.array_equal(before, taken):
            break
    return taken
