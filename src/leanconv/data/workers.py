"""Worker processes that read files, and the one clear error where one of them dies or memory runs out."""

from __future__ import annotations

import gc
import mmap
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.queues import Queue
from pickle import UnpicklingError
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from leanconv.errors import DataError
from leanconv.machine import give_back_freed_memory, usable_cores

__all__ = ["collated", "give_up_reserve"]


def collated(
    items: Dataset[Any],
    chunks: Sequence[Sequence[int]],
    workers: int,
    gather: Callable[[list[Any]], Any],
    *,
    ahead: int,
    reading: Callable[[], Sequence[str]],
) -> Iterator[Any]:
    """`gather` of the `items` of every chunk, made in `workers` processes, no more than there are cores.

    Every process reads up to `ahead` chunks in advance. Raises `DataError` where a process dies, with
    the names of the files that they were `reading`, and where a batch does not fit in memory.
    """
    workers = min(workers, usable_cores())
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
    except (RuntimeError, *_CUT_OFF) as error:
        text = str(error)
        if workers and isinstance(error, _CUT_OFF):
            text = f"a data loading worker ended while it sent what it had read ({text or type(error).__name__})"
        elif "DataLoader worker (pid" not in text and "allocate memory" not in text:
            raise
        what = text.strip().splitlines()[-1] if "Traceback" in text else " ".join(text.split())
        names = reading()
        at = f" while the workers read {', '.join(names)}" if names else ""
        raise DataError(
            f"{what}{at}: it probably ran out of memory (or of shared memory, /dev/shm): use"
            f" fewer workers (now {workers}) or a smaller batch"
        ) from error
    finally:
        if workers:
            # Now, and not when the error that holds the iterator is collected: then the queues' ends are closed twice,
            # by the collector and by the thread of the queue, the second time perhaps as somebody else's file.
            batches._shutdown_workers()


_CUT_OFF = (EOFError, ConnectionError, FileNotFoundError, UnpicklingError)
"""What comes of an answer whose worker is killed while it is sent."""

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
    gc.freeze()  # what the parent has yet to collect is not for a worker to close and to end
    give_back_freed_memory()  # a process that trains keeps it; here the largest frame would stay in every worker
    torch.set_num_threads(1)
    _reserve = mmap.mmap(-1, _RESERVED)
    # By default what a thread of a worker cannot send is forgotten, and whoever waits for it waits for ever.
    Queue._on_queue_feeder_error = staticmethod(_die)  # type: ignore[attr-defined]
    sys.excepthook = lambda _kind, error, _trace: _die(error)  # what serves tensors to the other process calls it
    threading.excepthook = lambda thread: _die(thread.exc_value)


def _die(error: BaseException | None, _answer: object = None) -> None:
    try:
        print(f"a data loading worker cannot send what it read: {error!r}", file=sys.stderr, flush=True)
    finally:
        # Even where there is no memory to say so; with 0, because any other code raises at once, wherever the process
        # that waits is, and not where it waits.
        os._exit(0)
