"""What one tensor sees of the network's input, axis by axis, through reshapes and joins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from leanconv.cost.lattice import Lattice, Lost, resize, union, window

__all__ = ["Dim", "Factor", "Field", "Walk", "blank", "join", "merged", "plain", "regroup"]


class Walk(NamedTuple):
    """Going along input axis `axis` (0 is the first spatial one) in the steps of `lattice`."""

    axis: int
    lattice: Lattice


@dataclass(frozen=True, slots=True)
class Factor:
    """A factor of a tensor's axis, in row-major order; `walk` is None when it goes along no axis of the input."""

    size: int
    walk: Walk | None = None


Dim = tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """The factors of each axis of a tensor, the input axes that every element sees whole, and why.

    `lost` says that the bookkeeping ended here or before: `whole` is then only an upper bound.
    """

    dims: tuple[Dim, ...]
    whole: frozenset[int] = frozenset()
    why: str = ""
    lost: bool = False

    def walk(self, dim: int) -> Walk | None:
        """How `dim` goes along the input, as one lattice; None when it does not. Raises `Lost` for a mixed axis."""
        factors = self.dims[dim]
        walking = [(i, f.walk) for i, f in enumerate(factors) if f.walk is not None]
        if not walking:
            return None
        position, walk = walking[0]
        if len(walking) > 1 or prod(f.size for f in factors[:position]) > 1:
            raise Lost("an axis mixes several spatial axes")
        inner = prod(f.size for f in factors[position + 1 :])
        if inner == 1:
            return walk
        size = factors[position].size
        return Walk(walk.axis, resize(walk.lattice, old=size, new=size * inner, mode="nearest"))

    def moved(self, dim: int, size: int, rule: Callable[[Lattice], Lattice]) -> Dim:
        """An axis of `size` that goes along the input as `rule` makes of the lattice of `dim`. Raises `Lost`."""
        walk = self.walk(dim)
        return plain(size) if walk is None else (Factor(size, Walk(walk.axis, rule(walk.lattice))),)

    def axes(self, dims: Iterable[int] | None = None) -> frozenset[int]:
        """The input axes that `dims` (all, by default) go along."""
        chosen = self.dims if dims is None else [self.dims[d] for d in dims]
        return frozenset(f.walk.axis for dim in chosen for f in dim if f.walk is not None)

    def sees_whole(self, axes: Iterable[int]) -> Field:
        """The same field after every element has seen all of `axes`."""
        return replace(self, whole=self.whole.union(axes))

    def with_dim(self, dim: int, new: Dim) -> Field:
        """The same field with another axis `dim`."""
        return replace(self, dims=(*self.dims[:dim], new, *self.dims[dim + 1 :]))


def plain(size: int) -> Dim:
    """An axis that goes along no axis of the input, such as channels."""
    return (Factor(size),)


def blank(shape: Sequence[int]) -> tuple[Dim, ...]:
    """Axes of a tensor without positions."""
    return tuple(plain(n) for n in shape)


def join(fields: Sequence[Field], shape: Sequence[int]) -> Field:
    """What an element sees that is made of the elements of all `fields`, broadcast to `shape`."""
    dims: list[Dim] = []
    for dim, size in enumerate(shape):
        mine: Dim | None = None
        for field in fields:
            own = dim - len(shape) + len(field.dims)
            if own < 0 or not field.axes([own]):
                continue
            other = field.dims[own]
            if prod(f.size for f in other) != size:
                raise Lost("one position is broadcast along a spatial axis")
            mine = other if mine is None else _join_dim(mine, other, size)
        dims.append(mine or plain(size))
    return merged(dims, fields)


def merged(dims: Iterable[Dim], fields: Sequence[Field]) -> Field:
    """A field with new axes and all that `fields` see whole."""
    whole = frozenset[int]().union(*(field.whole for field in fields))
    why = next((field.why for field in fields if field.why), "")
    return Field(tuple(dims), whole, why, any(field.lost for field in fields))


def _join_dim(a: Dim, b: Dim, size: int) -> Dim:
    if a == b:
        return a
    if [(f.size, f.walk and f.walk.axis) for f in a] == [(f.size, f.walk and f.walk.axis) for f in b]:
        return tuple(_join_factor(x, y) for x, y in zip(a, b, strict=True))
    left, right = Field((a,)).walk(0), Field((b,)).walk(0)
    if left is None or right is None or left.axis != right.axis:
        raise Lost("two maps go along different axes")
    return (Factor(size, Walk(left.axis, union(left.lattice, right.lattice, size))),)


def _join_factor(a: Factor, b: Factor) -> Factor:
    if a.walk is None or b.walk is None:
        return a
    return Factor(a.size, Walk(a.walk.axis, union(a.walk.lattice, b.walk.lattice, a.size)))


def regroup(field: Field, shape: Sequence[int]) -> Field:
    """A reshape: the same factors in the same order, dealt out to new axes; a cut block is seen whole."""
    queue = [f for dim in field.dims for f in dim if f.size > 1 or f.walk is not None]
    dims: list[Dim] = []
    for size in shape:
        dim: list[Factor] = []
        need = size
        if need == 1 and queue and queue[0].size == 1:
            dim.append(queue.pop(0))
        while need > 1:
            factor = queue.pop(0)
            if need % factor.size == 0:
                dim.append(factor)
                need //= factor.size
            elif factor.size % need == 0:
                block = factor.size // need
                dim.append(Factor(need, _blocks(factor.walk, block)))
                queue.insert(0, Factor(block))
                need = 1
            else:
                raise Lost("a reshape cuts across axes")
        dims.append(tuple(dim) or plain(size))
    if queue and dims:  # positions of maps of one pixel
        dims[-1] = (*dims[-1], *queue)
    return replace(field, dims=tuple(dims))


def _blocks(walk: Walk | None, block: int) -> Walk | None:
    return walk and Walk(walk.axis, window(walk.lattice, kernel=block, stride=block))
