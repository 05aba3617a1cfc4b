"""The one door for code: what a file names is imported and run only where the person at this machine has said so.

A story, a recipe or a `--set` may name a function or class of anybody's ("package.module:function"). Building that
network imports and runs it, with arguments that stand beside it. It is done after `--trust-code`, or where this user
has said that before, for the very same run: `remember_trust` puts a note into a folder of the user's own, outside of
the run, named by the SHA-256 of everything that counts (the run's folder; the working folder, from which modules are
imported; every function that would run, with its arguments). A run folder that came from elsewhere has no such note,
and nothing that is in it can make one; when any part has changed, or the folder was moved, the note does not hold.
Notes are believed only where their folder belongs to this user and nobody else may write to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from leanconv.errors import LeanconvError, shown

__all__ = ["CodeNotTrusted", "is_trusted", "remember_trust", "require_trust"]


class CodeNotTrusted(LeanconvError):
    """Somebody's code would run, and nobody has allowed it."""


def require_trust(
    named: Sequence[Mapping[str, Any]], place: Path, *, trust_code: bool, asked_before: bool = False
) -> None:
    """Raise `CodeNotTrusted` unless what is `named`, to be run for the run in `place`, may run.

    Each of `named` has "where" it stands, the "code" and its "options". It may run with `trust_code`, which is
    remembered, and where it goes on (`asked_before`) with what was remembered.
    """
    if not named:
        return
    if trust_code:
        remember_trust(named, place)
    elif not (asked_before and is_trusted(named, place)):
        first = named[0]
        raise CodeNotTrusted(
            f"{first['where']}: {shown(first['code'])[1:-1]} is no code of leanconv's, and building that network would"
            " run it: pass --trust-code (trust_code=True) if you trust whoever wrote it"
        )


def remember_trust(named: Sequence[Mapping[str, Any]], place: Path) -> bool:
    """Note that this user allows it; False where there is no folder for notes that would be believed."""
    notes = _notes()
    with suppress(OSError):
        for folder in (notes.parent, notes):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_own(notes):
            (notes / _key(named, place)).touch(mode=0o600)
            return True
    return False


def is_trusted(named: Sequence[Mapping[str, Any]], place: Path) -> bool:
    """Whether this user has allowed the very same before."""
    notes = _notes()
    with suppress(OSError):
        return _is_own(notes) and (notes / _key(named, place)).is_file()
    return False


def _key(named: Sequence[Mapping[str, Any]], place: Path) -> str:
    what = {"folder": os.path.realpath(place), "working folder": os.path.realpath(os.getcwd()), "named": list(named)}
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=repr).encode()).hexdigest()


def _notes() -> Path:
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "leanconv" / "trusted"


def _is_own(folder: Path) -> bool:
    """Whether the folder is one, of this user, and nobody else may write to it or to the one that holds it."""
    if os.name != "posix":
        return folder.is_dir()
    for path in (folder, folder.parent):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            return False
    return True
