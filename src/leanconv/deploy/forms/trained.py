"""Layers that train on the C library: the class of a module changes, its parameters and their names stay its own.

What is taken, by rule: a convolution over one or two axes with groups, or a chain with one, zero padding of half the
kernel (so that stride 1 keeps the size), nothing hooked or parametrized. Of a chain with norms between its stages every
part between two norms is taken by itself; a part without any groups stays torch's. What runs there: plain float32
tensors on the CPU, outside of autocast. Anything else, a second device say or bfloat16, runs the layers themselves.
Gradients reach the modules' own parameters by autograd, so copies, `torch.compile` and DistributedDataParallel see
nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.kernels.piece import Piece, PieceStage
from leanconv.kernels.trained import run_piece
from leanconv.ops.chain import ConvChain
from leanconv.ops.channels import ChannelCrop, ChannelGather, ChannelPad, ChannelShuffle

__all__ = ["KernelChain", "KernelConv1d", "KernelConv2d", "train_by_kernels_", "trained_by_kernels"]

_WIRES = (ChannelPad, ChannelShuffle, ChannelGather, ChannelCrop, nn.Identity)


class KernelConv1d(nn.Conv1d):
    """`nn.Conv1d` that trains on the C library, as a convolution of maps of one row."""

    piece: str

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, L) -> (B, C_out, L')."""
        parameters = _parameters([self])
        return _run(x, parameters, self.piece) if _runs(x, parameters) else super().forward(x)


class KernelConv2d(nn.Conv2d):
    """`nn.Conv2d` that trains on the C library."""

    piece: str

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W')."""
        parameters = _parameters([self])
        return _run(x, parameters, self.piece) if _runs(x, parameters) else super().forward(x)


_CONVS = (nn.Conv1d, nn.Conv2d)
_ON_KERNELS: dict[type[nn.Module], Any] = {nn.Conv1d: KernelConv1d, nn.Conv2d: KernelConv2d}


