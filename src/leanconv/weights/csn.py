"""How other projects call the parts of a channel-separated network, as data, and the map of names that follows from it.

A format says what the modules are called; what hangs on a module (weight, bias, running_mean, ...) has mostly the same
name everywhere. The middle of a block is the one place where the two kinds of networks differ:

    ir   conv2.conv.conv1                depthwise 3x3x3
    ip   conv2.conv.conv1, bn1, conv2    1x1x1, BatchNorm, depthwise 3x3x3

VMZ has R(2+1)D in the same files, whose stem is decomposed, too, and whose blocks of up to 34 layers have no conv3:

    r2plus1d          conv2.conv.spatial, bn, temporal             1x3x3, BatchNorm, 3x1x1
    r2plus1d_simple   the same in conv1 and conv2

Dense 3x3x3 networks are not here: those that the projects have released differ from ours in stem or strides, which no
name tells, so their weights would fit and mean something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from leanconv.errors import CheckpointError
from leanconv.weights.formats import NO_FILE, Format, Source

__all__ = ["OUR_EPS", "CsnFormat", "Kind", "Outline", "our_outline"]

Kind = Literal["ir", "ip", "r2plus1d", "r2plus1d_simple"]

OUR_EPS = 1e-3
"""What the zoo's channel-separated networks add to the variance unless built with another norm_eps."""

_MODULE = re.compile(r"(?:layer(?P<stage>\d+)\.(?P<block>\d+)\.)?(?P<module>.+)\.(?P<tensor>\w+)")

_ZOO: dict[Kind, str] = {"ir": "ir_csn_*", "ip": "ip_csn_*", "r2plus1d": "r2plus1d_*"}

KERNELS: dict[Kind, tuple[str, ...]] = {
    "ip": ("conv2.conv.conv1", "conv2.conv.conv2"),
    "ir": ("conv2.conv.conv1",),
    "r2plus1d": ("conv3.conv", "conv2.conv.spatial", "conv2.conv.temporal"),
    "r2plus1d_simple": ("conv1.conv.temporal", "conv2.conv.spatial", "conv2.conv.temporal"),
}
"""Convolutions that blocks of a kind have and no others, the one whose kernel tells last."""


@dataclass(frozen=True)
class Outline:
    """What network a state dict holds: its kind, its blocks per stage, its classes (None without a classifier)."""

    kind: Kind
    blocks: tuple[int, ...]
    classes: int | None

    def __str__(self) -> str:
        simple = self.kind == "r2plus1d_simple"
        told = (
            self.kind.removesuffix("_simple"),
            ", ".join(map(str, self.blocks)),
            "blocks" if simple else "bottlenecks",
        )
        return f"{told[0]} with {told[1]} {told[2]} ({(2 if simple else 3) * sum(self.blocks) + 2} layers)"


def kind_of(tensors: Mapping[str, Tensor], kernels: Mapping[Kind, Iterable[str]]) -> Kind | None:
    """The kind whose `kernels` are all in `tensors`, the last of them a depthwise 3x3x3 or, of R(2+1)D, a dense 3x1x1;
    the first that fits."""
    for kind, names in kernels.items():
        found = [tensors[name] for name in names if name in tensors]
        if len(found) < len(list(names)):
            continue
        shape = tuple(found[-1].shape)
        if shape[2:] == (3, 1, 1) if kind.startswith("r2plus1d") else shape[1:] == (1, 3, 3, 3):
            return kind
    return None


def blocks_of(tensors: Iterable[str], block: str) -> tuple[int, ...]:
    """Blocks per stage, by the prefix `block` with {stage} and {block}; nothing where no name has it."""
    pattern = re.compile(re.escape(block).replace(r"\{stage\}", r"(\d{1,3})").replace(r"\{block\}", r"(\d{1,3})"))
    seen = {(int(found[1]), int(found[2])) for found in map(pattern.match, tensors) if found}
    return tuple(sum(stage == number for stage, _ in seen) for number in range(1, max(seen)[0] + 1)) if seen else ()


def our_outline(own: Mapping[str, Tensor]) -> Outline | None:
    """The channel-separated network that a state dict of ours is, or None."""
    block = "layer{stage}.{block}."
    blocks, first = blocks_of(own, block), block.format(stage=1, block=0)
    kind = kind_of(own, {kind: [f"{first}{name}.weight" for name in names] for kind, names in KERNELS.items()})
    scores = own.get("fc.weight")
    return Outline(kind, blocks, None if scores is None else len(scores)) if kind and blocks else None


