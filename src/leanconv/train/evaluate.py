"""How often a network is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional

from leanconv.dryrun import ModelHolder, as_module
from leanconv.errors import DataError
from leanconv.intervals import Interval, of_share
from leanconv.modes import eval_mode
from leanconv.train.predictions import Prediction

__all__ = ["Evaluation", "check_labels", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Shares from 0 to 1 over `images`; `top5` is None for five classes or fewer; `loss` is the cross-entropy.

    `predictions` are those for every image, in order, of a network with `classes` outputs.
    """

    images: int
    top1: float
    top5: float | None
    loss: float
    classes: int
    predictions: tuple[Prediction, ...] = field(repr=False)

    @property
    def intervals(self) -> dict[str, Interval]:
        """The 95 % intervals of top1 and top5, by these names."""
        shares = {"top1": self.top1} | ({} if self.top5 is None else {"top5": self.top5})
        return {name: of_share(share, self.images) for name, share in shares.items()}


def evaluate(
    net: nn.Module | ModelHolder,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    names: Callable[[], Sequence[str]] | None = None,
) -> Evaluation:
    """The accuracy of `net` on batches of images (n, c, h, w) and labels (n,), in evaluation mode, on its own device.

    `names` is asked, when all batches have been read, what the images are called, as `Loader.names` of `leanconv.data`;
    without it they are numbers from 0. Every module is left in the mode it was in. Raises `DataError` for a loader
    without images and for labels that the network has no output for.

        evaluate(net, loader, names=loader.names).predictions
    """
    net = as_module(net)
    found: list[tuple[int, list[int], list[float]]] = []
    loss, classes = 0.0, 0
    with eval_mode(net) as device:
        for inputs, targets in loader:
            logits = net(inputs.to(device)).float()
            targets = targets.to(device)
            classes = logits.shape[1]
            check_labels(targets, classes)
            best = logits.topk(min(5, classes), dim=1).indices
            shares = logits.softmax(dim=1).gather(1, best)
            found += zip(targets.tolist(), best.tolist(), shares.tolist(), strict=True)
            loss += float(functional.cross_entropy(logits, targets, reduction="sum"))
    if not found:
        raise DataError("there are no images to evaluate on: the loader is empty")
    images = len(found)
    called = list(map(str, range(images))) if names is None else names()
    predictions = tuple(
        Prediction(name=name, label=label, classes=tuple(best), probabilities=tuple(shares))
        for name, (label, best, shares) in zip(called, found, strict=True)
    )
    among = sum(item.label in item.classes for item in predictions)
    return Evaluation(
        images=images,
        top1=sum(item.right for item in predictions) / images,
        top5=among / images if classes > 5 else None,
        loss=loss / images,
        classes=classes,
        predictions=predictions,
    )


def check_labels(targets: Tensor, classes: int) -> None:
    """Raise `DataError` for labels that a network with `classes` outputs cannot give."""
    if int(targets.max()) >= classes:
        raise DataError(
            f"a label is {int(targets.max())}, but the network has {classes} outputs: it was made for other classes"
            " than this data has"
        )
