"""Files and folders that are written whole or not at all.

What is written goes to a hidden name in the same folder, is flushed to disk, and only then gets its own name: whoever
reads it meets the old one or the new one, also after a full disk, a kill or a power cut. The hidden name holds the
machine and the process, so that a later writer can sweep what a killed one left behind.
"""

from __future__ import annotations

import csv
import errno
import io
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from leanconv.errors import LeanconvError

__all__ = ["csv_text", "is_running", "unwritable", "whole_file", "whole_folder", "write_text"]

Complain = Callable[[str], LeanconvError]
"""Makes the error for a reason such as "No space left on device"."""


@contextmanager
def whole_file(path: Path, complain: Complain, *, also: tuple[type[Exception], ...] = ()) -> Iterator[Path]:
    """A name to write to within the scope; at its end the file is renamed to `path`, whose folder is made if need be.

    Where it cannot be written (`OSError`, or one of `also` that a writer makes of it) raises `complain(reason)`. After
    any error `path` is what it was, and nothing is left behind.
    """
    with _drafts(path, path.parent, complain, also) as draft:
        yield draft
        _flush(draft)
        os.replace(draft, path)


@contextmanager
def whole_folder(
    folder: Path,
    complain: Complain,
    *,
    last: str = "",
    keep_existing: bool = False,
    also: tuple[type[Exception], ...] = (),
) -> Iterator[Path]:
    """A folder to write into within the scope; at its end it becomes `folder`, or its files move into it.

    Where `folder` is there already, other files in it stay and those of the same name are replaced one by one, the one
    called `last` at the end: it is the one that says which others belong to it. With `keep_existing` a folder that
    another process has made meanwhile stays as it is. Errors are those of `whole_file`.
    """
    folder = folder.absolute()
    home = folder if folder.is_dir() else folder.parent
    with _drafts(folder, home, complain, also) as draft:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        draft.mkdir()
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                _flush(file)
        if not folder.is_dir():
            try:
                os.rename(draft, folder)
                return
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster
                    raise
        for entry in () if keep_existing else sorted(draft.iterdir(), key=lambda entry: entry.name == last):
            os.replace(entry, folder / entry.name)


def write_text(
    path: str | os.PathLike[str], text: str, *, what: str = "", error: type[LeanconvError] = LeanconvError
) -> Path:
    """Write `text` as it is, line ends included; returns the path. Raises `error` where it cannot be, naming `what`."""
    path = Path(path)
    with whole_file(path, lambda reason: unwritable(path, reason, what=what, error=error)) as draft:
        draft.write_text(text, encoding="utf-8", newline="")
    return path


def csv_text(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """`rows` as CSV: `columns`, then whatever else the rows have, in order of appearance.

    >>> csv_text([{"epoch": 1, "loss": 0.5}])
    'epoch,loss\\n1,0.5\\n'
    """
    text = io.StringIO()
    names = dict.fromkeys((*columns, *(name for row in rows for name in row)))
    writer = csv.DictWriter(text, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def unwritable(path: Path, reason: str, *, what: str = "", error: type[LeanconvError] = LeanconvError) -> LeanconvError:
    """The error that says that `what`, to be written to `path`, cannot be, and why."""
    return error(
        f"{path}: {f'{what} ' if what else ''}cannot be written: {reason}; nothing was left behind. Choose a folder "
        "that can be written to, on a disk with enough space"
    )


@contextmanager
def _drafts(path: Path, home: Path, complain: Complain, also: tuple[type[Exception], ...]) -> Iterator[Path]:
    """A hidden name for `path` in `home`, which is made if need be; whatever is left of both after an error goes."""
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    made = [folder for folder in (home, *home.parents) if not folder.exists()]
    draft = home / f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(path.name, home)
        yield draft
    except kinds as error:
        raise complain(_reason(error)) from error
    finally:
        _remove(draft)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # only if empty


_HOST = f"{crc32(platform.node().encode()):08x}"


def _sweep(name: str, home: Path) -> None:
    """Remove the drafts of `name` whose writers on this machine are gone; another machine's may still be at work."""
    drafts = re.compile(rf"\.{re.escape(name)}\.(?:{_HOST}-)?(\d+)(?:-[0-9a-f]+)?\.tmp")
    for entry in home.iterdir():
        found = drafts.fullmatch(entry.name)
        if found and not is_running(int(found[1])):
            _remove(entry)


def is_running(process: int) -> bool:
    """Whether a process of that number is there on this machine, or may be."""
    if os.name != "posix":  # where asking would stop it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):  # also where a folder on the way is a file
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    """The words of an error on one line, without the file's name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
