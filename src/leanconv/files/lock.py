"""One process at a time writes to a folder: a hidden file in it says which, and the system ends its claim with it.

The claim is a record lock of the operating system, which also holds between machines on NFS and between containers and
ends with the process, however that ends. Where a disk has no such locks, the file itself is the claim. The file that a
process of another machine has left cannot be judged from here, so it is respected, unless the same job of a batch
system was started anew.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from leanconv.errors import LeanconvError
from leanconv.files.owner import Owner, is_gone, named, this_owner
from leanconv.files.whole import sweep, unwritable

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

__all__ = ["LOCK", "held"]

LOCK = ".lock"
"""The file's name."""

_NOT_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What disks without locks answer."""


@dataclass(frozen=True)
class Holder:
    """What the file says: the process, its machine, when it began to write, and the batch system's job."""

    owner: Owner
    host: str
    since: str
    job: str

    def __str__(self) -> str:
        return f"process {self.owner.process} on {self.host}"


_held: dict[tuple[int, Path], int] = {}
"""(process, folder): the thread of this process that holds it."""

_inside: set[tuple[int, Path]] = set()
"""Those whose claim is made."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A scope in which no other process that asks for `folder`, which is made if need be, gets it.

    Within it the same thread may ask again. Drafts that killed writers left in the folder are swept. Raises
    `LeanconvError`, with its holder's name, where somebody else writes there, and where nobody can.
    """
    folder = folder.absolute()
    key, thread = (os.getpid(), folder), threading.get_ident()
    by = _held.setdefault(key, thread)
    if by == thread and key in _inside:
        yield
        return
    if by != thread:
        raise LeanconvError(f"{folder}: another thread of this process writes there: choose another folder")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        claim = _claimed(folder)
        _inside.add(key)
        try:
            sweep(folder)
            yield
        finally:
            _inside.discard(key)
            with suppress(OSError):
                (folder / LOCK).unlink()
            if claim is not None:
                os.close(claim)
    finally:
        _held.pop(key, None)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()  # only if empty: nothing has come of it


def _claimed(folder: Path) -> int | None:
    """The open file that is the claim, None where it is the file's existence alone."""
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            claim = _with_system(path) if fcntl is not None else _without(path)
            if claim is not None:
                return None if claim < 0 else claim
    except OSError as error:
        raise unwritable(folder, error.strerror or str(error)) from error


def _with_system(path: Path) -> int | None:
    """The claim as an open file; -1 where there are no locks, None where it has to be tried again."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if error.errno in _NOT_HERE:
            return _without(path)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _refusal(path.parent, _read(path), alive=True) from None
        raise
    try:
        if not _is_at(file, path):  # who held it has removed it meanwhile
            os.close(file)
            return None
        before = _read_open(file)
        if before is not None and before.host != platform.node() and not _same_job(before):
            raise _refusal(path.parent, before, alive=False)
        os.ftruncate(file, 0)
        os.pwrite(file, _text().encode(), 0)
    except BaseException:
        with suppress(OSError):
            os.close(file)
        raise
    return file


def _without(path: Path) -> int | None:
    """The same where the existence of the file is the claim."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        before = _read(path)
        if before is None or is_gone(before.owner) or before.owner == this_owner() or _same_job(before):
            path.unlink(missing_ok=True)
            return None
        raise _refusal(path.parent, before, alive=before.host == platform.node()) from None
    os.write(file, _text().encode())
    os.close(file)
    return -1


def _text() -> str:
    said = {
        "owner": this_owner().name + "-",
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "job": os.environ.get("SLURM_JOB_ID", ""),
    }
    return json.dumps(said) + "\n"


def _read(path: Path) -> Holder | None:
    with suppress(OSError):
        return _parsed(path.read_bytes())
    return None


def _read_open(file: int) -> Holder | None:
    return _parsed(os.pread(file, 4096, 0))


def _parsed(content: bytes) -> Holder | None:
    """What the file says; None where that is nothing, as of one that was killed before it wrote."""
    try:
        said = json.loads(content)
        owner = named(str(said["owner"]))
        texts = [str(said[name])[:100] for name in ("host", "since", "job")]
    except (ValueError, KeyError, TypeError):
        return None
    return None if owner is None else Holder(owner, *texts)


def _same_job(before: Holder) -> bool:
    """Whether that was this job before it was started anew: a batch system runs a job once at a time."""
    return before.job != "" and before.job == os.environ.get("SLURM_JOB_ID") and "SLURM_RESTART_COUNT" in os.environ


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _refusal(folder: Path, holder: Holder | None, *, alive: bool) -> LeanconvError:
    if holder is None:
        return LeanconvError(f"{folder}: another process has just begun to write there: choose another folder")
    if alive:
        return LeanconvError(
            f"{folder}: {holder} writes there since {holder.since}: wait for it, stop it, or choose another folder"
        )
    return LeanconvError(
        f"{folder}: {holder} began to write there at {holder.since}, and from this machine nobody can tell whether it"
        f" still does: if it does not, remove {folder / LOCK}"
    )
