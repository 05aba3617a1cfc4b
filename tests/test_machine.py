"""What this machine is, from lists of processors as Linux writes them, and where nothing is written."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from leanconv import machine

AMD = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu sse2 avx avx2 bmi2\n\nmodel name\t: another\n"


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("text", "vectors"),
    [
        (AMD, "AVX2"),
        (AMD.replace("avx2", "avx2 avx512f"), "AVX-512"),
        (AMD.replace("avx avx2", ""), "SSE2"),
        ("Features\t: fp asimd crc32\n", "NEON"),
        ("Features\t: fp asimd sve\n", "SVE"),
    ],
)
def test_the_widest_vectors_are_named(cpuinfo: Path, text: str, vectors: str) -> None:
    cpuinfo.write_text(text)
    assert machine.vectors() == vectors


def test_the_first_processor_gives_the_name(cpuinfo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo.write_text(AMD)
    assert machine.cpu_name() == "AMD EPYC 7763"
    cpuinfo.unlink()
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert (machine.cpu_name(), machine.vectors()) == ("arm64", "NEON")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert machine.vectors() == ""


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert machine.usable_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.usable_cores() == os.cpu_count()


def test_a_machine_in_words_leaves_out_what_is_not_known() -> None:
    whole = machine.Machine(
        cpu="AMD EPYC", vectors="AVX2", cores=2, memory_bytes=8 * 2**30, system="Linux", python="3.11.7"
    )
    assert str(whole) == "AMD EPYC, AVX2, 2 cores, 8 GiB, Linux, Python 3.11.7"
    bare = machine.Machine(cpu="arm64", vectors="", cores=1, memory_bytes=0, system="Darwin", python="3.12.1")
    assert str(bare) == "arm64, 1 core, Darwin, Python 3.12.1"


def test_memory_of_a_system_that_does_not_report_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.memory_bytes() > 2**28
    monkeypatch.delattr(os, "sysconf")
    assert machine.memory_bytes() == 0


def test_versions_of_what_is_there_and_what_is_not() -> None:
    found = machine.versions(["numpy", "no-such-package"])
    assert found["numpy"][0].isdigit()
    assert found["no-such-package"] is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
def test_freed_memory_is_kept_unless_the_user_says_how() -> None:
    """In a process of its own, page faults of a block of 64 MiB that is used again and again: once, or every time."""
    program = """
import ctypes, resource, sys
from leanconv.machine import keep_freed_memory
print(keep_freed_memory() if sys.argv[1:] else None)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (64 << 20))
"""

    def said(*words: str, **variables: str) -> list[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            env=environment | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()

    kept, times = said("keep")
    assert (kept, float(times) < 2) == ("True", True), times
    assert said("keep", MALLOC_TOP_PAD_="0")[0] == "False"
