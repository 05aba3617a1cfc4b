"""How often a network is right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from leanconv.dryrun import ModelHolder, as_module
from leanconv.errors import DataError
from leanconv.modes import eval_mode

__all__ = ["Evaluation", "check_labels", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Shares from 0 to 1 over `images`; `top5` is None for five classes or fewer; `loss` is the cross-entropy."""

    images: int
    top1: float
    top5: float | None
    loss: float


def evaluate(net: nn.Module | ModelHolder, loader: Iterable[tuple[Tensor, Tensor]]) -> Evaluation:
    """The accuracy of `net` on batches of images (n, c, h, w) and labels (n,), in evaluation mode, on its own device.

    Every module is left in the mode it was in. Raises `DataError` for a loader without images and for labels that the
    network has no output for.
    """
    net = as_module(net)
    images = first = five = 0
    loss, classes = 0.0, 0
    with eval_mode(net) as device:
        for inputs, targets in loader:
            logits = net(inputs.to(device)).float()
            targets = targets.to(device)
            classes = logits.shape[1]
            check_labels(targets, classes)
            right = logits.topk(min(5, classes), dim=1).indices == targets[:, None]
            first += int(right[:, 0].sum())
            five += int(right.sum())
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
            images += len(targets)
    if not images:
        raise DataError("there are no images to evaluate on: the loader is empty")
    top5 = five / images if classes > 5 else None
    return Evaluation(images=images, top1=first / images, top5=top5, loss=loss / images)


def check_labels(targets: Tensor, classes: int) -> None:
    """Raise `DataError` for labels that a network with `classes` outputs cannot give."""
    if int(targets.max()) >= classes:
        raise DataError(
            f"a label is {int(targets.max())}, but the network has {classes} outputs: it was made for other classes"
            " than this data has"
        )
