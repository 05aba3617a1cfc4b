"""Evaluation mode for a while: what is tested or calibrated comes back as it was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["eval_mode"]


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[torch.device]:
    """Evaluation mode without gradients in the block, which is given the device of `net`.

    Afterwards every module is in the mode it was in: a network that is trained with frozen norms keeps them frozen.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    >>> with eval_mode(net) as device:
    ...     print(net.training, device)
    False cpu
    >>> net.training, net[1].training
    (True, False)
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        with torch.no_grad():
            yield next((tensor.device for tensor in net.parameters()), torch.device("cpu"))
    finally:
        for module, mode in modes:
            module.training = mode
