"""What a plan is made with: its numbers and tables, its weights, and its head, which says where everything is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leanconv.kernels.layout import LINE, up
from leanconv.kernels.steps import Floats

__all__ = ["MOST_NUMBER", "PLAN_VERSION", "Packed", "Port", "Writer"]

PLAN_VERSION = 7
MOST_NUMBER = 1 << 33
"""More than that a plan that was received may not say; multiply-adds above it are said to be so many."""
_HEAD, _PORT = 10, 6
"""Numbers of the head, and of each port, as in native/plan.h."""


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """What the library is given; `floats` is the size of the arena, `stamp` tells plans apart.

    A run leaves so many `sums`; `summed` says for each `Sums` step which of them its numbers are (-1: always zero).
    """

    plan: NDArray[np.int64]
    weights: Floats
    floats: int
    stamp: int
    sums: int = 0
    summed: tuple[NDArray[np.int64], ...] = ()


class Port(NamedTuple):
    """An input or output: its size, floats from row to row and from pixel to pixel, and where its channels start."""

    height: int
    width: int
    pitch: int
    origins: list[int]
    pixel: int = 1


class Writer:
    """Collects the numbers and the weights of a plan of so many ports and records of steps."""

    def __init__(self, ports: int, records: int) -> None:
        self.numbers = [0] * (_HEAD + _PORT * ports + records)
        self._head = len(self.numbers)
        self._weights: list[Floats] = []
        self.weight_floats = 0

    def table(self, numbers: Iterable[int]) -> int:
        """Put numbers into the plan; where they are."""
        position = len(self.numbers)
        self.numbers += numbers
        return position

    def floats(self, values: Floats) -> int:
        """Put numbers behind the other weights; where they are."""
        position = self.weight_floats
        self._weights.append(np.ascontiguousarray(values, dtype=np.float32).ravel())
        self.weight_floats += values.size
        return position

    def packed(
        self,
        lanes: int,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        records: Sequence[int],
        floats: int,
        own: int = LINE,
        sums: int = 0,
        summed: tuple[NDArray[np.int64], ...] = (),
    ) -> Packed:
        """The whole; `records` are the places of the steps, `floats` those of the arena without the sums.

        What is before `own` is each thread's."""
        fields: list[int] = []
        for port in (*inputs, *outputs):
            table = self.table(port.origins)
            fields += [len(port.origins), port.height, port.width, port.pitch, table, port.pixel]
        at_sums = up(floats, LINE)
        floats = at_sums + sums * LINE
        counts = [len(inputs), len(outputs), len(records), lanes, sums, at_sums, own]
        self.numbers[: self._head] = [PLAN_VERSION, 0, floats, *counts, *fields, *records]
        plan = np.array(self.numbers, dtype=np.int64)
        stamp = int.from_bytes(hashlib.sha256(plan.tobytes()).digest()[:7], "little") + 1
        plan[1] = stamp
        weights = np.concatenate([*self._weights, np.zeros(16, np.float32)])
        return Packed(plan, weights, floats, stamp, sums, summed)
