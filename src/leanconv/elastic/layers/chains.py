"""Elastic chains: the stages of a `ConvChain` and the shuffles between them, cut to what `narrowed_plan` says is left.

The leaves stay what they are, convolutions and BatchNorms with runs of channels; only which channels these are is
decided by the plan of the whole chain instead of by the rounding law. At the borders between stages, where the full
chain pads, shuffles, gathers or crops (or does nothing), an `ElasticMover` reads what is left into the slots that are
left. A reordering of channels that stands alone is one, too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.elastic.coupling.modules import CONVOLUTIONS, MOVERS
from leanconv.elastic.layers.leaves import Elastic, make_class_elastic, numbers, pick
from leanconv.elastic.narrowed_plan import NarrowedPlan, narrowed_plan
from leanconv.elastic.slices import Channels, Counts, Layer, OtherLayer, Runs, cached
from leanconv.elastic.width import ActiveConfig, Config, Width
from leanconv.errors import RewriteError
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelGather, ChannelPad


class Move(NamedTuple):
    """Append so many channels of zeros, then read these runs; `have` is how many there are before."""

    have: int
    zeros: int
    runs: Runs


class Moves(Protocol):
    """How channels are moved at every width."""

    def at(self, width: Width) -> Move:
        """The move at `width`."""


class Pieces:
    """The kept part of every piece of a reordering."""

    def __init__(self, layer: Layer[Channels]) -> None:
        self.layer = layer

    def at(self, width: Width) -> Move:
        """The move at `width`."""
        runs = tuple((before.count(width), part.count(width)) for before, part in self.layer.pieces)
        return Move(self.layer.inputs.count(width), 0, runs)


class NarrowedChain:
    """What is left of one chain at every width; the same for widths that keep the same channels."""

    def __init__(self, chain: ConvChain, layer: Layer[Channels]) -> None:
        self.plan, self.layer = chain.plan, layer
        self._plans: dict[Any, NarrowedPlan] = {}

    def at(self, width: Width) -> NarrowedPlan:
        """The chain at `width`."""
        ends = self.layer.inputs.runs(width), self.layer.outputs.runs(width)
        return cached(self._plans, ends, lambda: narrowed_plan(self.plan, *map(numbers, ends)))


class ChainBorder:
    """What the slots behind a border of a chain read."""

    def __init__(self, chain: NarrowedChain, border: int) -> None:
        self.chain, self.border = chain, border
        self._known: dict[Width, Move] = {}

    def at(self, width: Width) -> Move:
        """The move at `width`."""
        return cached(self._known, width, lambda: self._at(width))

    def _at(self, width: Width) -> Move:
        plan = self.chain.at(width)
        order, before = plan.borders[self.border], self.border - 1
        have = len(plan.stages[before].rows) if self.border else self.chain.layer.inputs.count(width)
        if order == (*range(have), *(-1,) * (len(order) - have)):
            return Move(have, len(order) - have, ((0, len(order)),))
        return Move(have, int(-1 in order), _runs([have if number < 0 else number for number in order]))


class StageChannels(Channels):
    """The groups of a stage, the places or slots it reads or the rows it makes, as the channels of a leaf."""

    def __init__(self, chain: NarrowedChain, stage: int, what: str, full: int) -> None:
        super().__init__(())
        self.chain, self.stage, self.what, self.full = chain, stage, what, full

    @property
    def moves(self) -> bool:
        """Whether any width has other channels than another."""
        return self.chain.layer.inputs.moves or self.chain.layer.outputs.moves

    def _find(self, width: Width) -> Runs:
        return _runs(getattr(self.chain.at(width).stages[self.stage], self.what))


def _runs(numbers: Sequence[int]) -> Runs:
    """Numbers as runs."""
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
        full = config.width == self.elastic_config.largest.width
        made: nn.Module = object.__new__(self.kind if full else nn.Sequential)
        plain = vars(nn.Sequential())
        vars(made).update({name: value for name, value in vars(self).items() if full or name in plain})
        leaves = {name: leaf for name, leaf in self._modules.items() if type(leaf) is not nn.Identity}
        vars(made)["_modules"] = OrderedDict(leaves)
        return self.own(made).to(next(made.parameters()).device)


class ElasticMover(Elastic):
    """A module that moves channels; None in `elastic_moves` where another one, before it, does its work."""

    elastic_moves: Moves | None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) to the channels that are wanted, in their order."""
        if self.elastic_config.original:
            x = super(Elastic, self).forward(x)
        elif self.elastic_moves is not None:
            move = self.elastic_moves.at(self.elastic_config.width)
            x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, move.zeros)) if move.zeros else x
            x = pick(x, 1, move.runs)
        return x

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """The simplest module that moves the channels so."""
        if config.width == self.elastic_config.largest.width == 1:
            return self.own(self.view(config.width))
        if self.elastic_moves is None:
            return nn.Identity()
        have, zeros, runs = self.elastic_moves.at(config.width)
        pad = [ChannelPad(zeros)] if zeros else []
        whole = runs == ((0, have + zeros),)
        device = next((buffer.device for buffer in self._buffers.values() if buffer is not None), None)
        steps = pad if whole else [*pad, ChannelGather(numbers(runs), device=device)]
        return nn.Sequential(*steps) if len(steps) > 1 else steps[0] if steps else nn.Identity()


