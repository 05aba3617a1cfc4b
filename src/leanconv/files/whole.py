"""Files and folders that are written whole or not at all.

What is written goes to a hidden name in the same folder, is flushed to disk, and only then gets its own name: whoever
reads it meets the old one or the new one, also after a full disk, a kill or a power cut. The hidden name holds the
process that writes, so that a later writer can sweep what one that is gone has left behind.

Several files that belong together change in one step, too, where their folder is there already: the hidden folder with
the new ones is renamed to one that is `ready`, and that is the change; then they move to their places. Where the writer
is killed on the way, whoever reads or writes them next finishes it (`settle`).
"""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from leanconv.errors import LeanconvError
from leanconv.files.owner import OWNER, is_gone, named, this_owner

__all__ = [
    "csv_text",
    "found",
    "owned_name",
    "remove",
    "settle",
    "sweep",
    "unwritable",
    "whole_file",
    "whole_folder",
    "write_text",
]

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

    Where `folder` is there already, other files in it stay and those of the same name are replaced, all in one step
    for who asks `settle` before reading. The one called `last`, which says which others belong to it, is there only
    together with them. With `keep_existing` a folder that another process has made meanwhile stays as it is. Errors
    are those of `whole_file`. What is written can be read by those whom the umask allows.
    """
    folder = folder.absolute()
    home = folder if folder.is_dir() else folder.parent
    with _drafts(folder, home, complain, also) as draft:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        draft.mkdir()
        mode = draft.stat().st_mode & 0o666
        yield draft
        for file in draft.rglob("*"):
            if file.is_file():
                file.chmod(mode)  # some writers make files that only their user may read
                _flush(file)
        if not folder.is_dir():
            try:
                os.rename(draft, folder)
                return
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster
                    raise
        if not keep_existing:
            _replace(draft, folder, last)


def settle(folder: Path, last: str) -> None:
    """Finish what a writer that is gone began to replace in `folder`, together with the file called `last`.

    To be called before these files are read. Where the folder cannot be changed, `found` reads them all the same.
    """
    for ready in _ready(folder, last):
        owner = named(ready.name.removeprefix(f".{last}."))
        mine = owner == this_owner() and ready not in _moving
        if owner is not None and (mine or is_gone(owner)):
            taken = ready.with_name(owned_name(last, "ready"))
            with suppress(OSError):  # another process may have been faster, or it is read from a place like a CD
                os.rename(ready, taken)
                _move(taken, folder, last)


def found(folder: Path, last: str, name: str) -> Path:
    """Where the file called `name`, one of those that change together with `last`, is at this moment."""
    places = (ready / name for ready in _ready(folder, last))
    return next((place for place in places if place.exists()), folder / name)


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove the drafts of `name` in `folder` whose writers are gone; with None all drafts, whosoever they are.

    The latter is for a folder that nobody else writes to.
    """
    wanted = r".+" if name is None else re.escape(name)
    drafts = re.compile(rf"\.{wanted}\.({OWNER})\.tmp")
    mine = this_owner()
    for entry in folder.iterdir():
        match = drafts.fullmatch(entry.name)
        owner = None if match is None else named(match[1])
        if owner is not None and owner != mine and (name is None or is_gone(owner)):
            remove(entry)


def owned_name(name: str, end: str) -> str:
    """A hidden name for what becomes `name`, with this process in it."""
    return f".{name}.{this_owner().name}-{secrets.token_hex(4)}.{end}"


def remove(path: Path) -> None:
    """Remove a file or a folder as far as that is possible."""
    with suppress(OSError):  # also where a folder on the way is a file
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


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
    draft = home / owned_name(path.name, "tmp")
    try:
        home.mkdir(parents=True, exist_ok=True)
        sweep(home, path.name)
        yield draft
    except kinds as error:
        raise complain(_reason(error)) from error
    finally:
        remove(draft)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # only if empty


_moving: set[Path] = set()
"""The folders whose files are moving to their places in this process now."""


def _replace(draft: Path, folder: Path, last: str) -> None:
    """Bring everything in `draft` to its place in `folder`, where it replaces what has the same name."""
    settle(folder, last)
    entries = list(draft.iterdir())
    if len(entries) == 1:
        os.replace(entries[0], folder / entries[0].name)
        return
    ready = folder / owned_name(last, "ready")
    _moving.add(ready)
    try:
        os.rename(draft, ready)  # from here on it has happened
        _move(ready, folder, last)
    finally:
        _moving.discard(ready)


def _move(ready: Path, folder: Path, last: str) -> None:
    """Move every entry to its place; this process alone has the folder `ready`, whose name is its own."""
    entries = sorted(ready.iterdir(), key=lambda entry: entry.name == last)
    if entries and entries[-1].name == last:
        # Who does not know of these folders must not meet the others together with the one before.
        (folder / last).unlink(missing_ok=True)
    for entry in entries:
        os.replace(entry, folder / entry.name)
    ready.rmdir()


def _ready(folder: Path, last: str) -> list[Path]:
    """The folders with files that have been replaced together with `last` and are not in their places yet."""
    names = re.compile(rf"\.{re.escape(last)}\.{OWNER}\.ready")
    try:
        return [entry for entry in folder.iterdir() if names.fullmatch(entry.name)]
    except OSError:  # no such folder
        return []


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    """The words of an error on one line, without the file's name; those of the system where it is behind another."""
    behind: BaseException | None = error
    while behind is not None and not (isinstance(behind, OSError) and behind.strerror):
        behind = behind.__cause__ or behind.__context__
    error = behind if isinstance(behind, OSError) else error
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
