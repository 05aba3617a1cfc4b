"""Jobs: all are carried out, so many at a time, what they say is kept, and an end comes to every one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanconv.errors import LeanconvError
from leanconv.jobs import Ended, Job, run_local
from leanconv.jobs.local import threads_of_each
from leanconv.machine import usable_cores


def job(folder: Path, name: str, code: str) -> Job:
    return Job(name=name, command=(sys.executable, "-c", code), log=folder / "logs" / f"{name}.log")


def test_all_run_and_failures_stop_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Ended] = []
    jobs = [
        job(tmp_path, "a", "import os; print('threads', os.environ['OMP_NUM_THREADS'])"),
        job(tmp_path, "b", "import sys; print('said'); sys.exit('no such thing')"),
        job(tmp_path, "c", "pass"),
    ]
    done = run_local(jobs, at_once=2, ended=told.append)
    assert [ended.code for ended in done] == [0, 1, 0]
    assert [ended.job.name for ended in done] == ["a", "b", "c"]
    assert sorted(ended.job.name for ended in told) == ["a", "b", "c"]
    assert done[0].last_line == f"threads {threads_of_each(2)}"
    assert done[1].last_line == "no such thing"
    assert done[2].last_line == ""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of_each(10**6) == 1
    assert threads_of_each(1) == usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads_of_each(1) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    assert threads_of_each(1) == usable_cores()


def test_no_more_at_a_time_than_asked(tmp_path: Path) -> None:
    """Each notes when it began and ended; by the notes, never more than two ran."""
    code = "import time; a = time.time(); time.sleep(.2); print(a, time.time())"
    jobs = [job(tmp_path, str(number), code) for number in range(5)]
    run_local(jobs, at_once=2)
    spans = [tuple(map(float, one.log.read_text().split())) for one in jobs]
    assert all(sum(a <= start < b for a, b in spans) <= 2 for start, _ in spans)


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(LeanconvError, match="at_once=0"):
        run_local([], at_once=0)
    with pytest.raises(LeanconvError, match="a: /no/such/program cannot be started: No such file"):
        run_local([Job(name="a", command=("/no/such/program",), log=tmp_path / "a.log")])


MAIN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what starts the tests may have it ignored
from pathlib import Path
from leanconv.ends import ended_in_order, Terminated
from leanconv.jobs import Job, run_local
child = '\\n'.join([
    "import signal, sys, time",
    "def end(*_): print('asked'); sys.exit(0)",
    "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(60)",
])
jobs = [Job(name=n, command=(sys.executable, "-c", child), log=Path(sys.argv[1]) / n) for n in "abc"]
with ended_in_order():
    run_local(jobs, at_once=2)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_comes_to_those_that_run(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", MAIN, str(tmp_path)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    assert process.wait(20) != 0
    assert [(tmp_path / name).read_text().split() for name in "ab"] == [["up", "asked"]] * 2
    assert not (tmp_path / "c").exists()