def make_chain(module: nn.Module, layer: Layer[Channels], active: ActiveConfig) -> None:
    """Make the leaves of a chain elastic, in place."""
    assert isinstance(module, ConvChain)
    if active.largest.width > 1:
        raise RewriteError(
            "a chain of grouped convolutions has no wider form that contains it: make the network elastic over widths "
            "above 1 before it is rewritten, or build it at the largest width and take widths relative to that"
        )
    chain = NarrowedChain(module, layer)
    stage, open_border = -1, True
    children: OrderedDict[str, nn.Module] = OrderedDict()

    def close_border() -> None:
        if open_border:
            border = nn.Identity().train(module.training)
            children[f"border{stage + 1}"] = _make_mover(border, ChainBorder(chain, stage + 1), active)

    for name, leaf in list(module._modules.items()):
        assert leaf is not None
        if isinstance(leaf, CONVOLUTIONS):
            close_border()
            stage, open_border = stage + 1, True
            make_class_elastic(leaf, _stage(leaf, chain, stage), active)
        elif isinstance(leaf, _BatchNorm):
            rows = StageChannels(chain, stage, "rows", leaf.num_features)
            counts = {"num_features": Counts((rows.full,), {0: (rows, 1)})}
            tensors = {name: (rows,) for name, p in leaf._parameters.items() if p is not None}
            make_class_elastic(leaf, Layer(rows, rows, tensors, counts), active)
        elif isinstance(leaf, MOVERS):
            _make_mover(leaf, ChainBorder(chain, stage + 1) if open_border else None, active)
            open_border = False
        children[name] = leaf
    close_border()
    vars(module)["_modules"] = children
    make_class_elastic(module, layer, active, ElasticChain)


def _stage(conv: nn.Module, chain: NarrowedChain, stage: int) -> Layer[Channels]:
    """A convolution of a chain: some of its groups, and of these some of the places."""
    assert isinstance(conv, CONVOLUTIONS)
    full = {"groups": conv.groups, "slots": conv.in_channels, "rows": conv.out_channels}
    of = {what: StageChannels(chain, stage, what, count) for what, count in full.items()}
    reads = StageChannels(chain, stage, "reads", conv.in_channels // conv.groups)
    names = {"groups": "groups", "in_channels": "slots", "out_channels": "rows"}
    counts = {name: Counts((full[what],), {0: (of[what], 1)}) for name, what in names.items()}
    tensors = {"weight": (of["rows"], reads), **({} if conv.bias is None else {"bias": (of["rows"],)})}
    return Layer(reads, of["rows"], tensors, counts)


def _make_mover(module: nn.Module, moves: Moves | None, active: ActiveConfig) -> nn.Module:
    made = make_class_elastic(module, OtherLayer({}, {}, {}, {}), active, ElasticMover)
    vars(made)["elastic_moves"] = moves
    return made


def make_reordering(module: nn.Module, layer: Layer[Channels], active: ActiveConfig) -> None:
    """Make a reordering of channels elastic, in place."""
    vars(make_class_elastic(module, layer, active, ElasticMover))["elastic_moves"] = Pieces(layer)
