"""Random pieces of networks for training, and what torch's own convolutions make of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from leanconv.kernels.piece import Piece, PieceStage

KERNELS = ((1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (3, 1), (1, 5))
SIDES = (1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 24, 33)


@st.composite
def pieces(draw: st.DrawFn) -> tuple[Piece, tuple[int, int]]:
    """One to three stages with any moves of channels between, and the height and width of its maps."""
    random = draw(st.randoms(use_true_random=False))
    channels = before = draw(st.integers(1, 13))
    stages = []
    for _ in range(draw(st.sampled_from((1, 1, 2, 2, 3)))):
        slots = draw(st.integers(max(1, before - 2), before + 2))
        groups = draw(st.sampled_from([g for g in range(1, slots + 1) if slots % g == 0]))
        outputs = groups * draw(st.integers(1, 8 if groups == 1 else 4))
        wires = [*range(before), *[-1] * 6]
        random.shuffle(wires)
        reads = wires[:slots]
        if max(reads) < 0:
            reads[0] = 0
        kernel = draw(st.sampled_from(KERNELS))
        stride = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (2, 1), (3, 3))))
        dilation = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (1, 3))))
        padding = tuple(gap * (k - 1) // 2 for gap, k in zip(dilation, kernel, strict=True))
        bias = draw(st.booleans())
        stages.append(PieceStage(tuple(reads), outputs, groups, kernel, stride, padding, dilation, bias))  # type: ignore[arg-type]
        before = outputs
    order = list(range(before))
    random.shuffle(order)
    piece = Piece(channels=channels, stages=tuple(stages), order=tuple(order[: draw(st.integers(1, before))]))
    return piece, (draw(st.sampled_from(SIDES)), draw(st.sampled_from(SIDES)))


def tensors(piece: Piece, height: int, width: int, images: int = 3) -> tuple[Tensor, list[Tensor]]:
    """An input and parameters, all of which want gradients."""
    parameters = []
    for stage in piece.stages:
        parameters.append((torch.randn(stage.shape) / torch.Size(stage.shape[1:]).numel() ** 0.5).requires_grad_())
        parameters += [torch.randn(stage.outputs).requires_grad_()] * stage.bias
    return torch.randn(images, piece.channels, height, width, requires_grad=True), parameters


def by_torch(x: Tensor, parameters: list[Tensor], piece: Piece) -> Tensor:
    """The same by torch's own convolutions, in whatever type the tensors have."""
    left = list(parameters)
    for stage in piece.stages:
        zeros = torch.zeros_like(x[:, 0])
        x = torch.stack([x[:, channel] if channel >= 0 else zeros for channel in stage.reads], 1)
        weight, bias = left.pop(0), left.pop(0) if stage.bias else None
        x = functional.conv2d(x, weight, bias, stage.stride, stage.padding, stage.dilation, stage.groups)
    return x[:, list(piece.order)]


def differences(piece: Piece, height: int, width: int, images: int = 3) -> float:
    """The largest difference of output and gradients from torch's in double precision, as a share of the largest.

    Numbers of size 1 go in: where sums of them cancel, their rounding does not, so the share is never of less than 1.
    """
    from leanconv.kernels.trained import run_piece

    x, parameters = tensors(piece, height, width, images)
    exact = [one.detach().double().requires_grad_() for one in (x, *parameters)]
    y, wanted = run_piece(x, parameters, piece.write()), by_torch(exact[0], exact[1:], piece)
    gradient = torch.randn_like(y)
    mine = [y, *torch.autograd.grad(y, [x, *parameters], gradient)]
    theirs = [wanted, *torch.autograd.grad(wanted, exact, gradient.double(), allow_unused=True, materialize_grads=True)]
    worst = 0.0
    for one, other in zip(mine, theirs, strict=True):
        assert one.shape == other.shape
        worst = max(
            worst, float((one.double() - other).abs().max().detach() / other.abs().max().detach().clamp(min=1.0))
        )
    return worst
