"""What is trained: a module whose one forward returns the loss, so that DDP sees one forward and one backward."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Classify", "Objective"]


@runtime_checkable
class Objective(Protocol):
    """An `nn.Module` with a network, a loss and a way to predict.

    `forward(inputs, targets, step)` returns a dictionary with the scalar `loss` to back-propagate and any further
    scalars worth logging; `step` counts optimizer steps, for objectives that draw something per step. `predict`
    gives the logits (n, classes) of the network's full configuration.
    """

    net: nn.Module

    def __call__(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]: ...

    def predict(self, inputs: Tensor) -> Tensor: ...


class Classify(nn.Module):
    """Cross-entropy of `net`'s logits, with `label_smoothing` as in torch.

    >>> import torch
    >>> objective = Classify(nn.Linear(4, 3))
    >>> sorted(objective(torch.zeros(2, 4), torch.tensor([0, 2]), step=0))
    ['loss']
    """

    def __init__(self, net: nn.Module, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.net = net
        self.label_smoothing = label_smoothing

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """The loss of images (n, 3, h, w) and labels (n,)."""
        logits = self.net(inputs)
        return {"loss": functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)}

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.net(inputs)
        return logits
