"""Folders for what is needed for a moment, in the system's temporary folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leanconv.files.whole import owned_name, remove, sweep

__all__ = ["scratch_folder"]

_NAME = "leanconv"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder within the scope, which no other user can read; what killed processes have left is swept.

    >>> with scratch_folder() as folder:
    ...     _ = (folder / "a").write_text("a")
    >>> folder.exists()
    False
    """
    home = Path(tempfile.gettempdir())
    sweep(home, _NAME)  # others' stay, which this user may not remove
    folder = home / owned_name(_NAME, "tmp")
    os.mkdir(folder, 0o700)
    try:
        yield folder
    finally:
        remove(folder)
