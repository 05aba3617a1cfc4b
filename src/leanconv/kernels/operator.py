"""Programs as one operator of torch, `leanconv::run_program`, which `torch.compile`, `torch.export` and `measure` see.

    run_program(Tensor[] inputs, Tensor weights, Tensor text, str key, int[] sizes, int macs, int interactions)
        -> Tensor[]

Inputs and outputs are (B, C, H, W) in float32 on the CPU; `sizes` are C, H, W of each output. `weights` and `text` are
the program as `written.write` gives it, so that a graph holds all that it needs; `key` finds it among those that were
packed for this machine before. For inference: there is no gradient.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from leanconv.errors import LeanconvError
from leanconv.kernels.library import Runnable
from leanconv.kernels.program import Program
from leanconv.kernels.written import key_of, read, write

__all__ = ["ProgramModule", "run_program"]


class _Ready(NamedTuple):
    runnable: Runnable
    weights: weakref.ref[Tensor]
    version: int


_READY: dict[str, _Ready] = {}
"""Programs that were packed, for as long as their weights are somewhere."""
_LOCK = threading.Lock()


class ProgramModule(torch.nn.Module):
    """A program as a layer: (B, C, H, W) of each input to a list of the outputs."""

    weights: Tensor
    text: Tensor

    def __init__(self, program: Program) -> None:
        super().__init__()
        written = write(program)
        self.weights = torch.nn.Parameter(torch.from_numpy(written.weights.copy()), requires_grad=False)
        self.register_buffer("text", torch.frombuffer(bytearray(written.text.encode()), dtype=torch.uint8))
        self.key, self.macs, self.interactions = written.key, program.macs, program.interactions
        self.sizes = [number for size in program.sizes for number in size]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """One tensor for each output."""
        found: list[Tensor] = torch.ops.leanconv.run_program(
            list(inputs), self.weights, self.text, self.key, self.sizes, self.macs, self.interactions
        )
        return found


def run_program(
    inputs: Sequence[Tensor],
    weights: Tensor,
    text: Tensor,
    key: str,
    sizes: Sequence[int],
    macs: int,
    interactions: int,
) -> list[Tensor]:
    """What the operator does on a CPU.

    Raises `LeanconvError` for inputs of another size or type than the program was made for.
    """
    ready = _READY.get(key)
    if ready is None or ready.weights() is not weights or ready.version != _version(weights):
        ready = _prepare(weights, text, key)
    runnable = ready.runnable
    images = inputs[0].shape[0]
    for x, shape in zip(inputs, runnable.inputs, strict=True):
        if x.dtype is not torch.float32 or tuple(x.shape) != (images, *shape):
            raise LeanconvError(
                f"an accelerated network takes float32 inputs of the size it was made for: here "
                f"(batch, *{tuple(shape)}) was expected, got {x.dtype} of {tuple(x.shape)}; accelerate "
                "the network for this size"
            )
    given = [x.contiguous() for x in inputs]
    made = [inputs[0].new_empty((images, *shape)) for shape in runnable.outputs]
    if images:
        addresses = [x.data_ptr() for x in given], [x.data_ptr() for x in made]
        runnable.run(*addresses, images, torch.get_num_threads())
    return made


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _prepare(weights: Tensor, text: Tensor, key: str) -> _Ready:
    """Pack a program for this machine; what is at hand under its name serves where the weights are the same numbers."""
    words = text.numpy().tobytes().decode()
    values = weights.detach().numpy()
    if key_of(words, values) != key:
        raise LeanconvError(
            "the weights of an accelerated network were changed after it was made: what runs was packed from the old "
            "ones; change the network that it was made from, and accelerate that again"
        )
    with _LOCK:
        before = _READY.get(key)
        runnable = Runnable(read(words, np.array(values))) if before is None else before.runnable
        ready = _READY[key] = _Ready(runnable, weakref.ref(weights, lambda gone: _forget(key, gone)), _version(weights))
    return ready


def _forget(key: str, gone: weakref.ref[Tensor]) -> None:
    """Let a program go with the weights that it was last run for."""
    ready = _READY.get(key)
    if ready is not None and ready.weights is gone:
        _READY.pop(key, None)


def _shapes(inputs: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    return [inputs[0].new_empty((inputs[0].shape[0], *sizes[i : i + 3])) for i in range(0, len(sizes), 3)]


def _no_gradient(context: Any, *gradients: Any) -> Any:
    raise LeanconvError(
        "an accelerated network is for inference, its operator has no gradient: train the network it was made from, or "
        "run this one under torch.no_grad()"
    )


@functools.cache
def _register() -> torch.library.Library:
    library: Any = torch.library.Library("leanconv", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define(
        "run_program(Tensor[] inputs, Tensor weights, Tensor text, str key, int[] sizes, int macs, int interactions) "
        "-> Tensor[]"
    )
    library.impl("run_program", run_program, "CPU")
    torch.library.register_fake(
        "leanconv::run_program",
        lambda inputs, weights, text, key, sizes, macs, interactions: _shapes(inputs, sizes),
        lib=library,
    )
    torch.library.register_autograd(
        "leanconv::run_program", _no_gradient, setup_context=lambda ctx, inputs, output: None, lib=library
    )
    return library  # type: ignore[no-any-return]


_register()
