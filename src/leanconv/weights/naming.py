"""How other projects call the parts of a channel-separated network, as data, and the map of names that follows from it.

A naming says what the modules are called; what hangs on a module (weight, bias, running_mean, ...) has the same name
everywhere. The middle of a block is the one place where the two kinds of networks differ:

    ir   conv2.conv.conv1                depthwise 3x3x3
    ip   conv2.conv.conv1, bn1, conv2    1x1x1, BatchNorm, depthwise 3x3x3

Dense 3x3x3 networks are not here: those that the projects have released differ from ours in stem or strides, which no
name tells, so their weights would fit and mean something else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from leanconv.errors import CheckpointError

__all__ = ["OURS", "Kind", "Naming", "Outline", "key_map", "outline"]

Kind = Literal["ir", "ip"]

_MODULE = re.compile(r"(?:layer(?P<stage>\d+)\.(?P<block>\d+)\.)?(?P<module>.+)\.(?P<tensor>\w+)")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The names of one project: our module -> theirs.

    Args:
        outside: stem and classifier.
        block: the prefix of a block, with {stage} from 1 to 4 and {block} from 0.
        inside: of a block, but for its middle.
        middle: of each kind that the project has.
        norm_eps: what its networks add to the variance; no file tells it.
        optional_prefix: what its files of a backbone alone leave away.
    """

    name: str
    outside: Mapping[str, str]
    block: str
    inside: Mapping[str, str]
    middle: Mapping[Kind, Mapping[str, str]]
    norm_eps: float = 1e-3
    optional_prefix: str = ""

    @property
    def first(self) -> str:
        """The name by which a file of this project is known: the kernel of its stem."""
        return f"{self.outside['stem.0.conv']}.weight"

    @property
    def classifier(self) -> str:
        """The prefix of the classifier's tensors."""
        return f"{self.outside['fc']}."


@dataclass(frozen=True)
class Outline:
    """What network a state dict holds: its kind, its blocks per stage, its classes (None without a classifier)."""

    kind: Kind
    blocks: tuple[int, ...]
    classes: int | None

    def __str__(self) -> str:
        return f"{self.kind} with {', '.join(map(str, self.blocks))} bottlenecks ({3 * sum(self.blocks) + 2} layers)"


def outline(naming: Naming, tensors: Mapping[str, Tensor]) -> Outline | None:
    """The channel-separated network that `tensors` hold under the names of `naming`, or None."""
    pattern = re.escape(naming.block).replace(r"\{stage\}", r"(\d+)").replace(r"\{block\}", r"(\d+)")
    seen = {(int(found[1]), int(found[2])) for found in map(re.compile(pattern).match, tensors) if found}
    if not seen:
        return None
    counts = tuple(sum(stage == number for stage, _ in seen) for number in range(1, max(seen)[0] + 1))
    scores = tensors.get(f"{naming.classifier}weight")
    classes = None if scores is None else len(scores)
    first = naming.block.format(stage=1, block=0)
    for kind, middle in naming.middle.items():
        kernels = [tensors.get(f"{first}{middle[conv]}.weight") for conv in _KERNELS[kind]]
        last = kernels[-1]
        if last is not None and all(kernel is not None for kernel in kernels) and last.shape[1:] == (1, 3, 3, 3):
            return Outline(kind, counts, classes)
    return None


def key_map(naming: Naming, own: Mapping[str, Tensor]) -> dict[str, str]:
    """For every name in the state dict `own` of one of our networks the name in a file of `naming`.

    Raises `CheckpointError` where there is no counterpart: another kind of network, or a rewritten one.
    """
    shape = outline(OURS, own)
    if shape is None:
        raise CheckpointError(
            f"{naming.name} files hold channel-separated networks, and this is none, or no longer: take one of the "
            "zoo's ir_csn_* or ip_csn_*, import, then rewrite it"
        )
    if shape.kind not in naming.middle:
        raise CheckpointError(f"{naming.name} has {', '.join(naming.middle)} networks only, and this one is {shape}")
    inside = {**naming.inside, **naming.middle[shape.kind]}
    names: dict[str, str] = {}
    for name in own:
        found = _MODULE.fullmatch(name)
        known = naming.outside if found is None or found["stage"] is None else inside
        if found is None or found["module"] not in known:
            raise CheckpointError(f"{name} of this network has no counterpart in {naming.name} files")
        where = "" if known is naming.outside else naming.block.format(stage=found["stage"], block=found["block"])
        names[name] = f"{where}{known[found['module']]}.{found['tensor']}"
    return names


_KERNELS: dict[Kind, tuple[str, ...]] = {
    "ip": ("conv2.conv.conv1", "conv2.conv.conv2"),
    "ir": ("conv2.conv.conv1",),
}
"""The convolutions in the middle of a block, the depthwise one last."""

_UNITS = {f"{unit}.{part}": f"{unit}.{part}" for unit in ("conv1", "conv3", "shortcut") for part in ("conv", "bn")}
_MIDDLES: dict[Kind, tuple[str, ...]] = {
    "ip": ("conv2.conv.conv1", "conv2.conv.bn1", "conv2.conv.conv2", "conv2.bn"),
    "ir": ("conv2.conv.conv1", "conv2.bn"),
}

OURS = Naming(
    name="leanconv",
    outside={name: name for name in ("stem.0.conv", "stem.0.bn", "fc")},
    block="layer{stage}.{block}.",
    inside=_UNITS,
    middle={kind: {name: name for name in names} for kind, names in _MIDDLES.items()},
)
"""Our own names: every naming has the keys of this one."""
