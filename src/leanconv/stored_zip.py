"""torch's files are zip archives whose members are stored as they are; anything else in one is an attack or damage."""

from __future__ import annotations

import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

__all__ = ["check_stored"]


def check_stored(file: Path | bytes) -> None:
    """Hold the sizes in the archive's table of contents against the file's own.

    Raises `EOFError` where it is cut, `ValueError` where members are compressed, or larger than the file.
    """
    size = file.stat().st_size if isinstance(file, Path) else len(file)
    try:
        if not zipfile.is_zipfile(_opened(file)):
            raise EOFError("its table of contents, which is at the end of the file, is missing")
        with zipfile.ZipFile(_opened(file)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed, and torch compresses none")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than the file")


def _opened(file: Path | bytes) -> Any:
    return file if isinstance(file, Path) else BytesIO(file)
