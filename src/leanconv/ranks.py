"""The processes of a distributed run, as far as measuring needs them: each measures its share, then they add up.

Without an initialised `torch.distributed` group there is one process, and everything here leaves values as they are.
"""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

__all__ = ["from_first", "rank_and_world", "summed"]

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are: (0, 1) outside a distributed run."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def summed(values: Tensor) -> Tensor:
    """The elementwise sum of `values` (of one shape) over all processes, on the device and in the type they have."""
    if rank_and_world()[1] == 1:
        return values
    # NCCL adds on GPUs only, gloo on either.
    total = values.detach().to("cuda", copy=True) if dist.get_backend() == "nccl" else values.detach().clone()
    dist.all_reduce(total)
    return total.to(values.device)


def from_first(value: T) -> T:
    """The first process's `value`, on all of them; anything that can be pickled."""
    if rank_and_world()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
