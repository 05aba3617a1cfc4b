"""What this machine is: for tables of times, run folders, benchmarks and `leanconv doctor`.

A time in milliseconds means something on one machine only. What decides it on a CPU is the model, the widest vector
instructions that it has and how many cores there are, so every record of a time carries them.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Machine",
    "cpu_name",
    "give_back_freed_memory",
    "gpu_names",
    "keep_freed_memory",
    "memory_bytes",
    "this_machine",
    "usable_cores",
    "vectors",
    "versions",
]

_CPUINFO = Path("/proc/cpuinfo")

_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sse2": "SSE2", "sve": "SVE", "asimd": "NEON"}
"""Flags of Linux's processor list and the instructions they stand for, the widest first."""

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt: how much free memory at the end of its heap is given back (-1: none is), and how many
blocks lie outside of the heap."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The processor by name, its widest vector instructions, the cores this process may use, and the system."""

    cpu: str
    vectors: str
    cores: int
    memory_bytes: int
    system: str
    python: str

    def __str__(self) -> str:
        parts = [
            self.cpu,
            self.vectors,
            f"{self.cores} core{'s' if self.cores > 1 else ''}",
            f"{self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else "",
            self.system,
            f"Python {self.python}",
        ]
        return ", ".join(part for part in parts if part)


def this_machine() -> Machine:
    """The machine that this process runs on.

    >>> this_machine().cores >= 1, this_machine().python == platform.python_version()
    (True, True)
    """
    return Machine(
        cpu=cpu_name(),
        vectors=vectors(),
        cores=usable_cores(),
        memory_bytes=memory_bytes(),
        system=platform.platform(),
        python=platform.python_version(),
    )


def cpu_name() -> str:
    """The processor's name, or its architecture where the system does not give a name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def vectors() -> str:
    """The widest vector instructions of the processor, such as AVX2, AVX-512 or NEON; empty where unknown."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    known = next((name for flag, name in _VECTORS.items() if flag in flags), "")
    return known or ("NEON" if platform.machine() in ("arm64", "aarch64") else "")  # part of every 64-bit ARM


def usable_cores() -> int:
    """How many cores this process may use: fewer than the machine has where it is bound to some of them."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """The size of the machine's memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees for what it needs next; False where that is not up to us.

    By default glibc gives large blocks back to the system and gets them again page by page, zeroed: every step of a
    training on a CPU pays for that with its activations, up to a fifth of its time. For processes that train, not for
    a library to call: what a process has once needed it holds until it ends. Nothing is done on systems without glibc
    and where the user has chosen how memory is given out (MALLOC_*, GLIBC_TUNABLES).

    >>> isinstance(keep_freed_memory(), bool)
    True
    """
    return _adjust_malloc({_TRIM_THRESHOLD: -1, _MMAP_MAX: 0})


def give_back_freed_memory() -> bool:
    """Undo `keep_freed_memory` in this process, for one that was forked from a process that trains; False as there.

    >>> isinstance(give_back_freed_memory(), bool)
    True
    """
    return _adjust_malloc({_TRIM_THRESHOLD: 128 * 2**10, _MMAP_MAX: 2**16})  # glibc's own


def _adjust_malloc(parameters: dict[int, int]) -> bool:
    import ctypes

    if platform.libc_ver()[0] != "glibc" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    adjust = ctypes.CDLL(None).mallopt
    accepted = [adjust(parameter, value) for parameter, value in parameters.items()]  # 1 for each that was
    return all(accepted)


def gpu_names() -> list[str]:
    """The CUDA devices that torch sees."""
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package, None where it is not installed.

    >>> versions(["no-such-package"])
    {'no-such-package': None}
    """
    from importlib.metadata import PackageNotFoundError, version  # slow, and the command line imports this file

    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _cpuinfo(field: str) -> str:
    """The first value of a field in Linux's list of processors; empty on other systems."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")
