"""Pieces on the C library as operators of torch: forward, and the gradients of input, weights and biases.

    piece(Tensor input, Tensor[] parameters, str piece) -> Tensor
    piece_gradients(Tensor gradient, Tensor input, Tensor[] parameters, str piece, bool of_input, bool of_parameters)
        -> Tensor[]

(B, C, H, W) to (B, C', H', W'), float32, on the CPU; `parameters` are the weight and, where it has one, the bias of
each stage, `piece` is the text of a `Piece`. What is kept for the backward pass is the input, and nothing else. There
are no second gradients. Under autocast they compute in float32; whoever wants another type takes torch's convolutions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import LeanconvError
from leanconv.kernels.library import Runnable
from leanconv.kernels.piece import backward_program, forward_program, read_piece
from leanconv.kernels.program import Program

__all__ = ["run_piece"]


def run_piece(x: Tensor, parameters: Sequence[Tensor], piece: str) -> Tensor:
    """The piece that is written as `piece`, differentiable once.

    >>> from leanconv.kernels.piece import Piece, PieceStage
    >>> stage = PieceStage((0, 1), 2, 2, (1, 1), (1, 1), (0, 0), (1, 1), False)
    >>> text = Piece(channels=2, stages=(stage,), order=(1, 0)).write()
    >>> weight = torch.tensor([2.0, 3.0]).view(2, 1, 1, 1)
    >>> run_piece(torch.ones(1, 2, 1, 1), [weight], text).flatten().tolist()
    [3.0, 2.0]
    """
    made: Tensor = torch.ops.leanconv.piece(x, list(parameters), piece)
    return made


class _Ready:
    """A program of numbers, packed for this machine: its weights are gathered before every run."""

    def __init__(self, program: Program) -> None:
        self.runnable = Runnable(program, winograd="never")  # whose weights would be sums of numbers
        packed = self.runnable.packed
        values = packed.weights.astype(np.float64)
        values[np.isneginf(values)], values[np.isposinf(values)] = 1, 2
        self.order = torch.from_numpy(values.astype(np.int64))
        numbers = np.concatenate([*reversed(packed.summed), np.zeros(0, np.int64)])  # of the stages in their order
        self.summed = torch.from_numpy(np.where(numbers < 0, packed.sums, numbers))

    def run(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
        """Fill `outputs`; the gradients of all parameters, one behind the other."""
        images = len(inputs[0])
        start = inputs[0].new_tensor([0.0, -torch.inf, torch.inf])
        values = torch.cat([start, *(one.detach().reshape(-1) for one in parameters)])
        weights = values.index_select(0, self.order)
        sums = self.runnable.run(
            [x.data_ptr() for x in inputs], [x.data_ptr() for x in outputs], images, torch.get_num_threads(),
            weights.data_ptr(),
        )  # fmt: skip
        found = torch.zeros(len(sums) + 1)
        found[:-1] = torch.from_numpy(sums)
        return found.index_select(0, self.summed)


@functools.lru_cache(maxsize=512)
def _forward_of(piece: str, height: int, width: int) -> _Ready:
    return _Ready(forward_program(read_piece(piece), height, width))


@functools.lru_cache(maxsize=512)
def _backward_of(piece: str, height: int, width: int, of_input: bool, of_parameters: bool) -> _Ready:
    program = backward_program(read_piece(piece), height, width, of_input=of_input, of_weights=of_parameters)
    return _Ready(program)


def _check(x: Tensor, parameters: Sequence[Tensor], piece: str) -> None:
    one = read_piece(piece)
    shapes = [shape for stage in one.stages for shape in (stage.shape, *[(stage.outputs,)] * stage.bias)]
    given = [tuple(parameter.shape) for parameter in parameters]
    if x.ndim != 4 or x.shape[1] != one.channels or given != shapes:
        raise LeanconvError(
            f"a piece of {one.channels} channels with parameters of {shapes} got an input of {tuple(x.shape)} and "
            f"parameters of {given}"
        )
    for tensor in (x, *parameters):
        if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
            raise LeanconvError(
                f"the C library's kernels train in float32 on a CPU, got {tensor.dtype} on {tensor.device}: "
                "run the layers themselves"
            )


def _forward(x: Tensor, parameters: Sequence[Tensor], piece: str) -> Tensor:
    _check(x, parameters, piece)
    y = x.new_empty((len(x), *read_piece(piece).out_size(*x.shape[2:])))
    if len(x):
        _forward_of(piece, *x.shape[2:]).run([x.contiguous()], [y], parameters)
    return y


def _forward_fake(x: Tensor, parameters: Sequence[Tensor], piece: str) -> Tensor:
    return x.new_empty((x.shape[0], *read_piece(piece).out_size(*x.shape[2:])))


def _gradients(
    gradient: Tensor, x: Tensor, parameters: Sequence[Tensor], piece: str, of_input: bool, of_parameters: bool
) -> list[Tensor]:
    """Of the input, if that is wanted, then of all parameters, if those are."""
    made = [torch.empty_like(x, memory_format=torch.contiguous_format)] if of_input else []
    if not len(x):
        return [*made, *(torch.zeros_like(one) for one in parameters)] if of_parameters else made
    ready = _backward_of(piece, *x.shape[2:], of_input, of_parameters)
    found = ready.run([x.contiguous(), gradient.contiguous()], made, parameters)
    if not of_parameters:
        return made
    parts = torch.split(found, [one.numel() for one in parameters])
    return [*made, *(part.view(one.shape).clone() for part, one in zip(parts, parameters, strict=True))]


def _gradients_fake(
    gradient: Tensor, x: Tensor, parameters: Sequence[Tensor], piece: str, of_input: bool, of_parameters: bool
) -> list[Tensor]:
    made = [torch.empty_like(x, memory_format=torch.contiguous_format)] if of_input else []
    return [*made, *(torch.empty_like(one) for one in parameters)] if of_parameters else made


def _save(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, parameters, ctx.piece = inputs
    ctx.save_for_backward(x, *parameters)


def _backward(ctx: Any, gradient: Tensor) -> Any:
    x, *parameters = ctx.saved_tensors
    of_input, wanted, _ = ctx.needs_input_grad
    some = any(wanted)
    found = list(torch.ops.leanconv.piece_gradients(gradient, x, parameters, ctx.piece, of_input, some))
    of_x = found.pop(0) if of_input else None
    return (
        of_x,
        [one if want else None for one, want in zip(found, wanted, strict=True)] if some else [None] * len(parameters),
        None,
    )


def _no_second(ctx: Any, *gradients: Any) -> Any:
    raise LeanconvError(
        "the C library's training kernels have no second gradients: train with kernels=never (torch's own convolutions)"
    )


def _in_float(name: str) -> Any:
    def run(*given: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return getattr(torch.ops.leanconv, name)(*given)

    return run


@functools.cache
def _register() -> torch.library.Library:
    library: Any = torch.library.Library("leanconv", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("piece(Tensor input, Tensor[] parameters, str piece) -> Tensor")
    library.define(
        "piece_gradients(Tensor gradient, Tensor input, Tensor[] parameters, str piece, bool of_input, "
        "bool of_parameters) -> Tensor[]"
    )
    for name, run, fake, save, backward in (
        ("piece", _forward, _forward_fake, _save, _backward),
        ("piece_gradients", _gradients, _gradients_fake, lambda ctx, inputs, output: None, _no_second),
    ):
        library.impl(name, run, "CPU")
        library.impl(name, _in_float(name), "AutocastCPU")
        torch.library.register_fake(f"leanconv::{name}", fake, lib=library)
        torch.library.register_autograd(f"leanconv::{name}", backward, setup_context=save, lib=library)
    return library  # type: ignore[no-any-return]


_register()
