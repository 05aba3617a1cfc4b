"""Operators of ours under autocast: what they are given goes in its type, as for torch's own convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["casting"]

_CAST = (torch.float32, torch.float16, torch.bfloat16)


def casting(name: str, device: str) -> Callable[..., Any]:
    """What `leanconv::name` does under autocast on a `device` of "cpu" or "cuda"."""

    def run(*given: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        cast = [one.to(dtype) if isinstance(one, Tensor) and one.dtype in _CAST else one for one in given]
        with torch.autocast(device, enabled=False):
            return getattr(torch.ops.leanconv, name)(*cast)

    return run
