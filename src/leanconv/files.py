"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from leanconv.errors import LeanconvError

__all__ = ["write_text"]


def write_text(path: str | os.PathLike[str], text: str, *, what: str = "the file") -> Path:
    """Write `text` with the line ends that it has; returns the path. The file is complete or not there.

    Raises `LeanconvError` where it cannot be written, saying `what`.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8", newline="")
        os.replace(draft, path)
    except OSError as error:
        raise LeanconvError(f"{path}: {what} cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # also where a folder on the way is a file
            draft.unlink()
    return path
