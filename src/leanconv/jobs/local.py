"""Jobs as processes of this machine, several at once.

Every job is in a session of its own, so that Ctrl-C on the terminal comes to this process alone, which then asks every
job to end (SIGTERM) and waits until it has: a training stops after the step at hand, with everything in its checkpoint.
If this process is killed, jobs that run go on; what they write to stays theirs, by the locks of their folders.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from leanconv.errors import LeanconvError
from leanconv.files import unwritable
from leanconv.jobs.job import Ended, Job
from leanconv.machine import usable_cores

__all__ = ["run_local", "threads_of_each"]

_LOOK_EVERY = 0.05
"""Seconds between two looks at which jobs have ended."""


def threads_of_each(at_once: int) -> int:
    """How many threads a job may have where `at_once` share the cores, and no more than OMP_NUM_THREADS here says."""
    share = max(1, usable_cores() // at_once)
    said = os.environ.get("OMP_NUM_THREADS", "")
    return min(share, int(said)) if said.isdecimal() and int(said) else share


def run_local(
    jobs: Sequence[Job], *, at_once: int = 1, ended: Callable[[Ended], None] = lambda _: None
) -> tuple[Ended, ...]:
    """Carry out `jobs`, `at_once` of them at a time, begun in their order; `ended` is told of each as it ends.

    The cores are shared out: each has as many threads (OMP_NUM_THREADS), fewer where that says so already, unless its
    own environment says another number.
    A job that fails does not stop the others. On KeyboardInterrupt or SIGTERM (or any error here) all that run are
    asked to end, and waited for, before it is raised on. Raises `LeanconvError` for `at_once` below 1, a command that
    is not there and a log that cannot be written.

        run_local([Job(name="a", command=("leanconv", "train", "demo"), log=Path("a.log"))])[0].code
    """
    if at_once < 1:
        raise LeanconvError(f"at least 1 job runs at a time, got at_once={at_once}")
    threads = threads_of_each(min(at_once, max(len(jobs), 1)))
    waiting = list(jobs)
    running: dict[int, tuple[Job, subprocess.Popen[bytes], float]] = {}
    done: dict[int, Ended] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                number = len(jobs) - len(waiting)
                running[number] = (waiting[0], _begin(waiting[0], threads), time.perf_counter())
                waiting.pop(0)
            for number, (job, process, start) in list(running.items()):
                if (code := process.poll()) is not None:
                    done[number] = Ended(job=job, code=code, seconds=time.perf_counter() - start)
                    del running[number]
                    ended(done[number])
            time.sleep(_LOOK_EVERY)
    except BaseException:
        _end([process for _, process, _ in running.values()])
        raise
    return tuple(done[number] for number in range(len(jobs)))


def _begin(job: Job, threads: int) -> subprocess.Popen[bytes]:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = open(job.log, "ab")  # noqa: SIM115  # the process has it from now on
    except OSError as error:
        raise unwritable(job.log, error.strerror or str(error)) from error
    with log:
        try:
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), **job.environment},
                start_new_session=True,
            )
        except OSError as error:
            raise LeanconvError(f"{job.name}: {job.command[0]} cannot be started: {error.strerror or error}") from error


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    for process in processes:
        process.wait()
