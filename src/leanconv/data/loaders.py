"""Batches of one epoch, from memory or decoded on the way, in an order that is a pure function of the epoch."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from leanconv.data.decode import Transform, decode
from leanconv.data.seeds import generator, isolated
from leanconv.data.splits import Problem, Split
from leanconv.errors import DataError

__all__ = [
    "Batch",
    "Loader",
    "Memory",
    "Source",
    "Stream",
    "collated",
    "epoch_order",
    "every_nth",
    "give_up_reserve",
    "share_out",
]

Batch = tuple[Tensor, Tensor]
"""Images (n, 3, size, size) and labels (n,)."""


class Source(Protocol):
    """Where uint8 pixels come from; `epoch` is None for evaluation."""

    def __len__(self) -> int: ...

    def fetch(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[Batch]: ...


@dataclass(frozen=True, kw_only=True)
class Loader:
    """An iterable of `len(loader)` batches (float images, int64 labels); iterating it again gives the same batches."""

    source: Source
    chunks: tuple[tuple[int, ...], ...]
    epoch: int | None
    finish: Callable[[int, Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Batch]:
        for number, (pixels, labels) in enumerate(self.source.fetch(self.chunks, self.epoch)):
            yield self.finish(number, pixels), labels


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The numbers 0 .. count-1 as the given epoch visits them."""
    order: list[int] = torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
    return order


def share_out(
    order: Sequence[int], batch_size: int, rank: int, world: int, what: str = "images"
) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """The full batches of `order`, of which process `rank` of `world` gets its share: (size of a batch, the shares).

    What is left over at the end is left out; a set smaller than a batch is one batch. Raises `DataError` when a batch
    cannot be shared out evenly.
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


@dataclass(frozen=True)
class Memory:
    """All pixels (n, 3, size, size), decoded once."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[Batch]:
        for chunk in chunks:
            indices = torch.tensor(chunk)
            yield self.pixels[indices], self.labels[indices]


@dataclass(frozen=True)
class Stream:
    """Images decoded when a batch needs them, in `workers` processes, no more than there are cores.

    What cannot be read is added to `problems`.

    In training an unreadable image is replaced by the next readable one, so that every process of a distributed run
    makes the same number of equal steps; in evaluation it is left out.
    """

    split: Split
    training: Transform
    evaluation: Transform
    seed: int
    workers: int
    problems: dict[str, Problem] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.split.labels)

    def fetch(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[Batch]:
        items = _Items(self, self.split.labels, epoch)
        for pixels, labels, problems in collated(items, chunks, self.workers, _gather):
            self.problems.update((problem.name, problem) for problem in problems)
            if pixels is None:
                last = problems[-1]
                raise DataError(f"no image of a whole batch could be read, for example {last.name}: {last.reason}")
            yield pixels, labels


def collated(
    items: Dataset[Any],
    chunks: Sequence[Sequence[int]],
    workers: int,
    gather: Callable[[list[Any]], Any],
    *,
    ahead: int = 2,
    reading: Callable[[], Sequence[str]] = tuple,
) -> Iterator[Any]:
    """`gather` of the `items` of every chunk, made in `workers` processes, no more than there are cores.

    Every process works `ahead` of what is asked for by so many chunks. Raises `DataError` where a process dies, with
    the names of the files that they were `reading`, and where a batch does not fit in memory.
    """
    workers = min(workers, os.cpu_count() or 1)
    loader: Any = DataLoader(
        items,
        batch_sampler=[list(chunk) for chunk in chunks],
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        collate_fn=gather,
        worker_init_fn=_begin,
        generator=torch.Generator(),  # the loader draws a base seed that nothing here uses; not from the global one
    )
    with warnings.catch_warnings():
        # Python 3.12 warns of forking a process with threads; the workers decode files and use none of ours.
        warnings.filterwarnings("ignore", message=r".*use of fork\(\) may lead to deadlocks")
        batches = iter(loader)
    try:
        yield from batches
    except RuntimeError as error:
        text = str(error)
        if "DataLoader worker (pid" not in text and "allocate memory" not in text:
            raise
        what = text.strip().splitlines()[-1] if "Traceback" in text else " ".join(text.split())
        names = reading()
        at = f" while the workers read {', '.join(names)}" if names else ""
        raise DataError(
            f"{what}{at}: it probably ran out of memory (or of shared memory, /dev/shm): use"
            f" fewer workers (now {workers}) or a smaller batch"
        ) from error


_TRIES = 16


_Item = tuple[Tensor | None, int, list[Problem]]


class _Items(Dataset[_Item]):
    """The map-style data set that worker processes run."""

    def __init__(self, stream: Stream, labels: Tensor, epoch: int | None) -> None:
        self.stream, self.labels, self.epoch = stream, labels, epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> _Item:
        stream = self.stream
        problems: list[Problem] = []
        tries = 1 if self.epoch is None else _TRIES
        for candidate in itertools.islice(itertools.cycle(range(len(self.labels))), index, index + tries):
            if self.epoch is None:
                pixels = decode(stream.split, candidate, stream.evaluation)
            else:
                with isolated(stream.seed, "image", self.epoch, index):
                    pixels = decode(stream.split, candidate, stream.training)
            if isinstance(pixels, Tensor):
                return pixels, int(self.labels[candidate]), problems
            problems.append(pixels)
        return None, -1, problems


def _gather(items: list[_Item]) -> tuple[Tensor | None, Tensor, list[Problem]]:
    pixels = [item[0] for item in items if item[0] is not None]
    labels = [item[1] for item in items if item[0] is not None]
    problems = [problem for item in items for problem in item[2]]
    return torch.stack(pixels) if pixels else None, torch.tensor(labels, dtype=torch.int64), problems


_reserve: mmap.mmap | None = None
"""Addresses that a worker keeps free: an answer that says that memory ran out takes memory itself."""

_RESERVED = 32 * 2**20
"""Enough for the stack of the thread that sends the answer (8 MiB) and for what it imports; never touched."""


def give_up_reserve() -> None:
    """Make room for the answer of a worker whose memory ran out."""
    global _reserve
    if _reserve is not None:
        gc.collect()
        _reserve.close()
        _reserve = None


def _begin(_worker: int) -> None:
    global _reserve
    torch.set_num_threads(1)
    _reserve = mmap.mmap(-1, _RESERVED)
    # By default an answer that cannot be sent is forgotten, and whoever waits for it waits for ever.
    Queue._on_queue_feeder_error = staticmethod(_die)  # type: ignore[attr-defined]


def _die(error: Exception, _answer: object) -> None:
    try:
        print(f"a data loading worker cannot send what it read: {error!r}", file=sys.stderr, flush=True)
    finally:
        # Even where there is no memory to say so; with 0, because any other code raises at once, wherever the process
        # that waits is, and not where it waits.
        os._exit(0)
