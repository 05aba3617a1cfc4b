"""Files decoded when a batch needs them, in worker processes; what cannot be read is named and passed over."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from leanconv.data.loaders import Batch
from leanconv.data.sets.splits import Problem
from leanconv.data.workers import collated, give_up_reserve
from leanconv.errors import DataError

__all__ = ["Files", "Stream"]


class Files(Protocol):
    """Files by number, and how one of them becomes pixels. Made of plain data, so that it can be sent to a process.

    `read` gives the pixels of item `number` of an epoch (None: evaluation), which shows `file`; what is found out
    about a file and saves work the next time is kept in `notes`, under the file's number. `replacements` are the files
    tried in training where `file` cannot be used. `unit` is what one file is called: image, video.
    """

    @property
    def unit(self) -> str: ...

    @property
    def labels(self) -> Tensor: ...

    def name(self, file: int) -> str: ...

    def replacements(self, file: int, number: int, epoch: int) -> Iterator[int]: ...

    def read(self, file: int, number: int, epoch: int | None, notes: MutableMapping[int, Any]) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The items of `files`, each file `repeats` times an epoch, decoded in `workers` processes.

    In training a file that cannot be used is replaced by another one, so that every process of a distributed run makes
    the same number of equal steps; in evaluation it is left out. Either way it is added to `problems`. `notes` holds
    what has been found out about the files, whichever process read them.
    """

    files: Files
    workers: int
    repeats: int = 1
    ahead: int = 2
    problems: dict[str, Problem] = field(default_factory=dict)
    notes: dict[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.files.labels) * self.repeats

    @property
    def labels(self) -> Tensor:
        return self.files.labels.repeat(self.repeats)

    def name(self, index: int) -> str:
        return self.files.name(index % len(self.files.labels))

    def fetch(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[Batch]:
        for pixels, labels, _ in self.batches(chunks, epoch):
            yield pixels, labels

    def batches(self, chunks: Sequence[Sequence[int]], epoch: int | None) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
        """Pixels, labels and the numbers of the files that they are from.

        Raises `DataError` where nothing can be read, and where memory runs out, with the name of the file.
        """
        items = _Items(self, epoch)
        last: Problem | None = None
        found = False
        for part in collated(items, chunks, self.workers, _gather, ahead=self.ahead, reading=items.reading):
            self.notes.update(part.notes)
            self.problems.update((problem.name, problem) for problem in part.problems)
            last = part.problems[-1] if part.problems else last
            if part.refusal is not None:
                raise DataError(part.refusal)
            if part.pixels is not None:
                found = True
                yield part.pixels, part.labels, part.files
        if last is not None and not found:
            raise DataError(f"none of the {self.files.unit}s could be read, for example {last.name}: {last.reason}")


class _Part(NamedTuple):
    """One item, or a batch of them, and what came up on the way."""

    pixels: Tensor | None
    labels: Tensor
    files: list[int]
    problems: list[Problem]
    notes: dict[int, Any]
    refusal: str | None = None


_NOTHING = torch.empty(0, dtype=torch.int64)


def _refused(why: str, problems: Sequence[Problem] = ()) -> _Part:
    return _Part(None, _NOTHING, [], list(problems), {}, why)


class _Items(Dataset[_Part]):
    """The map-style data set that worker processes run."""

    def __init__(self, stream: Stream, epoch: int | None) -> None:
        self.stream, self.epoch = stream, epoch
        self.labels = stream.files.labels
        self.refusal: str | None = None
        """Why this process reads no more: what it reads would take the memory that its answer needs."""
        self.at = torch.full((max(stream.workers, 1),), -1)
        """The file that each worker is reading, in memory that all share: a worker that is killed sends no answer."""
        if stream.workers:
            self.at.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, number: int) -> _Part:
        if self.refusal is not None:
            return _refused(self.refusal)
        files, workers = self.stream.files, self.stream.workers
        problems: list[Problem] = []
        found_out: dict[int, Any] = {}
        for file in self._candidates(number):
            name = files.name(file)
            self._note(file)
            try:
                pixels = files.read(file, number, self.epoch, ChainMap(found_out, self.stream.notes))
            except MemoryError as error:
                self.refusal = (
                    f"{error if str(error).startswith(name) else f'{name}: memory ran out'}: use fewer workers (now"
                    f" {workers}) or a smaller batch, or store the {files.unit} smaller"
                )
                break
            except Exception as error:  # decoders raise anything on broken input
                reason = " ".join(str(error).removeprefix(f"{name}: ").split()) or type(error).__name__
                problems.append(Problem(name, reason))
                continue
            finally:
                self._note(-1)
            return _Part(pixels, self.labels[file : file + 1], [file], problems, found_out)
        if self.refusal is not None:
            give_up_reserve()  # here the error is gone, and with it the decoder whose threads would fill what is free
            return _refused(self.refusal, problems)
        if self.epoch is None:
            return _Part(None, _NOTHING, [], problems, found_out)
        name, reason = problems[-1]
        return _refused(
            f"{len(problems)} {files.unit}s in a row cannot be used for training, the last is {name}: {reason}",
            problems,
        )

    def reading(self) -> list[str]:
        """The files that the workers are reading."""
        return [self.stream.files.name(file) for file in self.at.tolist() if file >= 0]

    def _candidates(self, number: int) -> Iterator[int]:
        file = number % len(self.labels)
        yield file
        if self.epoch is not None:
            yield from self.stream.files.replacements(file, number, self.epoch)

    def _note(self, file: int) -> None:
        worker = get_worker_info()
        self.at[0 if worker is None else worker.id] = file


def _gather(parts: list[_Part]) -> _Part:
    problems = [problem for part in parts for problem in part.problems]
    for part in parts:
        if part.refusal is not None:
            return _refused(part.refusal, problems)
    pixels = [part.pixels for part in parts if part.pixels is not None]
    return _Part(
        torch.stack(pixels) if pixels else None,
        torch.cat([part.labels for part in parts]),
        [file for part in parts for file in part.files],
        problems,
        {file: note for part in parts for file, note in part.notes.items()},
    )
