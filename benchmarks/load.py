"""A competing load: processes that each keep a core busy, started and paused on a schedule.

They are there before the first step and merely paused, so that a step takes effect at once. POSIX only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Self

from leanconv.errors import LeanconvError

__all__ = ["Load", "pin"]

# Ends by itself when whoever started it has gone.
_BUSY = """
import os
parent = os.getppid()
print(flush=True)
while os.getppid() == parent:
    for _ in range(200_000):
        pass
"""


class Load:
    """`steps` of (second, processes): from each second on, so many processes compete. None compete outside the scope.

    `core` is where they run, as in `pin`; by default wherever the system puts them.
    Raises `LeanconvError` for steps that are not in order, and where the system cannot pause or place processes.

    >>> load = Load.parse("5:1,10:2,15:0")
    >>> load.steps
    ((5.0, 1), (10.0, 2), (15.0, 0))
    >>> [load.wanted(second) for second in (0, 5, 14.9, 15)]
    [0, 1, 2, 0]
    """

    def __init__(self, steps: Sequence[tuple[float, int]], *, core: int | None = None) -> None:
        self.steps = tuple((float(second), int(count)) for second, count in steps)
        seconds = [second for second, _ in self.steps]
        if seconds != sorted(set(seconds)) or any(second < 0 or count < 0 for second, count in self.steps):
            raise LeanconvError(
                f"a load is steps of (second, processes) in order of time, none below 0, got {list(self.steps)}"
            )
        if core is not None:
            _check_core(core)
        if not hasattr(signal, "SIGSTOP"):
            raise LeanconvError("a competing load needs a system that can pause processes (SIGSTOP)")
        self.core = core
        self._processes: list[subprocess.Popen[str]] = []
        self._running = 0

    @classmethod
    def parse(cls, text: str, *, core: int | None = None) -> Self:
        """The load that `SECOND:PROCESSES,...` says."""
        try:
            pairs = [part.split(":") for part in text.split(",") if part.strip()]
            steps = [(float(second), int(count)) for second, count in pairs]
        except ValueError:
            raise LeanconvError(f"--load {text!r}: expected SECOND:PROCESSES,... as in 5:1,10:2,15:0") from None
        return cls(steps, core=core)

    def wanted(self, second: float) -> int:
        """How many processes compete at that second."""
        return next((count for start, count in reversed(self.steps) if start <= second), 0)

    def follow(self, second: float) -> int:
        """Let as many processes run as the schedule says for now; returns the number."""
        count = min(self.wanted(second), len(self._processes))
        for index in range(min(count, self._running), max(count, self._running)):
            self._processes[index].send_signal(signal.SIGCONT if index < count else signal.SIGSTOP)
        self._running = count
        return count

    def __enter__(self) -> Self:
        try:
            for _ in range(max((count for _, count in self.steps), default=0)):
                process = subprocess.Popen([sys.executable, "-c", _BUSY], stdout=subprocess.PIPE, text=True)
                self._processes.append(process)
                if self.core is not None:
                    os.sched_setaffinity(process.pid, {self.core})
                assert process.stdout is not None
                process.stdout.readline()
                process.send_signal(signal.SIGSTOP)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes.clear()
        self._running = 0


def pin(core: int) -> None:
    """Keep this thread, and all that it starts from now on, on one core. `LeanconvError` where there is no such."""
    _check_core(core)
    os.sched_setaffinity(0, {core})


def _check_core(core: int) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise LeanconvError("this system cannot keep processes on one core: leave out --core")
    cores = sorted(os.sched_getaffinity(0))
    if core not in cores:
        raise LeanconvError(f"there is no core {core} for this process: it may use {', '.join(map(str, cores))}")
