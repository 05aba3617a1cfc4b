"""Commands in processes of their own that are killed: after some seconds, or at their n-th file operation.

Processes are forked from a server that has imported everything, so that hundreds of them cost what they do and no more.
What they do to files is seen by an audit hook: opening for writing, renaming, removing, making folders, changing modes,
and flushing to disk. A process that is killed where it flushes leaves half of the file, as one that is killed while it
writes does.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

__all__ = ["Ended", "begin", "run"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded"])

_CHANGES = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink", "os.utime"
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Ended:
    """How a process ended: its code (negative: the signal), what it said, and its file operations in order."""

    code: int | None
    out: str
    err: str
    operations: tuple[str, ...]


class Begun:
    """A process at work, in a session of its own."""

    def __init__(self, process: Any, notes: Path) -> None:
        self.process, self.notes = process, notes
        self.pid: int = process.pid

    def wait(self, timeout: float = 120) -> Ended:
        """How it ended; `TimeoutError`, after it was killed, where it did not."""
        self.process.join(timeout)
        hangs = self.process.is_alive()
        if hangs:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.join()
        said = [self._text(name) for name in ("out", "err", "operations")]
        shutil.rmtree(self.notes)
        if hangs:
            raise TimeoutError(f"not ended after {timeout} s; it said: {said[:2]}")
        return Ended(self.process.exitcode, said[0], said[1], tuple(said[2].splitlines()))

    def _text(self, name: str) -> str:
        path = self.notes / name
        return path.read_text(errors="replace") if path.exists() else ""


def begin(
    call: Callable[..., object] | Sequence[str],
    folder: Path,
    *arguments: object,
    kill_at: int = 0,
    before: Callable[[], object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Begun:
    """Start a function of a module, or the arguments of `leanconv`, in `folder`, where its temporary files go as well.

    It is killed at its `kill_at`-th file operation there (0: never). `before` is called first, to set limits.
    """
    _start_server()
    notes = Path(tempfile.mkdtemp(prefix="kills-"))
    notes.chmod(0o777)  # it may become another user
    process = CONTEXT.Process(
        target=_child, args=(call, arguments, folder, notes, kill_at, before, dict(environment or {}))
    )
    process.start()
    return Begun(process, notes)


@cache
def _start_server() -> None:
    """The server finds what it is to import by PYTHONPATH alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def run(
    call: Callable[..., object] | Sequence[str],
    folder: Path,
    *arguments: object,
    kill_at: int = 0,
    kill_after: float | None = None,
    timeout: float = 120,
    **options: Any,
) -> Ended:
    """As `begin`, to its end; `kill_after` kills it and its workers after so many seconds, if it is still there."""
    begun = begin(call, folder, *arguments, kill_at=kill_at, **options)
    if kill_after is not None:
        time.sleep(kill_after)
        if begun.process.is_alive():
            os.kill(begun.pid, signal.SIGKILL)
    return begun.wait(timeout)


def _child(
    call: Callable[..., object] | Sequence[str],
    arguments: Sequence[object],
    folder: Path,
    notes: Path,
    kill_at: int,
    before: Callable[[], object] | None,
    environment: Mapping[str, str],
) -> None:
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a process that was started by hand
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(notes / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.update(environment)
    os.chdir(folder)
    home = folder / "tmp"
    home.mkdir(exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(home)
    if before is not None:
        before()
    _watch(folder, notes / "operations", kill_at)
    if callable(call):
        call(*arguments)
        return
    from leanconv.cli import main

    sys.argv = ["leanconv", *call]
    main(list(call))


def _watch(folder: Path, log: Path, kill_at: int) -> None:
    """Note every file operation of this process in the folder, and die at one of them."""
    mine, inside, count = os.getpid(), str(folder), 0
    notes = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def noted(what: str, path: str) -> bool:
        """Whether to die there."""
        nonlocal count
        if os.getpid() != mine or not os.path.abspath(path).startswith(inside):
            return False
        count += 1
        os.write(notes, f"{what} {os.path.relpath(path, folder)}\n".encode())
        return count == kill_at

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and (arguments[2] or 0) & _WRITING):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike) and noted(event, os.fsdecode(path)):
                os.kill(mine, signal.SIGKILL)

    flush = os.fsync

    def flushed(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = os.readlink(f"/proc/self/fd/{number}")
        if noted("flush", path):
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(mine, signal.SIGKILL)
        flush(number)

    os.fsync = flushed
    sys.addaudithook(hook)
