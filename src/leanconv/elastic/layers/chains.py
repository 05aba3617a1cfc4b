"""Elastic chains: the stages of a `ConvChain` and the shuffles between them, cut to what `subplan` says is left.

The leaves stay what they are, convolutions and BatchNorms with runs of channels; only which channels these are is told
by the plan of the whole chain instead of by the rounding law. At the borders between stages, where the full chain
pads, shuffles, gathers or crops (or does nothing), an `ElasticBorder` reads what is left into the slots that are left.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.elastic.coupling.find import Layer
from leanconv.elastic.coupling.modules import CONVOLUTIONS, MOVERS
from leanconv.elastic.layers.leaves import Axes, Elastic, ElasticBatchNorm, ElasticConv, become, pick
from leanconv.elastic.narrowed_plan import Border, Subplan, left_of
from leanconv.elastic.slices import Channels, Runs
from leanconv.elastic.width import Config, Dial
from leanconv.errors import RewriteError
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelGather, ChannelPad

__all__ = ["ElasticBorder", "ElasticGather", "ElasticStage", "make_chain", "make_gather"]


class _Subplans:
    """What is left of one chain at every width; the same for widths that keep the same channels."""

    REMEMBERED = 64

    def __init__(self, chain: ConvChain, layer: Layer) -> None:
        self.plan, self.layer = chain.plan, layer
        self._known: dict[Any, Subplan] = {}
        self._movers: dict[Any, nn.Module] = {}

    def at(self, width: float) -> Subplan:
        """The chain at `width`."""
        key = self.layer.inputs.runs(width), self.layer.outputs.runs(width)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= self.REMEMBERED:
                self._known.clear()
                self._movers.clear()
            inputs, outputs = ([i for start, length in runs for i in range(start, start + length)] for runs in key)
            found = self._known[key] = left_of(self.plan, inputs, outputs)
        return found

    def mover(self, width: float, border: int, device: torch.device) -> nn.Module:
        """The module that moves the channels at a border."""
        key = self.layer.inputs.runs(width), self.layer.outputs.runs(width), border, device
        found = self._movers.get(key)
        if found is None:
            subplan = self.at(width)
            have = subplan.stages[border - 1].rows if border else range(self.layer.inputs.count(width))
            found = _mover(subplan.borders[border], len(have), device)
            if all(type(buffer) is Tensor for buffer in found.buffers()):  # not while traced with fake tensors
                self._movers[key] = found
        return found


class _Left(Channels):
    """The groups of a stage, the places it reads or the rows it makes, as the channels that a leaf asks for."""

    def __init__(self, subplans: _Subplans, stage: int, what: str, full: int) -> None:
        super().__init__(())
        self.subplans, self.stage, self.what, self.full = subplans, stage, what, full

    @property
    def moves(self) -> bool:
        """Whether any width has other channels than another."""
        return self.subplans.layer.inputs.moves or self.subplans.layer.outputs.moves

    def _find(self, width: float) -> Runs:
        return _runs(getattr(self.subplans.at(width).stages[self.stage], self.what))


def _runs(numbers: Sequence[int]) -> Runs:
    """Ascending numbers as runs."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return tuple(runs)


class ElasticChain(Elastic):
    """The chain itself, which only runs its leaves; extracted, it is one no more."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward."""
        return super(Elastic, self).forward(*args, **kwargs)

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """A sequence of what is left; the chain it was where nothing is dropped."""
        names = [name for name, leaf in self._modules.items() if type(leaf) is not nn.Identity]
        full = config.width == self.dial.widest
        made: nn.Module = object.__new__(self.kind if full else nn.Sequential)
        plain = nn.Sequential()
        vars(made).update({key: value for key, value in vars(self).items() if full or key in vars(plain)})
        for key in ("dial", "inputs", "outputs", "slices"):
            vars(made).pop(key, None)
        vars(made)["_modules"] = OrderedDict((name, self._modules[name]) for name in names)
        return made.to(next(made.parameters()).device)


class ElasticStage(ElasticConv):
    """A convolution of a chain: some of its groups, and of these some of the places."""

    left: _Left

    def _axes(self, name: str, parameter: Tensor) -> Axes:
        return (self.outputs, self.inputs) if name == "weight" else (self.outputs,)

    def _attributes_at(self, width: float) -> dict[str, Any]:
        groups = self.left.count(width)
        return {
            "groups": groups,
            "in_channels": groups * self.inputs.count(width),
            "out_channels": self.outputs.count(width),
        }

    def _own(self, view: nn.Module) -> nn.Module:
        vars(view).pop("left", None)
        return super()._own(view)


