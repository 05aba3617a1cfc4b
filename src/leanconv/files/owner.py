"""Which process a name on disk belongs to, and whether that process is gone.

A process is known by its machine, its number and its start: numbers are given again, and one machine may have several
worlds of processes (containers), each with a number 1. What cannot be told is taken to be alive.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

__all__ = ["OWNER", "Owner", "is_gone", "named", "this_owner"]

OWNER = r"(?:[0-9a-f]{8}-)?\d+(?:-[0-9a-f]+)*"
"""What `Owner.name` gives, as a pattern, and what earlier releases gave."""

_PROC = Path("/proc")


@dataclass(frozen=True)
class Owner:
    """A process: `world` is its machine and its container there, `start` when it began; empty where unknown."""

    world: str
    process: int
    start: str

    @property
    def name(self) -> str:
        """A part of a file's name.

        >>> Owner("0000abcd", 12, "00001234").name
        '0000abcd-12-00001234'
        """
        return "-".join(part for part in (self.world, str(self.process), self.start) if part)


def this_owner() -> Owner:
    """This process."""
    return _owner(os.getpid())


def named(name: str) -> Owner | None:
    """The owner in a part of a file's name, whatever follows it; None where there is none."""
    found = re.match(r"(?:([0-9a-f]{8})-)?(\d+)(?:-([0-9a-f]{8})(?=-))?", name)
    return None if found is None else Owner(found[1] or "", int(found[2]), found[3] or "")


def is_gone(owner: Owner) -> bool:
    """Whether that process has ended, for certain: one of another machine may still be at work."""
    if owner.world not in ("", _world()):
        return False
    if not _exists(owner.process):
        return True
    begun, state = _begun(owner.process)
    return state in ("Z", "X") or (owner.start != "" and begun not in ("", owner.start))


@lru_cache(8)  # by process: a fork is another one
def _owner(process: int) -> Owner:
    return Owner(_world(), process, _begun(process)[0])


@lru_cache(1)
def _world() -> str:
    """The machine by its name, and the space of process numbers that this process lives in."""
    try:
        space = os.readlink(_PROC / "self" / "ns" / "pid")
    except OSError:  # not Linux
        space = ""
    return _short(f"{platform.node()} {space}")


def _begun(process: int) -> tuple[str, str]:
    """When a process began, as eight digits that mean nothing else, and its state; both empty where unknown."""
    try:
        # The name of the program is in parentheses and may hold some itself.
        fields = (
            (_PROC / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return _short(f"{_boot()} {fields[19]}"), fields[0]
    except (OSError, IndexError):
        return "", ""


@lru_cache(1)
def _boot() -> str:
    """What the machine calls the time since it was switched on."""
    try:
        return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _exists(process: int) -> bool:
    """Whether a process of that number is there, or may be."""
    if os.name != "posix":  # where asking would stop it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _short(text: str) -> str:
    return f"{crc32(text.encode()):08x}"
