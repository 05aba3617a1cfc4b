"""Weights that others have released, into our networks: one file of names per project, one row each in `FORMATS`.

Nothing is downloaded: the file is the caller's. `fill` compares everything, `files` reads without running code.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from leanconv.errors import CheckpointError, unknown
from leanconv.weights.files import read_tensors
from leanconv.weights.fill import Imported, fill, import_weights
from leanconv.weights.mmaction2 import MMACTION2
from leanconv.weights.naming import Naming, key_map
from leanconv.weights.pytorchvideo import PYTORCHVIDEO
from leanconv.weights.vmz import VMZ

__all__ = ["FORMATS", "Imported", "Naming", "fill", "find_format", "import_weights", "key_map", "read_tensors"]

FORMATS: dict[str, Naming] = {naming.name: naming for naming in (MMACTION2, VMZ, PYTORCHVIDEO)}


def find_format(tensors: Mapping[str, Tensor], name: str | None = None, *, source: str = "the file") -> Naming:
    """The format called `name`, or the one whose stem is in `tensors`.

    Raises `UnknownName` for a name that is no format, `CheckpointError` for tensors of none, or of another than `name`.
    """
    if name is not None and name not in FORMATS:
        raise unknown("weight format", name, FORMATS)
    fits = [
        one
        for one in FORMATS.values()
        if one.first in tensors or (one.optional_prefix and one.first.removeprefix(one.optional_prefix) in tensors)
    ]
    if not fits:
        some = ", ".join(list(tensors)[:3])
        raise CheckpointError(
            f"{source} is named as none of {', '.join(FORMATS)} names a network: it starts with {some}"
        )
    if name is not None and FORMATS[name] not in fits:
        raise CheckpointError(f"{source} is no {name} file: its names are those of {fits[0].name}")
    return FORMATS[name] if name else fits[0]
