"""torch's own checkpoints, zip or the older form, by its `weights_only` loader and nothing else.

What training loops keep beside tensors (numpy's numbers, paths, options) becomes the plain data of `pickles.ALLOWED`.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from leanconv.pickles import ALLOWED, Array, ForeignName, is_cut
from leanconv.stored_zip import check_stored

__all__ = ["LEGACY_TORCH", "read_legacy", "read_zip"]

LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How files of torch before 1.6 begin."""

_LEGACY_PICKLES = 5
"""A number, a version, the machine, the contents and the keys of the values, which follow."""


def read_zip(file: Path | bytes) -> Any:
    """torch's form since 1.6, once the sizes in its table of contents were held against the file's own.

    Raises `EOFError` where it is cut, `ForeignName` where it names more than plain data, else `ValueError`.
    """
    check_stored(file)
    return _load(file)


def read_legacy(file: Path | bytes) -> Any:
    """torch's form before 1.6, from memory, where no length that the file claims is more than what is left of it.

    Raises as `read_zip` does.
    """
    data = file.read_bytes() if isinstance(file, Path) else file
    try:
        return _load(data)
    except ValueError as error:
        if is_cut(data, _LEGACY_PICKLES):
            raise EOFError("it ends early") from error
        raise


def _load(file: Path | bytes) -> Any:
    known: list[Any] = [(stand_in, name) for name, stand_in in ALLOWED.items()]
    known.append((Array, f"{Array.__module__}.{Array.__qualname__}"))  # what fills an array has to be known, too
    try:
        with torch.serialization.safe_globals(known), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file if isinstance(file, Path) else BytesIO(file), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes lead torch's reader to, the file is at fault
        named = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is not None:
            raise ForeignName(named[1]) from error
        text = str(error).lower()
        if isinstance(error, EOFError | struct.error) or any(word in text for word in ("eof", "truncated", "ran out")):
            raise EOFError("it ends early") from error
        raise ValueError(str(error).strip().split("\n")[0] or type(error).__name__) from error
