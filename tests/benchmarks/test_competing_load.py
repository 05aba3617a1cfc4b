"""The competing load of `benchmarks/governor.py`: processes that come and go on a schedule."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanconv.errors import LeanconvError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from load import Load, pin


def state(process: subprocess.Popen[str]) -> str:
    with open(f"/proc/{process.pid}/stat") as file:
        return file.read().rpartition(") ")[2][0]


def settled(process: subprocess.Popen[str], wanted: str) -> bool:
    for _ in range(200):
        if state(process) == wanted:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads the state of processes from /proc")
def test_a_load_runs_as_many_processes_as_its_schedule_says():
    core = min(os.sched_getaffinity(0))
    with Load([(1, 2), (2, 1), (3, 0)], core=core) as load:
        processes = list(load._processes)
        assert [os.sched_getaffinity(process.pid) for process in processes] == [{core}] * 2
        for second, running in ((0, 0), (1, 2), (2.5, 1), (3, 0), (1, 2)):
            assert load.follow(second) == running
            assert all(settled(process, "R" if i < running else "T") for i, process in enumerate(processes))
    assert all(process.returncode is not None for process in processes)
    assert load.follow(1) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Load.parse("5"), r"--load '5': expected SECOND:PROCESSES"),
        (lambda: Load.parse("5:x"), "expected SECOND:PROCESSES"),
        (lambda: Load([(2, 1), (1, 0)]), "in order of time"),
        (lambda: Load([(2, -1)]), "none below 0"),
        (lambda: Load([], core=10_000), "there is no core 10000 for this process: it may use"),
        (lambda: pin(10_000), "there is no core 10000"),
    ],
)
def test_a_load_refuses(make, message):
    with pytest.raises(LeanconvError, match=message):
        make()


def test_pinning_keeps_this_process_on_one_core():
    before = os.sched_getaffinity(0)
    try:
        pin(max(before))
        assert os.sched_getaffinity(0) == {max(before)}
    finally:
        os.sched_setaffinity(0, before)