class ElasticBorder(Elastic):
    """What stands between two stages; the first of several does their work."""

    subplans: _Subplans
    border: int | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) to the slots that are left of the stage behind, or to the output channels that are kept."""
        if self.dial.whole:
            original: Tensor = super(Elastic, self).forward(x)
            return original
        if self.border is None:
            return x
        moved: Tensor = self.subplans.mover(self.dial.width, self.border, x.device)(x)
        return moved

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """The simplest module that moves the channels so."""
        if config.width == self.dial.widest:
            made = self._own(self.view(config.width))
            del vars(made)["subplans"], vars(made)["border"]
            return made
        if self.border is None:
            return nn.Identity()
        return copy.deepcopy(self.subplans.mover(config.width, self.border, torch.device("cpu")))

    def _attributes_at(self, width: float) -> dict[str, Any]:
        return {}


def _mover(border: Border, have: int, device: torch.device) -> nn.Module:
    """The simplest module that puts channel border[k] of `have` at place k, zero where that is -1."""
    count = len(border)
    if border == tuple(range(have)):
        return nn.Identity()
    if border == (*range(have), *(-1,) * (count - have)):
        return ChannelPad(count - have)
    gather = ChannelGather(tuple(have if number < 0 else number for number in border), device=device)
    return nn.Sequential(ChannelPad(1), gather) if -1 in border else gather


def make_chain(module: nn.Module, layer: Layer, dial: Dial) -> None:
    """Make the leaves of a chain elastic, in place."""
    assert isinstance(module, ConvChain)
    if dial.widest > 1:
        raise RewriteError(
            "a chain of grouped convolutions has no wider form that contains it: make the network elastic over widths "
            "above 1 before it is rewritten, or build it at the largest width and take widths relative to that"
        )
    subplans = _Subplans(module, layer)
    stage, open_border = -1, True
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name, leaf in list(module._modules.items()):
        assert leaf is not None
        if isinstance(leaf, CONVOLUTIONS):
            if open_border:
                children[f"border{stage + 1}"] = _border(nn.Identity(), subplans, stage + 1, dial)
            stage, open_border = stage + 1, True
            made = become(leaf, ElasticStage, dial)
            assert isinstance(made, ElasticStage)
            made.left = _Left(subplans, stage, "groups", leaf.groups)
            reads = _Left(subplans, stage, "reads", leaf.in_channels // leaf.groups)
            made.adopt(Layer(reads, _Left(subplans, stage, "rows", leaf.out_channels)))
        elif isinstance(leaf, _BatchNorm):
            rows = _Left(subplans, stage, "rows", leaf.num_features)
            become(leaf, ElasticBatchNorm, dial).adopt(Layer(rows, rows))
        elif isinstance(leaf, MOVERS):
            _border(leaf, subplans, stage + 1 if open_border else None, dial)
            open_border = False
        children[name] = leaf
    if open_border:
        children[f"border{stage + 1}"] = _border(nn.Identity(), subplans, stage + 1, dial)
    vars(module)["_modules"] = children
    become(module, ElasticChain, dial).adopt(layer)


def _border(module: nn.Module, subplans: _Subplans, border: int | None, dial: Dial) -> nn.Module:
    made = become(module, ElasticBorder, dial)
    assert isinstance(made, ElasticBorder)
    made.subplans, made.border, made.slices = subplans, border, {}
    made.train(module.training)
    return made


class ElasticGather(Elastic):
    """A reordering of channels in pieces, of each of which the kept part is read."""

    pieces: tuple[tuple[Channels, Channels], ...]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) with its channels in another order."""
        if self.dial.original:
            original: Tensor = super(Elastic, self).forward(x)
            return original
        return pick(x, 1, self._runs(self.dial.width))

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """The same reordering of what is left."""
        index = self._buffers["index"]
        assert index is not None
        order = tuple(i for start, length in self._runs(config.width) for i in range(start, start + length))
        return ChannelGather(order, device=index.device)

    def _attributes_at(self, width: float) -> dict[str, Any]:
        return {}

    def _runs(self, width: float) -> Runs:
        return tuple((before.count(width), part.count(width)) for before, part in self.pieces)


def make_gather(module: nn.Module, layer: Layer, dial: Dial) -> None:
    """Make a reordering of channels elastic, in place."""
    made = become(module, ElasticGather, dial)
    assert isinstance(made, ElasticGather)
    made.adopt(layer)
    made.pieces = layer.pieces
