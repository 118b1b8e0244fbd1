"""Components that are the same but for their weight, treated as one: what is dead costs one component's work in all.

A component that no row belongs to has the prior's mean and precision, and so has every other such component. Of
components with one quadratic form q_n and offsets a_k,

    sum_k exp(a_k - q_n / 2) = exp(a - q_n / 2),  a = ln sum_k exp a_k,     r_nk = r_n exp(a_k - a)

so a pass over one component with offset a gives the statistics of each, exactly: shares exp(a_k - a) of them, and as
much more entropy as the shares have. Labels are another matter: the largest of many is not their sum.

`merge` looks for equal components by value. On an accelerator that would stop the queue: `merge_alike` is told how many
there are, and which is for the device to know.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fastclust.kernels.contract import Coefficients, Statistics


@dataclass(frozen=True)
class Parts:
    """Say what part each of K components is of one of G groups.

    group: (K,) int64, which group a component is in. share: (K,) float64, its part of the group's responsibility.
    """

    group: torch.Tensor
    share: torch.Tensor

    def apart(self, statistics: Statistics) -> Statistics:
        """Return the statistics of the components, given those of the groups."""
        found = statistics.take(self.group)
        entropy = -torch.xlogy(self.share, self.share)  # (K,)
        one, more = self.share[:, None], self.share[:, None, None]
        sxx = found.sxx
        if sxx is not None:
            sxx = sxx * (self.share if sxx.ndim == 1 else one if sxx.ndim == 2 else more)
        return replace(
            found,
            nk=found.nk * self.share,
            sx=found.sx * one,
            sxx=sxx,
            entropy=found.entropy + (found.nk * entropy).sum(),
        )


def merge(coefficients: Coefficients) -> tuple[Coefficients, Parts] | None:
    """Return coefficients with equal components merged, and parts; None where no two are equal, to the last bit."""
    means, precision = coefficients.means, coefficients.precision
    kind = coefficients.covariance_type
    own = means.cpu().numpy() if kind in ("tied", "full") else torch.column_stack([means, precision]).cpu().numpy()
    firsts: list[int] = []  # of the groups
    of_key: dict[bytes, list[int]] = {}  # groups with these numbers
    groups: list[int] = []
    for k, numbers in enumerate(own):
        alike = of_key.setdefault(numbers.tobytes(), [])
        same = next((g for g in alike if kind != "full" or torch.equal(precision[k], precision[firsts[g]])), None)
        if same is None:
            same = len(firsts)
            firsts.append(k)
            alike.append(same)
        groups.append(same)
    if len(firsts) == len(means):
        return None
    group = torch.tensor(groups)
    members = group == torch.arange(len(firsts))[:, None]  # (G, K)
    offset = torch.where(members, coefficients.offset.cpu(), -torch.inf)
    first, total = torch.tensor(firsts), torch.logsumexp(offset, 1)
    share = (coefficients.offset.cpu() - total[group]).exp()
    device = means.device
    group, share, first = (part.to(device) for part in (group, share, first))
    merged = replace(
        coefficients,
        offset=total.to(device),
        means=means[first],
        precision=precision if coefficients.covariance_type == "tied" else precision[first],
    )
    return merged, Parts(group, share)


def merge_alike(coefficients: Coefficients, alike: torch.Tensor, n: int) -> tuple[Coefficients, Parts]:
    """Return coefficients with the last n components of those that are alike (K,) bool as one, the last, and parts.

    n: 1 or more, and no more than are alike. The host waits for nothing.
    """
    alone = len(alike) - n
    order = alike.to(torch.uint8).argsort(stable=True)  # (K,), those that are alike last
    place = order.argsort()
    offset = coefficients.offset[order]
    total = torch.logsumexp(offset[alone:], 0, keepdim=True)
    share = torch.cat([torch.ones_like(offset[:alone]), (offset[alone:] - total).exp()])
    kept = order[: alone + 1]  # (G,)
    merged = replace(
        coefficients,
        offset=torch.cat([offset[:alone], total]),
        means=coefficients.means[kept],
        precision=coefficients.precision if coefficients.covariance_type == "tied" else coefficients.precision[kept],
    )
    return merged, Parts(place.clamp(max=alone), share[place])
