"""Notes below tables of MACs: what they are, and which operations and which share of the parameters they leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from leanconv.report.units import percent, si

if TYPE_CHECKING:
    from leanconv.cost import Cost

__all__ = ["MACS_NOTE", "OTHERS_NOTE", "count_notes", "share_note"]

MACS_NOTE = "MACs: multiply-adds of convolutions and linear layers, for one input."
OTHERS_NOTE = (
    "norms, sums, activations, products, biases: one operation for each element; pools: one for each position of each "
    "window."
)
_SHOWN = 4


def count_notes(costs: Mapping[str, Cost]) -> tuple[str, ...]:
    """The operations outside the count of some networks, by name, and the parameters that are theirs."""
    operators: Counter[str] = Counter()
    for cost in costs.values():
        operators.update(cost.not_counted)
    notes = []
    if operators:
        notes.append(f"not counted: {_first(dict(operators.most_common()), str)}.")
    attention = {name: si(cost.attention_macs) for name, cost in costs.items() if cost.attention_macs}
    if attention:
        notes.append(f"products of two activations (attention), not in MACs: {_of(attention, len(costs))}.")
    shares = {name: cost.share_not_counted for name, cost in costs.items()}
    notes += share_note(shares, of={name: cost.params_not_counted for name, cost in costs.items()})
    idle = {name: _share(cost.params_not_run / cost.params) for name, cost in costs.items() if cost.params_not_run}
    if idle:
        notes.append(f"parameters that this input does not reach: {_of(idle, len(costs))}.")
    return tuple(notes)


def share_note(shares: Mapping[str, float], *, of: Mapping[str, Mapping[str, int]] | None = None) -> tuple[str, ...]:
    """How much of each network's parameters belongs to operations that are not counted; nothing where none does."""
    said = {name: _share(share) for name, share in shares.items() if share}
    if not said:
        return ()
    if len(said) > _SHOWN:
        return (f"parameters of operations that are not counted: up to {_share(max(shares.values()))}.",)
    where = ""
    if of is not None and len(shares) == 1:
        where = f" ({_first(next(iter(of.values())), si)})"
    return (f"parameters of operations that are not counted: {_of(said, len(shares))}{where}.",)


def _share(share: float) -> str:
    return f"{percent(share, 1)} %" if share >= 0.0005 else "below 0.1 %"


def _of(said: Mapping[str, str], networks: int) -> str:
    return ", ".join(text if networks == 1 else f"{name} {text}" for name, text in said.items())


def _first(counts: Mapping[str, int], write: Callable[[int], str]) -> str:
    """The largest few, and how many more there are."""
    shown = ", ".join(f"{name} ({write(count)})" for name, count in list(counts.items())[:_SHOWN])
    return shown + (f" and {len(counts) - _SHOWN} more" if len(counts) > _SHOWN else "")
