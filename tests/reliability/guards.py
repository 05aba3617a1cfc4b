"""Whether a call keeps what is promised of other people's files: one line or an answer, soon, in bounds, nothing run.

The interpreter reports to its audit hooks whatever starts a process, opens a connection, or writes, moves or removes a
file. Within `promised` all of these are forbidden, outside of one folder, and kept where a library hides the refusal.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from leanconv.errors import LeanconvError

SECONDS = 20
GIGABYTES = 2
LONGEST = 500

_CODE = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
)
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
_FILES = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_allowed: list[str] = []
_broken: list[str] = []
_hooked: list[bool] = []


class Forbidden(Exception):
    """Something that reading a file must not lead to."""


class Hang(BaseException):
    """The time is over; no handler of exceptions is to take it for one of its own."""


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if not _allowed:
        return
    what = ""
    if event in _CODE or (event == "import" and arguments[0] == "fuzz_mark"):
        what = "code"
    elif event in _NETWORK:
        what = "network"
    elif event == "open" and isinstance(arguments[0], str | bytes) and (arguments[2] or 0) & _WRITING:
        what = _outside(arguments[0])
    elif event in _FILES:
        what = next(filter(None, map(_outside, (one for one in arguments[:2] if isinstance(one, str | bytes)))), "")
    if what:
        _broken.append(f"{what}: {event} {arguments[:2]!r}"[:300])
        raise Forbidden(_broken[-1])


def _outside(path: str | bytes) -> str:
    name = os.path.realpath(os.fsdecode(path))
    inside = name == os.devnull or any(name == home or name.startswith(home + os.sep) for home in _allowed)
    return "" if inside else "file"


@contextmanager
def promised(folder: Path) -> Iterator[None]:
    """Raise `AssertionError` at the end of the scope where a promise was broken in it; `folder` may be written to."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_watch)

    def end(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {SECONDS} s")

    before, start = signal.signal(signal.SIGALRM, end), time.perf_counter()
    _broken.clear()
    _allowed[:] = [os.path.realpath(folder)]
    signal.alarm(SECONDS * 4)  # of the machine's time; the process's own is asked below
    used = time.process_time()
    try:
        yield
    finally:
        _allowed.clear()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not _broken, _broken
    assert time.process_time() - used < SECONDS, f"{time.perf_counter() - start:.0f} s"


def outcome(call: Callable[[], object], folder: Path) -> str:
    """ "read" or "refused"; any other end is an `AssertionError`. A refusal is one line of less than 500 characters."""
    with promised(folder):
        try:
            call()
        except LeanconvError as error:
            message = str(error)
            assert len(message) < 4 * LONGEST, message[:2000]  # the command line shortens, see `command`
            return "refused"
    return "read"


def command(arguments: list[str], folder: Path, capsys: Any) -> str:
    """The command line itself: exit code 0 or 2, with 2 exactly one short line on stderr."""
    from leanconv.cli import main

    with promised(folder):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    told = capsys.readouterr()
    assert code in (0, 2), (code, told.err[-2000:])
    if code == 2:
        assert told.err.startswith("leanconv: "), told.err
        assert told.err.count("\n") == 1, told.err
        assert len(told.err) < LONGEST + len("leanconv: \n"), told.err
    return "refused" if code else "read"


def campaign(name: str, count: int, seed: int, one: Callable[[Any], str]) -> Counter[str]:
    """`one` on `count` draws; the draw that broke a promise is named, so that it can be had again."""
    import random

    seen: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of whatever this process did until now
    for number in range(count):
        try:
            seen[one(random.Random(f"{name}/{seed}/{number}"))] += 1
        except (Exception, Hang) as error:
            raise AssertionError(f"{name}, seed {seed}, number {number}: {type(error).__name__}: {error}") from error
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert peak < GIGABYTES, f"{peak:.2f} GiB more than before"
    return seen
