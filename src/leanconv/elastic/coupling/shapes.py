"""What a reshape does to channels: the old axes are divided into parts, and the parts joined to the new axes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from leanconv.elastic.coupling.rows import Row, divide, join

__all__ = ["Dims", "Unknown", "reshaped"]

Dims = tuple[Row | None, ...]
"""For each axis of a tensor the row of channels that lies there, or None."""


class Unknown(Exception):
    """No rule says what this operation does to channels; the message is the reason."""


def reshaped(
    name: str, dims: Dims, old: Sequence[int], new: Sequence[int], computed: int | None = None
) -> tuple[Row | None, ...]:
    """The dims of a tensor of sizes `old` read as sizes `new`: axes are divided into parts and parts joined.

    `computed` is the new axis whose size the code leaves to be computed.
    """
    if 0 in old:
        return (None,) * len(new)
    atoms = _atoms(name, old, new)
    parts: list[tuple[int, Row | None]] = []
    mark = _part_of(computed, new, atoms)
    for row, sizes in zip(dims, _dealt(old, atoms), strict=True):
        if row is None or len(sizes) < 2:
            parts += [(size, row) for size in sizes]
        else:
            places = [i for i in range(len(sizes)) if len(parts) + i == mark]
            parts += zip(sizes, divide(row, sizes, places[0] if places else None), strict=True)
    out: list[Row | None] = []
    for sizes in _dealt(new, atoms):
        mine, parts = parts[: len(sizes)], parts[len(sizes) :]
        out.append(join([row for _, row in mine], sizes) if mine else None)
    return tuple(out)


def _atoms(name: str, old: Sequence[int], new: Sequence[int]) -> list[int]:
    """The coarsest sizes of which both shapes are made by joining neighbours; without ones."""
    steps = sorted({prod(shape[i:]) for shape in (old, new) for i in range(len(shape) + 1)})
    if any(big % small for small, big in pairwise(steps)):
        raise Unknown(f"{name} from {list(old)} to {list(new)} divides or mixes the channels")
    return [big // small for small, big in pairwise(steps)][::-1]


def _dealt(shape: Sequence[int], atoms: Sequence[int]) -> list[list[int]]:
    """Which of the atoms make each axis."""
    left = list(atoms)
    out = []
    for size in shape:
        mine: list[int] = []
        while prod(mine) < size:
            mine.append(left.pop(0))
        out.append(mine)
    return out


def _part_of(axis: int | None, shape: Sequence[int], atoms: Sequence[int]) -> int | None:
    """The number of the atom that alone makes `axis`."""
    if axis is None:
        return None
    dealt = _dealt(shape, atoms)
    return sum(map(len, dealt[:axis])) if len(dealt[axis]) == 1 else None
