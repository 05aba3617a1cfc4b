"""Paths as people and lists write them: `~` is somebody's home, and what no system could open is refused here."""

from __future__ import annotations

import os
from pathlib import Path

from leanconv.errors import DataError, shown

__all__ = ["user_path"]

_LONGEST_NAME, _LONGEST_PATH = 255, 4095
"""Bytes, on Linux and macOS."""


def user_path(text: str) -> Path:
    """The path that `text` means. Raises `DataError` for one that is too long or has a character that none may have.

    >>> user_path("photos/a").name
    'a'
    """
    path = os.path.expanduser(text)
    encoded = os.fsencode(path) if "\0" not in path and path.isprintable() else path.encode("utf-8", "replace")
    if b"\0" in encoded:
        raise DataError(f"{shown(text)} is no path, it has a character that none may have")
    if len(encoded) > _LONGEST_PATH or any(len(part) > _LONGEST_NAME for part in encoded.split(b"/")):
        raise DataError(f"{shown(text)} is no path, it is too long")
    return Path(path)
