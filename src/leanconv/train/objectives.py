"""What is trained: a module whose one forward returns the loss, so that DDP sees one forward and one backward."""

from __future__ import annotations

from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.dryrun import ModelHolder, as_module
from leanconv.errors import LeanconvError
from leanconv.seeds import python_random

__all__ = ["Classify", "ClassifyWithTower", "Objective"]


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
    """Cross-entropy of `net`'s logits, with `label_smoothing` as in torch and `mixup`.

    `mixup` above 0 trains on x * k + flipped(x) * (1 - k) with the labels' losses shared out alike, where `flipped`
    turns the order of the batch round and one k per step is drawn from Beta(mixup, mixup) by (seed, step).
    `frozen_norms` keeps the statistics and the weights of every BatchNorm as they are. With a `teacher`, a network of
    the same classes, the loss is `hard_labels` times that and 1 - `hard_labels` times the KL divergence from the
    teacher's answers to the same images.
    Raises `LeanconvError` for a negative `mixup` and for `hard_labels` outside [0, 1].

    >>> import torch
    >>> objective = Classify(nn.Linear(4, 3))
    >>> sorted(objective(torch.zeros(2, 4), torch.tensor([0, 2]), step=0))
    ['loss']
    """

    def __init__(
        self,
        net: nn.Module | ModelHolder,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        frozen_norms: bool = False,
        teacher: nn.Module | ModelHolder | None = None,
        hard_labels: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not mixup >= 0:
            raise LeanconvError(f"mixup must not be negative, got {mixup}")
        if not 0 <= hard_labels <= 1:
            raise LeanconvError(f"hard_labels is a share of the loss, from 0 to 1, got {hard_labels}")
        self.teacher, self.hard_labels = None if teacher is None else Teacher(teacher), hard_labels
        self.net = as_module(net)
        self.label_smoothing, self.mixup, self.seed = label_smoothing, mixup, seed
        self.norms = [module for module in self.net.modules() if frozen_norms and isinstance(module, _BatchNorm)]
        for norm in self.norms:
            norm.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Classify:
        """As in torch, but frozen norms stay in evaluation mode."""
        super().train(mode)
        for norm in self.norms:
            norm.eval()
        return self

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """The loss of images (n, 3, h, w) and labels (n,)."""
        share = 1.0
        if self.mixup:
            share = python_random(f"mixup {self.seed} {step}").betavariate(self.mixup, self.mixup)
            inputs = inputs.lerp(inputs.flip(0), 1 - share)
        logits = self.net(inputs)
        loss = self._entropy(logits, targets)
        if self.mixup:
            loss = share * loss + (1 - share) * self._entropy(logits, targets.flip(0))
        if self.teacher is None:
            return {"loss": loss}
        distance = self.teacher.distance(logits, inputs)
        return {"loss": self.hard_labels * loss + (1 - self.hard_labels) * distance, "labels": loss, "kl": distance}

    def _apply(self, fn: Any, recurse: bool = True) -> Classify:
        """Moving or casting the objective takes the teacher along."""
        if self.teacher is not None:
            self.teacher.net._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return cast(Classify, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.net(inputs)
        return logits

    def _entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)


class Teacher:
    """A trained network whose answers another one learns; no part of what is trained and saved."""

    def __init__(self, net: nn.Module | ModelHolder) -> None:
        self.net = as_module(net).eval().requires_grad_(False)

    def distance(self, logits: Tensor, inputs: Tensor) -> Tensor:
        """The KL divergence of the scores (n, classes) from the teacher's for the same images, a mean over them."""
        with torch.no_grad():
            given: Tensor = self.net(inputs)
        if given.shape != logits.shape:
            raise LeanconvError(
                f"the teacher's answer has shape {tuple(given.shape)}, the network's {tuple(logits.shape)}: a teacher"
                " needs the same classes in the same order"
            )
        scores, wanted = (functional.log_softmax(x.float(), dim=1) for x in (logits, given))
        return functional.kl_div(scores, wanted, reduction="batchmean", log_target=True)


@runtime_checkable
class _Towered(Protocol):
    """A network that drops paths and has a second classifier half way, as `leanconv.nets.darts.Darts`."""

    drop_path: float
    auxiliary: nn.Module | None

    def forward_all(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


class ClassifyWithTower(Classify):
    """`Classify`, and `auxiliary` times the loss of the network's second classifier, with paths dropped on the way.

    The share of dropped paths rises linearly from 0 to `drop_path` over `total_steps`, as DARTS trains.
    Raises `LeanconvError` for a network that has no such parts.
    """

    def __init__(
        self,
        net: nn.Module | ModelHolder,
        *,
        auxiliary: float = 0.4,
        drop_path: float = 0.0,
        total_steps: int = 1,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(net, label_smoothing=label_smoothing)
        if not isinstance(self.net, _Towered):
            raise LeanconvError(
                f"{type(self.net).__name__} has no paths to drop and no auxiliary classifier: set drop_path and "
                "auxiliary to 0"
            )
        if auxiliary and self.net.auxiliary is None:
            raise LeanconvError(
                "auxiliary is above 0 but the network has no such classifier: model_args.auxiliary=true"
            )
        self.auxiliary, self.drop_path = auxiliary, drop_path
        self.total_steps = max(total_steps, 1)

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """The losses of images (n, 3, h, w) and labels (n,)."""
        net = cast(Any, self.net)
        net.drop_path = self.drop_path * min(step / self.total_steps, 1.0)
        if not self.auxiliary:
            return {"loss": self._entropy(net(inputs), targets)}
        scores, early = net.forward_all(inputs)
        main, side = self._entropy(scores, targets), self._entropy(early, targets)
        return {"loss": main + self.auxiliary * side, "main": main, "auxiliary": side}
