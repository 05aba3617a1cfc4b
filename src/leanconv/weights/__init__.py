"""Weights that others have released, or one's own, into our networks: one file of names per format, a row in `FORMATS`.

Nothing is downloaded, and nothing in a file is run. `files` reads, `container` finds the tensors, a format says what
they are called, `fill` compares everything.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from leanconv.errors import CheckpointError, unknown
from leanconv.weights.container import WeightFile
from leanconv.weights.files import read_tensors
from leanconv.weights.fill import Imported, fill, import_weights
from leanconv.weights.formats import Filled, Format, Joined, Source
from leanconv.weights.gluoncv import GLUONCV
from leanconv.weights.igc import IGC
from leanconv.weights.mmaction2 import MMACTION2
from leanconv.weights.mutualnet import MUTUALNET
from leanconv.weights.octconv_gluon import OCTCONV_GLUON
from leanconv.weights.octconv_pytorch import OCTCONV_PYTORCH
from leanconv.weights.octconv_symbol import OCTCONV_SYMBOL
from leanconv.weights.plain import PLAIN, share_of
from leanconv.weights.pytorchvideo import PYTORCHVIDEO
from leanconv.weights.vmz import VMZ
from leanconv.weights.vmz_caffe2 import VMZ_CAFFE2

__all__ = [
    "FORMATS",
    "Filled",
    "Format",
    "Imported",
    "Joined",
    "Source",
    "WeightFile",
    "fill",
    "find_format",
    "import_weights",
    "key_map",
    "read_tensors",
]

_FOREIGN: tuple[Format, ...] = (
    *(MMACTION2, VMZ, PYTORCHVIDEO, VMZ_CAFFE2, GLUONCV),
    *(OCTCONV_PYTORCH, OCTCONV_SYMBOL, OCTCONV_GLUON, IGC, MUTUALNET),
)

FORMATS: dict[str, Format] = {one.name: one for one in (PLAIN, *_FOREIGN)}
"""Every format by its name; `plain` is the network's own names."""

SURE = 0.9
"""The share of a file's names that, being the network's own, settles that the file is plain."""


def key_map(format: Format, own: Mapping[str, Tensor]) -> dict[str, Source]:
    """For every name in the state dict `own` of one of our networks where it is in a file of `format`.

    Raises `CheckpointError` where there is no counterpart: another kind of network, or a rewritten one.
    """
    return format.key_map(own)


def find_format(
    tensors: Mapping[str, Tensor],
    name: str | None = None,
    *,
    source: str = "the file",
    own: Mapping[str, Tensor] | None = None,
) -> Format:
    """The format called `name`, or the one whose names are in `tensors`; plain where they are those of `own`.

    Raises `UnknownName` for a name that is no format, `CheckpointError` for tensors of none, or of another than `name`.
    """
    if name is not None and name not in FORMATS:
        raise unknown("weight format", name, FORMATS)
    fits = [one for one in _FOREIGN if one.prefix_in(tensors) is not None]
    share = 0.0 if own is None else share_of(own, tensors)
    if share >= SURE or (share > 0 and not fits):
        fits = [PLAIN, *fits]
    if name == PLAIN.name and share > 0:
        return PLAIN
    if not fits:
        some = ", ".join(list(tensors)[:3])
        like = "" if own is None else f", nor as the network does ({', '.join(list(own)[:2])}, ...)"
        raise CheckpointError(
            f"{source} is named as none of {', '.join(FORMATS)} names a network{like}: it starts with {some}"
        )
    if name is not None and FORMATS[name] not in fits:
        raise CheckpointError(f"{source} is no {name} file: its names are those of {fits[0].name}")
    return FORMATS[name] if name else fits[0]
