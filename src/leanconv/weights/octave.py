"""The names of our octave networks, taken apart: which layer, which of its paths or parts, which tensor.

layer1.0.conv1.conv.conv_hl.weight     the path from high to low of layer1.0.conv1.conv
layer1.0.conv1.bn.low.running_mean     the part at low resolution of layer1.0.conv1.bn
layer4.0.conv2.conv.weight             no octave layer: what others call the path from high to high
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["OctaveName", "has_low", "take_apart"]

_PATH = re.compile(r"(?P<layer>.+)\.conv_(?P<path>[hl][hl])\.(?P<tensor>\w+)")
_PART = re.compile(r"(?P<layer>.+)\.(?P<part>high|low)\.(?P<tensor>\w+)")


@dataclass(frozen=True)
class OctaveName:
    """A tensor of an octave network; `path` ("h2l", ...) of a convolution, `part` ("h", "l") of a norm, else ""."""

    layer: str
    tensor: str
    path: str = ""
    part: str = ""

    @property
    def of_path(self) -> str:
        """The path, that of an ordinary convolution being the one from high to high."""
        return self.path or "h2h"

    @property
    def of_part(self) -> str:
        """The part, that of an ordinary norm being the high one."""
        return self.part or "h"


def take_apart(name: str) -> OctaveName:
    """The layer, path, part and tensor that `name` speaks of.

    >>> take_apart("conv1.conv_hl.weight")
    OctaveName(layer='conv1', tensor='weight', path='h2l', part='')
    """
    if found := _PATH.fullmatch(name):
        return OctaveName(found["layer"], found["tensor"], path="2".join(found["path"]))
    if found := _PART.fullmatch(name):
        return OctaveName(found["layer"], found["tensor"], part=found["part"][0])
    layer, _, tensor = name.rpartition(".")
    return OctaveName(layer, tensor)


def has_low(own: Iterable[str], layer: str) -> bool:
    """Whether the convolution `layer` has outputs at low resolution."""
    return any(f"{layer}.conv_{path}.weight" in own for path in ("hl", "ll"))
