"""Elastic chains: the stages of a `ConvChain` and the shuffles between them, cut to what `narrowed_plan` says is left.

The leaves stay what they are, convolutions and BatchNorms with runs of channels; only which channels these are is
decided by the plan of the whole chain instead of by the rounding law. At the borders between stages, where the full
chain pads, shuffles, gathers or crops (or does nothing), what is left is read into the slots that are left.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.elastic.active import ActiveConfig
from leanconv.elastic.coupling.modules import CONVOLUTIONS, MOVERS, layer_of
from leanconv.elastic.layers.leaves import Elastic, make_class_elastic, numbers, pick
from leanconv.elastic.slices import Channels, Layer, Runs, cached, counting, joined
from leanconv.elastic.width import Config, Width
from leanconv.errors import RewriteError
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelGather, ChannelPad
from leanconv.plan import NarrowedPlan, narrowed_plan


class Move(NamedTuple):
    """Append so many channels of zeros to the `have` that there are, then read these runs."""

    have: int
    zeros: int
    runs: Runs

    def of(self, x: Tensor) -> Tensor:
        """(B, C, *) with its channels moved."""
        return pick(F.pad(x, (0, 0) * (x.ndim - 2) + (0, self.zeros)) if self.zeros else x, 1, self.runs)

    def module(self, device: torch.device) -> nn.Module:
        """The simplest module that does it."""
        steps: list[nn.Module] = [ChannelPad(self.zeros)] if self.zeros else []
        if self.runs != ((0, self.have + self.zeros),):
            steps.append(ChannelGather(numbers(self.runs), device=device))
        return nn.Sequential(*steps) if len(steps) > 1 else steps[0] if steps else nn.Identity()


class NarrowedChain:
    """What is left of one chain at every width; the same for widths that keep the same channels."""

    def __init__(self, chain: ConvChain, layer: Layer[Channels]) -> None:
        self.plan, self.layer = chain.plan, layer
        self._plans: dict[Any, NarrowedPlan] = {}
        self._moves: dict[Any, Move] = {}

    def at(self, width: Width) -> NarrowedPlan:
        """The chain at `width`."""
        ends = self.layer.inputs.runs(width), self.layer.outputs.runs(width)
        return cached(self._plans, ends, lambda: narrowed_plan(self.plan, *map(numbers, ends)))

    def move(self, border: int, width: Width) -> Move:
        """What the slots behind a border read at `width`."""
        return cached(self._moves, (border, width), lambda: self._move(border, self.at(width), width))

    def _move(self, border: int, plan: NarrowedPlan, width: Width) -> Move:
        order = plan.borders[border]
        have = len(plan.stages[border - 1].rows) if border else self.layer.inputs.count(width)
        if order == (*range(have), *(-1,) * (len(order) - have)):
            return Move(have, len(order) - have, ((0, len(order)),))
        return Move(have, int(-1 in order), joined((have if number < 0 else number, 1) for number in order))


class StageChannels(Channels):
    """The groups of a stage, the places or slots it reads or the rows it makes, as the channels of a leaf."""

    def __init__(self, chain: NarrowedChain, stage: int, what: str, full: int) -> None:
        super().__init__(())
        self.chain, self.stage, self.what, self.full = chain, stage, what, full

    def _find(self, width: Width) -> Runs:
        return joined((number, 1) for number in getattr(self.chain.at(width).stages[self.stage], self.what))


class ElasticChain(Elastic):
    """A chain with elastic leaves; `elastic_steps` are the leaves that it runs, and by number the borders between."""

    elastic_chain: NarrowedChain
    elastic_steps: list[str | int]

    def forward(self, x: Tensor) -> Tensor:
        """The original forward, or that of the leaves with other moves between them."""
        scope = self.elastic_config.scope
        if scope.whole:
            whole: Tensor = super(Elastic, self).forward(x)
            return whole
        for step in self.elastic_steps:
            if isinstance(step, int):
                x = self.elastic_chain.move(step, scope.width).of(x)
            else:
                x = self.get_submodule(step)(x)
        return x

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """A sequence of what is left; the chain it was where nothing is dropped."""
        if config.width == self.elastic_config.largest.width:
            return super().plain(config)
        made = nn.Sequential()
        vars(made).update({name: vars(self)[name] for name in vars(made)}, _modules={})  # its hooks and mode
        device = next(self.parameters()).device
        for step in self.elastic_steps:
            if not isinstance(step, int):
                made.add_module(step, self.get_submodule(step))
            elif type(moved := self.elastic_chain.move(step, config.width).module(device)) is not nn.Identity:
                made.add_module(f"border{step}", moved)
        return made


def make_chain(module: nn.Module, layer: Layer[Channels], active: ActiveConfig) -> Elastic:
    """Make a chain and its leaves elastic, in place."""
    assert isinstance(module, ConvChain)
    if active.largest.width > 1:
        raise RewriteError(
            "a chain of grouped convolutions has no wider form that contains it: make the network elastic over widths "
            "above 1 before it is rewritten, or build it at the largest width and take widths relative to that"
        )
    chain = NarrowedChain(module, layer)
    stage = -1
    steps: list[str | int] = [0]  # one border before every stage and behind the last, whatever moves channels there
    for name, leaf in module.named_children():
        if isinstance(leaf, CONVOLUTIONS):
            stage += 1
            full = {"groups": leaf.groups, "slots": leaf.in_channels, "rows": leaf.out_channels}
            groups, slots, rows = (StageChannels(chain, stage, what, count) for what, count in full.items())
            reads = StageChannels(chain, stage, "reads", leaf.in_channels // leaf.groups)
            part = layer_of(leaf, slots, rows, reads, counting(groups, leaf.groups))
            make_class_elastic(leaf, part, active)
            steps += [name, stage + 1]
        elif isinstance(leaf, _BatchNorm):
            rows = StageChannels(chain, stage, "rows", leaf.num_features)
            make_class_elastic(leaf, layer_of(leaf, rows, rows), active)
            steps.insert(-1, name)
        elif not isinstance(leaf, MOVERS):
            steps.insert(-1, name)
    made = make_class_elastic(module, layer, active, ElasticChain)
    vars(made).update(elastic_chain=chain, elastic_steps=steps)
    return made
