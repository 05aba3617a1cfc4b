"""A job: a command line in words, where what it says is kept, and how it ended. Plain data, made without running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Ended", "Job"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A process of its own: `command` is its argument list, `environment` what is set for it beside what is there.

    What it prints is added to the file `log`. A job that is begun again after an interruption goes on by itself: that
    is the command's affair.

    >>> Job(name="resnet20_cifar10, seed 0", command=("leanconv", "doctor"), log=Path("doctor.log")).environment
    {}
    """

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A job that has ended with the exit `code` (negative: by that signal) after `seconds`."""

    job: Job
    code: int
    seconds: float

    @property
    def last_line(self) -> str:
        """What it said last: the error, where there was one."""
        try:
            lines = self.job.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
