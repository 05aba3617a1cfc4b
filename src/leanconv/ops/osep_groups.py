"""Group counts of an optimized separable convolution: the relaxed optimum of Theorem 1 and three ways to round it.

    n_l* = (gamma prod_j C_j prod K)^(1/N) / (C_{l+1} K_l^H K_l^W)                          (eq. 17)
    cost = N (gamma prod_j C_j prod K)^(1/N)                                                (eq. 20)
    N*   = log(gamma C K^2),  cost e C log(gamma C K^2)                                     (eq. 21, 22)

Everywhere `channels` are C_1 .. C_{N+1}, `taps` the taps of each stage's kernel, `overlap` is gamma, and `fixed` holds
the group counts that are given ("masked"), None where the planner is free. Plain numbers, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil, e, gcd, inf, log, prod

from leanconv.errors import PlanError

__all__ = [
    "Fixed",
    "best_stage_count",
    "cheapest_groups",
    "exact_groups",
    "paper_groups",
    "relaxed_channels_per_group",
    "relaxed_cost",
    "relaxed_minimum",
]

Fixed = Sequence[int | None]


def relaxed_channels_per_group(
    channels: Sequence[int], taps: Sequence[int], overlap: float, fixed: Fixed | None = None
) -> list[float]:
    """n_l*, the real-valued optimum of Theorem 1 (eq. 17), with the group counts in `fixed` held.

    The optimum makes all free stages cost the same: n_l C_{l+1} K_l = lambda for every free l.

    >>> [round(n, 3) for n in relaxed_channels_per_group([64, 64, 64], [9, 1], 1.0)]
    [2.667, 24.0]
    """
    count = len(taps)
    held = fixed or (None,) * count
    per_group = [inf if (group := held[l]) is None else channels[l] / group for l in range(count)]
    free = [l for l in range(count) if held[l] is None]
    if free:
        weight = {l: channels[l + 1] * taps[l] for l in free}
        needed = overlap * channels[0] / prod(per_group[l] for l in range(count) if l not in free)
        level = (needed * prod(weight.values())) ** (1 / len(free))
        for l in free:
            per_group[l] = level / weight[l]
    return per_group


def relaxed_cost(channels: Sequence[int], taps: Sequence[int], overlap: float) -> float:
    """Weights of the relaxed optimum, N (gamma prod C prod K)^(1/N) (eq. 20).

    No chain that reaches this overlap has fewer. Algorithm 1 rounds up twice, so what it makes may reach less (see
    `Plan.overlap`) and then have fewer weights than this.

    >>> round(relaxed_cost([64, 64, 64], [9, 1], 1.0))
    3072
    """
    count = len(taps)
    product = overlap * prod(channels) * prod(taps)
    return float(count * product ** (1 / count))


def best_stage_count(in_channels: int, out_channels: int, taps: int, overlap: float = 1.0) -> float:
    """N*, the number of stages with the least relaxed cost, log(gamma C K^2) (eq. 21); a real number.

    With min(C_in, C_out) channels between the stages the cost is min(C) N (gamma K^2 max(C))^(1/N), so C is max(C).

    >>> round(best_stage_count(64, 64, 9), 2)
    6.36
    """
    return log(overlap * taps * max(in_channels, out_channels))


def relaxed_minimum(in_channels: int, out_channels: int, taps: int, overlap: float = 1.0) -> float:
    """The relaxed cost at N*, e C log(gamma C K^2) (eq. 22, 29), where N* is at least 1.

    >>> round(relaxed_minimum(64, 64, 9))
    1106
    """
    return e * min(in_channels, out_channels) * max(1.0, best_stage_count(in_channels, out_channels, taps, overlap))


def paper_groups(channels: Sequence[int], taps: Sequence[int], overlap: float, fixed: Fixed) -> tuple[int, ...]:
    """Group counts of Algorithm 1, re-optimised with a mask while a stage is out of its range.

    >>> paper_groups([62, 62, 62], [9, 1], 1.0, (None, None))
    (21, 3)
    """
    held = list(fixed)
    _check_fixed(channels, held)
    while True:
        per_group = relaxed_channels_per_group(channels, taps, overlap, tuple(held))
        masked = False
        for l, n in enumerate(per_group):
            most = min(channels[l], channels[l + 1])
            if held[l] is None and (channels[l] / n < 1 or channels[l] / n > most):
                held[l] = 1 if channels[l] / n < 1 else most
                masked = True
        if not masked:
            break
    groups = []
    for l, n in enumerate(per_group):
        group = held[l]
        if group is None:
            # 1e-9: an optimum that is a whole number must not be rounded up for a rounding error.
            group = min(ceil(channels[l] / ceil(n - 1e-9)), channels[l], channels[l + 1])
        groups.append(group)
    return tuple(groups)


def exact_groups(channels: Sequence[int], taps: Sequence[int], overlap: float, fixed: Fixed) -> tuple[int, ...]:
    """The cheapest group counts that divide their channels and satisfy n_1 ... n_N >= gamma C_1, by exhaustive search.

    >>> exact_groups([64, 64, 64], [9, 1], 1.0, (None, None))
    (32, 2)
    """
    count = len(taps)
    options = []
    for l in range(count):
        common = gcd(channels[l], channels[l + 1])
        legal = [g for g in range(1, common + 1) if common % g == 0 and fixed[l] in (None, g)]
        if not legal:
            raise PlanError(
                f"stage_groups: groups of stage {l + 1} (={fixed[l]}) must divide "
                f"{channels[l]} and {channels[l + 1]} channels"
            )
        options.append(legal)
    needed = _needed(channels, count, overlap)

    def search(l: int, seen: float) -> Iterator[tuple[int, tuple[int, ...]]]:
        if l == count:
            if seen >= needed * (1 - 1e-9):
                yield 0, ()
            return
        for group in options[l]:
            per_group = channels[l] // group
            for cost, rest in search(l + 1, seen * per_group):
                yield cost + channels[l + 1] * per_group * taps[l], (group, *rest)

    found = min(search(0, 1.0), default=None)
    if found is None:
        raise PlanError(
            f"no group counts that divide {channels} keep an overlap of {overlap} with stage_groups={fixed}"
        )
    return found[1]


def cheapest_groups(
    channels: Sequence[int],
    taps: Sequence[int],
    overlap: float,
    fixed: Fixed,
    start: tuple[int, ...],
    accept: Callable[[tuple[int, ...]], bool],
) -> tuple[int, ...]:
    """The cheapest group counts of all, spare slots counted, that satisfy n_1 ... n_N >= gamma C_1 and that `accept`
    takes; `start` where none is cheaper.

    Branch and bound: what the remaining stages cost at least is their relaxed optimum. Of counts that leave the same
    channels in a group only the smallest is tried, because more of them only add spare slots. `accept` is asked from
    the cheapest upwards.

    >>> cheapest_groups([62, 62, 62], [9, 1], 1.0, (None, None), (20, 3), lambda groups: True)
    (21, 3)
    """
    count = len(taps)
    _check_fixed(channels, fixed)
    needed = _needed(channels, count, overlap) * (1 - 1e-9)
    weight = [channels[l + 1] * taps[l] for l in range(count)]
    costs = [_options(channels, taps, l, fixed[l]) for l in range(count)]
    least = sum(_stage_cost(channels, taps, l, group) for l, group in enumerate(start))
    found: list[tuple[int, tuple[int, ...]]] = []

    def rest_at_least(l: int, product: float) -> float:
        """The least cost of the stages from `l` on when n_l ... n_N must reach `product`; each n is at least 1."""
        left = count - l
        if not left:
            return 0.0
        relaxed: float = left * (max(product, 1.0) * prod(weight[l:])) ** (1 / left)
        return max(float(sum(weight[l:])), relaxed)

    def search(l: int, product: float, cost: int, chosen: tuple[int, ...]) -> None:
        if l == count:
            if product >= needed:
                found.append((cost, chosen))
            return
        reach = prod(channels[l + 1 : count])
        for own, per_group, group in costs[l]:
            if cost + own >= least:
                break  # the options come cheapest first
            met = product * per_group
            if met * reach >= needed and cost + own + rest_at_least(l + 1, needed / met) < least:
                search(l + 1, met, cost + own, (*chosen, group))

    search(0, 1.0, 0, ())
    return next((groups for _, groups in sorted(found) if accept(groups)), start)


def _options(channels: Sequence[int], taps: Sequence[int], l: int, given: int | None) -> list[tuple[int, int, int]]:
    """(cost, channels per group, groups) of stage `l`, the cheapest first."""
    most = min(channels[l], channels[l + 1])
    smallest: dict[tuple[int, int], int] = {}
    for group in range(1, most + 1) if given is None else (given,):
        smallest.setdefault((-(-channels[l] // group), -(-channels[l + 1] // group)), group)
    return sorted(
        (_stage_cost(channels, taps, l, group), per_group, group) for (per_group, _), group in smallest.items()
    )


def _stage_cost(channels: Sequence[int], taps: Sequence[int], l: int, groups: int) -> int:
    """Weights of stage `l`, on as many slots as the groups need."""
    return groups * -(-channels[l + 1] // groups) * -(-channels[l] // groups) * taps[l]


def _needed(channels: Sequence[int], count: int, overlap: float) -> float:
    """gamma C_1, or what a dense chain has where that is less: more overlap cannot be asked of it."""
    return float(min(overlap * channels[0], prod(channels[:count])))


def _check_fixed(channels: Sequence[int], fixed: Fixed) -> None:
    for l, group in enumerate(fixed):
        most = min(channels[l], channels[l + 1])
        if group is not None and not 1 <= group <= most:
            raise PlanError(f"stage_groups: groups of stage {l + 1} must be between 1 and {most}, got {group}")
