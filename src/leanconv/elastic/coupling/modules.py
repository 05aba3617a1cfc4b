"""The kinds of layers that know how to be sliced, and what each does to the channels of its input."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import lcm, prod
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from leanconv.elastic.coupling.aten_ops import loose
from leanconv.elastic.coupling.rows import Axis, Row, Segment, align, cut, divide, fixed_row, is_fixed, pin, resolve
from leanconv.elastic.coupling.shapes import Dims, Unknown
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelCrop, ChannelGather, ChannelPad, ChannelShuffle

__all__ = ["CONVOLUTIONS", "MOVERS", "TRANSPOSED", "Passed", "is_layer", "pass_layer"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

MOVERS = (ChannelPad, ChannelShuffle, ChannelGather, ChannelCrop)
"""What moves channels between the stages of a chain; elastic, other modules stand there."""

FEW = 3
"""Groups of a convolution that are too few to drop whole ones: nothing would lie between a third and all.

They stay, and shrink inside, if the rounding to multiples of eight leaves them more sizes than there are groups.
"""

RUNS = 64
"""Pieces into which a reordering of channels may cut them."""


class Passed(NamedTuple):
    """What a layer did: the rows it reads and makes, all axes of its output, whether every output reads every input.

    `columns` is the input of one group of a grouped convolution whose groups stay and shrink inside; `pieces` are
    (channels before, channels in) of each piece that a reordering reads.
    """

    inputs: Row
    outputs: Row
    dims: Dims
    mixes: bool = False
    columns: Row | None = None
    pieces: tuple[tuple[Row, Row], ...] = ()


def is_layer(module: nn.Module) -> bool:
    """Whether a module is sliced as a whole, its own operations unseen.

    A chain is one where channels are moved between its stages; one without is a sequence of layers.
    """
    if isinstance(module, nn.PReLU):
        return module.num_parameters > 1
    if isinstance(module, ConvChain):
        return any(isinstance(leaf, MOVERS) for leaf in module)
    return isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, _BatchNorm, _InstanceNorm, ChannelGather))


def pass_layer(name: str, module: nn.Module, dims: Dims, x: Tensor, y: Tensor) -> Passed:
    """What the layer called `name` does to an input with `dims`. Raises `Unknown` or `Misfit`."""
    _refuse_oddities(module)
    axis = x.ndim - 1 if isinstance(module, nn.Linear) else 1
    row = dims[axis] or fixed_row(int(x.shape[axis]), "it is the network's input")
    if isinstance(module, (_BatchNorm, _InstanceNorm, nn.PReLU)):
        return Passed(row, row, (*dims[:axis], row, *dims[axis + 1 :]))
    if isinstance(module, ChannelGather):
        return _gather(module, row, dims)
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, ConvChain)) and x.ndim != len(module.kernel_size) + 2:
        raise Unknown("its input has no batch axis")
    moved = [i for i, other in enumerate(dims) if loose(other) and i != axis]
    if any(x.shape[i] != y.shape[i] for i in moved):
        raise Unknown("it runs along the channels and changes their number")
    row, out, columns = _convolve(name, module, row)
    behind = [dims[i] if i in moved else None for i in range(x.ndim)]
    behind[axis] = None if y.shape[axis] == 1 else out
    return Passed(row, out, tuple(behind), mixes=getattr(module, "groups", 1) == 1, columns=columns)


def _convolve(name: str, module: nn.Module, row: Row) -> tuple[Row, Row, Row | None]:
    """What it reads, what it makes, and the input of one group where the groups stay."""
    if isinstance(module, nn.Linear):
        ins, outs, groups = module.in_features, module.out_features, 1
    else:
        assert isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, ConvChain))
        ins, outs, groups = module.in_channels, module.out_channels, module.groups
    if groups == 1:
        out: Row = (Segment(Axis(outs, makers=(name,)), 1),)
        if outs == 1:
            pin(out, "it makes a single channel")
        return row, out, None
    per_group = ins // groups
    if groups <= FEW and per_group > lcm(8, groups) and isinstance(module, CONVOLUTIONS) and not is_fixed(row):
        columns = divide(row, (groups, per_group), 1)[1]
        made = Segment(Axis(outs // groups, makers=(name,), share=Fraction(1, groups)), 1)
        return resolve(row), (made,) * groups, columns
    row = align(row, per_group)
    for axis, _ in row:
        axis.depthwise |= ins == groups
    return row, tuple(Segment(axis, unit * outs // ins) for axis, unit in row), None


def _gather(module: ChannelGather, row: Row, dims: Dims) -> Passed:
    """Channels in another order, piece by piece."""
    index = module.index.tolist()
    starts = [0, *(k for k, (one, other) in enumerate(pairwise(index), 1) if other != one + 1), len(index)]
    if len(starts) > RUNS:
        raise Unknown(f"it reorders the channels in {len(starts) - 1} pieces")
    pieces = []
    for start, stop in pairwise(starts):
        before, rest = cut(row, index[start])
        pieces.append((before, cut(rest, stop - start)[0]))
    out: Row = sum((part for _, part in pieces), start=())
    return Passed(row, out, (dims[0], out, *dims[2:]), pieces=tuple(pieces))


def _refuse_oddities(module: nn.Module) -> None:
    """Layers whose weights are not what they seem."""
    if parametrize.is_parametrized(module) or "forward" in vars(module):
        raise Unknown("its weights are parametrized or its forward was replaced on the instance")
    if isinstance(module, (ConvChain, ChannelGather)):
        return
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        raise Unknown("it keeps running statistics, of all widths in one")
    outs = getattr(module, "out_channels", getattr(module, "out_features", 0))
    odd = [
        name
        for name, p in module._parameters.items()
        if p is not None and name not in ("weight", "bias") and p.numel() != 1 and tuple(p.shape) != _one_each(outs, p)
    ]
    if odd or (isinstance(module, (nn.Linear, *CONVOLUTIONS)) and module._parameters.get("weight") is None):
        raise Unknown(f"it has weights beside weight and bias ({', '.join(odd) or 'computed'})")
    if isinstance(module, CONVOLUTIONS) and prod(module.weight.shape) == 0:
        raise Unknown("it has no weights")


def _one_each(outs: int, parameter: Tensor) -> tuple[int, ...]:
    """The shape of one number per output channel."""
    return (outs, *(1,) * (parameter.ndim - 1))
