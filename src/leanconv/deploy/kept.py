"""The bytes that a forward pass keeps for the backward pass, each memory once, without parameters and buffers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["kept_bytes"]


def kept_bytes(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """What autograd keeps of `run`, which calls `model` and returns what the backward pass begins with; that is run.

    What an autograd function keeps by itself is not seen.

    >>> x = torch.ones(10, requires_grad=True)
    >>> kept_bytes(nn.ReLU(), lambda: x.relu().sum())  # ten numbers of four bytes
    40
    """
    own = {one.untyped_storage().data_ptr() for one in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in own:
            seen[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        made = run()
    total = sum(seen.values())
    made.backward()  # type: ignore[no-untyped-call]
    return total
