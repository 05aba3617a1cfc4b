"""The kinds of layers that are sliced as a whole, and what each does to the channels of its input."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import lcm, prod

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from leanconv.elastic.coupling import rows
from leanconv.elastic.coupling.rows import Axis, CannotFollow, Dims, Row, Segment
from leanconv.elastic.slices import Axes, Counts, Layer, counting
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelCrop, ChannelGather, ChannelPad, ChannelShuffle

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PER_CHANNEL = (_BatchNorm, _InstanceNorm, nn.PReLU)

MOVERS = (ChannelPad, ChannelShuffle, ChannelGather, ChannelCrop)
"""What moves channels between the stages of a chain; elastic, other modules stand there."""

FEW = 3
"""Groups of a convolution that are too few to drop whole ones: nothing would lie between a third and all.

They stay, and shrink inside, if the rounding to multiples of eight leaves them more sizes than there are groups.
"""

PIECES = 64
"""Into which a reordering of channels may cut them."""


def is_layer(module: nn.Module) -> bool:
    """Whether a module is sliced as a whole, its own operations unseen.

    A chain is one where channels are moved between its stages; one without is a sequence of layers.
    """
    if isinstance(module, nn.PReLU):
        return module.num_parameters > 1
    if isinstance(module, ConvChain):
        return any(isinstance(leaf, MOVERS) for leaf in module)
    return isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, *PER_CHANNEL, nn.Linear, ChannelGather))


def module_rule(name: str, module: nn.Module, dims: Dims, x: Tensor, y: Tensor) -> tuple[Layer[Row], Dims]:
    """What the layer called `name` does to an input with `dims`, and the dims of its output. Raises `CannotFollow`."""
    _require_ordinary(module)
    axis = x.ndim - 1 if isinstance(module, nn.Linear) else 1
    row = dims[axis] or rows.fixed_row(int(x.shape[axis]), "it is the network's input")
    if isinstance(module, PER_CHANNEL):
        count = "num_parameters" if isinstance(module, nn.PReLU) else "num_features"
        layer = Layer(row, row, _per_channel(module, row), {count: counting(row, int(x.shape[axis]))})
        return layer, (*dims[:axis], row, *dims[axis + 1 :])
    if isinstance(module, ChannelGather):
        layer = _reordered(module, row)
        return layer, (dims[0], layer.outputs, *dims[2:])
    if not isinstance(module, nn.Linear) and x.ndim != len(module.kernel_size) + 2:  # type: ignore[arg-type]
        raise CannotFollow("its input has no batch axis")
    moved = [i for i, other in enumerate(dims) if rows.is_sliceable(other) and i != axis]
    if any(x.shape[i] != y.shape[i] for i in moved):
        raise CannotFollow("it runs along the channels and changes their number")
    layer = _convolved(name, module, row)
    behind = [dims[i] if i in moved else None for i in range(x.ndim)]
    behind[axis] = None if y.shape[axis] == 1 else layer.outputs
    return layer, tuple(behind)


def _convolved(name: str, module: nn.Module, row: Row) -> Layer[Row]:
    """A linear layer, a convolution, or a chain: what it reads and makes."""
    into, out_of = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
    ins, outs, groups = getattr(module, into), getattr(module, out_of), getattr(module, "groups", 1)
    per_group = ins // groups
    out: Row
    counts: dict[str, Counts[Row]] = {}
    columns: Row | None = None  # the input of one group, where the groups stay
    if groups == 1:
        columns, out = row, (Segment(Axis(outs, makers=(name,)), 1),)
        if outs == 1:
            rows.fix(out, "it makes a single channel")
    elif groups <= FEW and per_group > lcm(8, groups) and isinstance(module, CONVOLUTIONS) and rows.is_sliceable(row):
        columns = rows.divide(row, (groups, per_group), 1)[1]
        row = rows.resolve(row)
        out = (Segment(Axis(outs // groups, makers=(name,), share=Fraction(1, groups)), 1),) * groups
    else:
        row = rows.align(row, per_group)
        for one, _ in row:
            one.depthwise |= ins == groups
        out = tuple(Segment(one, unit * outs // ins) for one, unit in row)
        counts["groups"] = counting(row, groups, per_group)
    counts |= {into: counting(row, ins), out_of: counting(out, outs)}
    tensors = _per_channel(module, out)
    if "weight" in tensors:
        leading = (row, out if groups == 1 else None) if isinstance(module, TRANSPOSED) else (out, columns)
        tensors["weight"] = (*leading, *tensors["weight"][2:])
    return Layer(row, out, tensors, counts, mixes=groups == 1)


def _per_channel(module: nn.Module, row: Row) -> dict[str, Axes[Row]]:
    """Every parameter with its first axis on that row; a single number is for all channels."""
    return {
        name: (row if p.numel() > 1 else None, *(None,) * (p.ndim - 1))
        for name, p in module._parameters.items()
        if p is not None
    }


def _reordered(module: ChannelGather, row: Row) -> Layer[Row]:
    """Channels in another order, piece by piece."""
    index = module.index.tolist()
    starts = [0, *(k for k, (one, other) in enumerate(pairwise(index), 1) if other != one + 1), len(index)]
    if len(starts) > PIECES:
        raise CannotFollow(f"it reorders the channels in {len(starts) - 1} pieces")
    pieces = []
    for start, stop in pairwise(starts):
        before, rest = rows.cut(row, index[start])
        pieces.append((before, rows.cut(rest, stop - start)[0]))
    return Layer(row, sum((part for _, part in pieces), start=()), pieces=tuple(pieces))


def _require_ordinary(module: nn.Module) -> None:
    """Raise where a layer's weights are not what they seem."""
    if parametrize.is_parametrized(module) or "forward" in vars(module):
        raise CannotFollow("its weights are parametrized or its forward was replaced on the instance")
    if isinstance(module, (ConvChain, ChannelGather)):
        return
    if isinstance(module, _InstanceNorm) and module.track_running_stats:
        raise CannotFollow("it keeps running statistics, of all widths in one")
    outs = getattr(module, "out_channels", getattr(module, "out_features", 0))
    odd = [
        name
        for name, p in module._parameters.items()
        if p is not None and name not in ("weight", "bias") and p.numel() != 1 and not p.numel() == p.shape[0] == outs
    ]
    if odd or (isinstance(module, (nn.Linear, *CONVOLUTIONS)) and module._parameters.get("weight") is None):
        raise CannotFollow(f"it has weights beside weight and bias ({', '.join(odd) or 'computed'})")
    if isinstance(module, CONVOLUTIONS) and prod(module.weight.shape) == 0:
        raise CannotFollow("it has no weights")