@dataclass(frozen=True, kw_only=True)
class CsnFormat(Format):
    """The names of one project: our module -> theirs.

    Args:
        outside: stem and classifier.
        block: the prefix of a block, with {stage} from 1 to 4 and {block} from 0.
        inside: of a block, but for its middle.
        middle: of each kind that the project has; where a name is in `inside`, too, this one is meant.
        stems: of those kinds whose stem is not as `outside` has it.
        optional_prefix: what its files of a backbone alone leave away.
    """

    outside: Mapping[str, str]
    block: str
    inside: Mapping[str, str]
    middle: Mapping[Kind, Mapping[str, str]]
    stems: Mapping[Kind, Mapping[str, str]] = field(default_factory=dict)
    norm_eps: float | None = field(default=OUR_EPS)
    optional_prefix: str = ""

    @property
    def holds(self) -> str:
        """What networks its files hold."""
        return "channel-separated networks" + (" and R(2+1)D" if "r2plus1d" in self.middle else "")

    def module(self, ours: str, stage: int, block: int, blocks: tuple[int, ...], kind: Kind) -> str | None:
        """What `ours`, a module inside a block, is called; None where it has no counterpart."""
        theirs = {**self.inside, **self.middle[kind]}.get(ours)
        return None if theirs is None else f"{self.block.format(stage=stage, block=block)}{theirs}"

    def tensor(self, module: str, ours: str, tensor: str, theirs: Mapping[str, Tensor]) -> Source:
        """Where the tensor of a module is, called `module` by them and `ours` by us."""
        return f"{module}.{tensor}"

    def outline(self, tensors: Mapping[str, Tensor]) -> Outline | None:
        """The channel-separated network that a file with these `tensors` holds, or None."""
        blocks, first = blocks_of(tensors, self.block), self.block.format(stage=1, block=0)
        kernels = {
            kind: [f"{first}{({**self.inside, **names})[conv]}.weight" for conv in KERNELS[kind]]
            for kind, names in self.middle.items()
        }
        kind, scores = kind_of(tensors, kernels), tensors.get(f"{self.outside['fc']}.weight")
        return Outline(kind, blocks, None if scores is None else len(scores)) if kind and blocks else None

    def key_map(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor] = NO_FILE) -> dict[str, Source]:
        """See `Format.key_map`."""
        shape = our_outline(own)
        if shape is None:
            raise CheckpointError(
                f"{self.name} files hold {self.holds}, and this is none, or no longer: take one of the "
                f"zoo's {', '.join(_ZOO[kind] for kind in self.middle if kind in _ZOO)}, import, then rewrite it"
            )
        if shape.kind not in self.middle:
            raise CheckpointError(f"{self.name} has {', '.join(self.middle)} networks only, and this one is {shape}")
        names: dict[str, Source] = {}
        for name in own:
            found = _MODULE.fullmatch(name)
            module = None
            if found is not None and found["stage"] is None:
                module = {**self.outside, **self.stems.get(shape.kind, {})}.get(found["module"])
            elif found is not None:
                at = int(found["stage"]), int(found["block"])
                module = self.module(found["module"], *at, shape.blocks, shape.kind)
            if found is None or module is None:
                raise CheckpointError(f"{name} of this network has no counterpart in {self.name} files")
            names[name] = self.tensor(module, found["module"], found["tensor"], theirs)
        return names

    def align(
        self, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
    ) -> tuple[Mapping[str, Tensor], str]:
        """As `Format.align`; a backbone alone gets the names of a whole network."""
        tensors, prefix = super().align(tensors, own, source)
        first = f"{self.outside['stem.0.conv']}.weight"
        if self.optional_prefix and first not in tensors and first.removeprefix(self.optional_prefix) in tensors:
            tensors = {f"{self.optional_prefix}{name}": value for name, value in tensors.items()}
        return tensors, prefix

    def refuse_other_network(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], source: str) -> None:
        """Another kind or depth."""
        mine, other = our_outline(own), self.outline(theirs)
        if mine is None or other is None:
            raise CheckpointError(
                f"{source} holds no {self.name} network: {self.markers[0][0]} and its blocks are not in it"
            )
        if (mine.kind, mine.blocks) != (other.kind, other.blocks):
            raise CheckpointError(f"{source} is {other}, but the network to fill is {mine}: build the one of the file")

    def describe(self, model: nn.Module, own: Mapping[str, Tensor]) -> str:
        """Kind and depth."""
        return str(our_outline(own))

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """The pool of the stem, which has no weights."""
        pools = any(isinstance(module, nn.MaxPool3d) for module in model.modules())
        return (
            "no file says whether the stem ends in a max pool (pool1); the network was built "
            f"{'with' if pools else 'without'} it",
        )
