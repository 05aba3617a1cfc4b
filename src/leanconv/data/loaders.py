"""Batches of one epoch in an order that is a pure function of the epoch, and each process's share of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from leanconv.data.sets.splits import Problem
from leanconv.errors import DataError
from leanconv.seeds import generator

__all__ = ["Batch", "Loader", "Memory", "Source", "epoch_order", "every_nth", "share_out"]

Batch = tuple[Tensor, Tensor]
"""Images (n, 3, size, size) or clips (n, 3, frames, size, size), and labels (n,)."""


class Source(Protocol):
    """Where uint8 pixels come from; `epoch` is None for evaluation, `problems` are the files that cannot be used."""

    @property
    def problems(self) -> dict[str, Problem]: ...

    @property
    def labels(self) -> Tensor: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def fetch(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[Batch]: ...


@dataclass(frozen=True, kw_only=True)
class Loader:
    """An iterable of `len(loader)` batches (float inputs, int64 labels); iterating it again gives the same batches."""

    source: Source
    chunks: tuple[tuple[int, ...], ...]
    epoch: int | None
    finish: Callable[[int, Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Batch]:
        return self.after(0)

    def after(self, done: int) -> Iterator[Batch]:
        """The batches without the first `done`, which are not read either."""
        for number, (pixels, labels) in enumerate(self.source.fetch(self.chunks[done:], self.epoch), done):
            yield self.finish(number, pixels), labels

    @property
    def items(self) -> int:
        """How many items the batches hold, those counted that turn out to be unreadable."""
        return sum(map(len, self.chunks))

    def names(self) -> list[str]:
        """The names of the items in the order in which evaluation gives them; known when the batches have been read."""
        wanted = (self.source.name(index) for chunk in self.chunks for index in chunk)
        return [name for name in wanted if name not in self.source.problems]


@dataclass(frozen=True)
class Memory:
    """All pixels (n, 3, size, size), decoded once; `problems` are the files that could not be, and are left out.

    `names` are those of the others, and `turned` of them are shown as their EXIF record says.
    """

    pixels: Tensor
    labels: Tensor
    names: tuple[str, ...]
    problems: dict[str, Problem] = field(default_factory=dict)
    turned: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self.names[index]

    def fetch(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[Batch]:
        for chunk in chunks:
            indices = torch.tensor(chunk)
            yield self.pixels[indices], self.labels[indices]


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 .. count-1 as the given epoch visits them."""
    order: list[int] = torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
    return order


def share_out(
    order: Sequence[int], batch_size: int, rank: int, world: int, what: str
) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The full batches of `order`, of which process `rank` of `world` gets its share: (size of a batch, the shares).

    What is left over at the end is left out; a set smaller than a batch is one batch. Raises `DataError` when a batch
    of `what` (images, clips) cannot be shared out evenly.
    """
    count = len(order)
    total = min(batch_size, count // world * world)
    if total == 0 or total % world:
        raise DataError(
            f"batches of {total or count} {what} cannot be shared evenly by {world} processes: choose a"
            f" batch_size that is a multiple of {world}"
        )
    share = total // world
    starts = range(rank * share, count // total * total, total)
    return total, tuple(tuple(order[start : start + share]) for start in starts)


def every_nth(count: int, batch_size: int, rank: int, world: int) -> tuple[tuple[int, ...], ...]:
    """The numbers below `count` in batches, nothing dropped; process `rank` gets every `world`-th number."""
    mine = range(rank, count, world)
    return tuple(tuple(mine[start : start + batch_size]) for start in range(0, len(mine), batch_size))