class KernelChain(ConvChain):
    """`ConvChain` that trains on the C library, part by part; `pieces` are (first leaf, last leaf + 1, piece)."""

    pieces: tuple[tuple[int, int, str], ...]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *size) -> (B, out_channels, *size')."""
        if self.form != "chain":
            return super().forward(x)
        leaves = list(self)
        at = 0
        for first, end, piece in (*self.pieces, (len(leaves), len(leaves), "")):
            for leaf in leaves[at:first]:
                x = leaf(x)
            if piece:
                parameters = _parameters(leaves[first:end])
                if _runs(x, parameters):
                    x = _run(x, parameters, piece)
                else:
                    for leaf in leaves[first:end]:
                        x = leaf(x)
            at = end
        return x


def _parameters(leaves: list[nn.Module]) -> list[Tensor]:
    convs = [leaf for leaf in leaves if isinstance(leaf, _CONVS)]
    return [one for conv in convs for one in (conv.weight, conv.bias) if one is not None]


def _run(x: Tensor, parameters: list[Tensor], piece: str) -> Tensor:
    if x.ndim == 4:
        return run_piece(x, parameters, piece)
    made = run_piece(x.unsqueeze(2), [one.unsqueeze(2) if one.ndim == 3 else one for one in parameters], piece)
    return made.squeeze(2)


def _runs(x: Tensor, parameters: list[Tensor]) -> bool:
    """The rule of what runs on the library; a fake tensor, or one of a subclass, takes the layers themselves."""
    plain = type(x) is Tensor and x.ndim == parameters[0].ndim and not torch.is_autocast_enabled("cpu")
    return plain and all(one.dtype is torch.float32 and one.device.type == "cpu" for one in (x, *parameters))


def _piece(leaves: list[nn.Module], channels: int) -> Piece | None:
    """Leaves with nothing but moves of channels between, as the library takes them; None where it does not."""
    convs = [leaf for leaf in leaves if isinstance(leaf, _CONVS)]
    if not any(conv.groups > 1 for conv in convs):
        return None
    stages = []
    pixel = (1,) * len(convs[0].kernel_size)
    wires = torch.arange(1.0, channels + 1).view(1, -1, *pixel)  # zeros, as padding has them, are no channel
    for leaf in leaves:
        if isinstance(leaf, _CONVS):
            if isinstance(leaf.padding, str) or leaf.padding_mode != "zeros":
                return None
            reads = tuple(int(wire) - 1 for wire in wires.flatten().tolist())
            given = ((leaf.kernel_size, 1), (leaf.stride, 1), (leaf.padding, 0), (leaf.dilation, 1))
            kernel, stride, padding, dilation = (
                cast("tuple[int, int]", sides if len(sides) == 2 else (row, *sides)) for sides, row in given
            )
            bias = leaf.bias is not None
            stages.append(PieceStage(reads, leaf.out_channels, leaf.groups, kernel, stride, padding, dilation, bias))
            wires = torch.arange(1.0, leaf.out_channels + 1).view(1, -1, *pixel)
        else:
            wires = leaf(wires)
    order = tuple(int(wire) - 1 for wire in wires.flatten().tolist())
    piece = Piece(channels=channels, stages=tuple(stages), order=order)
    return piece if min(order) >= 0 and piece.why_not() is None else None


def _is_plain(module: nn.Module) -> bool:
    return not any((
        module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks,
        getattr(module, "parametrizations", None),
    ))  # fmt: skip


def _chain_pieces(chain: ConvChain) -> tuple[tuple[int, int, str], ...]:
    if chain.plan.spec.ndim > 2 or not all(map(_is_plain, chain.modules())):
        return ()
    leaves, found = list(chain), []
    at, channels = 0, chain.plan.spec.in_channels
    while at < len(leaves):
        end = at
        while end < len(leaves) and type(leaves[end]) in (*_CONVS, *_WIRES):
            end += 1
        convs = [leaf for leaf in leaves[at:end] if isinstance(leaf, _CONVS)]
        if convs:
            piece = _piece(leaves[at:end], channels)
            if piece is not None:
                found.append((at, end, piece.write()))
            channels = convs[-1].out_channels
            for leaf in leaves[leaves.index(convs[-1]) + 1 : end]:
                channels = leaf(torch.zeros(1, channels, *(1,) * chain.plan.spec.ndim)).shape[1]
        at = max(end, at + 1)
    return tuple(found)


def train_by_kernels_(model: nn.Module) -> tuple[str, ...]:
    """Let the layers of `model` that the library takes train on it, in place; the names of their convolutions.

    >>> from leanconv.ops.igc import InterleavedGroupConv2d
    >>> net = nn.Sequential(InterleavedGroupConv2d(16, 16, 3, padding=1), nn.ReLU())
    >>> train_by_kernels_(net)
    ('0.conv1', '0.conv2')
    """
    names = []
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        if type(module).forward is ConvChain.forward and isinstance(module, ConvChain):
            inside |= {id(one) for one in module.modules()}
            pieces = _chain_pieces(module) if module.form == "chain" else ()
            if pieces:
                module.__class__ = KernelChain
                cast(KernelChain, module).pieces = pieces
                children = list(module.named_children())
                names += [
                    f"{name}.{child}" if name else child
                    for first, end, _ in pieces
                    for child, leaf in children[first:end]
                    if isinstance(leaf, _CONVS)
                ]
        elif isinstance(module, _CONVS) and type(module) in _ON_KERNELS and _is_plain(module):
            piece = _piece([module], module.in_channels)
            if piece is not None:
                module.__class__ = _ON_KERNELS[type(module)]
                cast(KernelConv2d, module).piece = piece.write()
                names.append(name)
    return tuple(names)


@contextmanager
def trained_by_kernels(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """A scope in which `model` trains on the library; yields the names of the convolutions that do."""
    before = {module: type(module) for module in model.modules()}
    try:
        yield train_by_kernels_(model)
    finally:
        for module, kind in before.items():
            if type(module) is not kind:
                module.__class__ = kind
                for name in ("piece", "pieces"):
                    vars(module).pop(name, None)
