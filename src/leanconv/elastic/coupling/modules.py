"""The kinds of layers that are sliced as a whole, and what each does to the channels of its input."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import lcm, prod
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from leanconv.elastic.coupling import rows
from leanconv.elastic.coupling.rows import Axis, CannotFollow, Dims, Row, Segment
from leanconv.elastic.slices import Axes, Counts, Layer, counting
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelCrop, ChannelGather, ChannelPad, ChannelShuffle

T = TypeVar("T")

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


def layer_of(
    module: nn.Module, inputs: T, outputs: T, columns: T | None = None, groups: Counts[T] | None = None
) -> Layer[T]:
    """A layer's tensors and attributes with these channels on them; `columns` is what a group reads if it moves."""
    if isinstance(module, PER_CHANNEL):
        names = ["num_parameters" if isinstance(module, nn.PReLU) else "num_features"]
    else:
        names = [f"{way}_{'features' if isinstance(module, nn.Linear) else 'channels'}" for way in ("in", "out")]
    counts = {name: counting(of, getattr(module, name)) for name, of in zip(names, (inputs, outputs), strict=False)}
    if groups is not None:
        counts["groups"] = groups
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    # A single number is for all channels.
    first: dict[str, Axes[T]] = {name: (outputs if p.numel() > 1 else None,) for name, p in parameters.items()}
    if isinstance(module, TRANSPOSED):
        first["weight"] = (inputs, None if columns is None else outputs)
    elif "weight" in first and not isinstance(module, PER_CHANNEL):
        first["weight"] = (outputs, columns)
    tensors = {name: (*axes, *(None,) * (parameters[name].ndim - len(axes))) for name, axes in first.items()}
    return Layer(inputs, outputs, tensors, counts)


def module_rule(name: str, module: nn.Module, dims: Dims, x: Tensor, y: Tensor) -> tuple[Layer[Row], Dims]:
    """What the layer called `name` does to an input with `dims`, and the dims of its output. Raises `CannotFollow`."""
    _require_ordinary(module)
    axis = x.ndim - 1 if isinstance(module, nn.Linear) else 1
    row = dims[axis] or rows.fixed_row(int(x.shape[axis]), "it is the network's input")
    if isinstance(module, PER_CHANNEL):
        return layer_of(module, row, row), (*dims[:axis], row, *dims[axis + 1 :])
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
    kind = "features" if isinstance(module, nn.Linear) else "channels"
    ins, outs, groups = getattr(module, f"in_{kind}"), getattr(module, f"out_{kind}"), getattr(module, "groups", 1)
    if groups == 1:
        out: Row = (Segment(Axis(outs, makers=(name,)), 1),)
        if outs == 1:
            rows.fix(out, "it makes a single channel")
        return replace(layer_of(module, row, out, row), mixes=True)
    per_group = ins // groups
    if groups <= FEW and per_group > lcm(8, groups) and isinstance(module, CONVOLUTIONS) and rows.is_sliceable(row):
        columns = rows.divide(row, (groups, per_group), 1)[1]
        made = Segment(Axis(outs // groups, makers=(name,), share=Fraction(1, groups)), 1)
        return layer_of(module, rows.resolve(row), (made,) * groups, columns)
    row = rows.align(row, per_group)
    for axis, _ in row:
        axis.depthwise |= ins == groups
    out = tuple(Segment(axis, unit * outs // ins) for axis, unit in row)
    return layer_of(module, row, out, groups=counting(row, groups, per_group))


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
    if parametrize.is_parametrized(module):
        names = ", ".join(getattr(module, "parametrizations", {}))
        raise CannotFollow(
            f"its {names} is computed by a parametrization (a weight or spectral norm): remove that first"
        )
    if "forward" in vars(module):
        raise CannotFollow("its forward was replaced on the instance")
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
        computed = [name[:-5] for name in module._parameters if name.endswith("_orig")]
        computed += [name[:-2] for name in module._parameters if name.endswith("_g")]
        if computed or not odd:
            what = computed[0] if computed else "weight"
            raise CannotFollow(
                f"its {what} is computed by a hook (a weight or spectral norm, a pruning mask): remove that first"
            )
        raise CannotFollow(f"it has weights beside weight and bias ({', '.join(odd)})")
    if isinstance(module, CONVOLUTIONS) and prod(module.weight.shape) == 0:
        raise CannotFollow("it has no weights")
