"""Mutual learning of a detector (MutualNet, section 4.3): every sub-network learns from the objects themselves.

    loss = L(N(W_{0:1}, I_R), y) + sum_i L(N(W_{0:w_i}, I_{r_i}), y)          L: the detector's own losses, added up

Sandwich rule and draws are those of classification (`mutual.plan_step`): the full network at the largest resolution R,
the narrowest and `num_random` between, each at a shorter side that is drawn for it and this batch. "For simplicity, we
don't use inplace distillation": all see the ground truth. With one resolution it is US-Net's step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.dryrun import is_detector
from leanconv.elastic.detector import ElasticDetector
from leanconv.elastic.mutual import part_by_part, plan_step, together
from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError

__all__ = ["DetectionObjective"]

Targets = Sequence[dict[str, Tensor]]


class DetectionObjective(nn.Module):
    """The loss of one step of a detector, of all its sub-networks inside one forward where it is elastic.

    Args:
        net: an elastic detector, or one of torchvision's, which is then trained as it is.
        num_random: random sub-networks, in addition to the full and the narrowest one.
        seed: of the plan, together with the step.
        resolutions: shorter sides to train at, of which the largest must be the network's own; default all of them.
        low_memory: differentiate one sub-network after the other (`mutual.part_by_part`), for the memory of one.

    Raises `LeanconvError` for a network that is no detector and for options outside their range.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        num_random: int = 2,
        seed: int = 0,
        resolutions: Sequence[int] | None = None,
        low_memory: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(net, ElasticDetector) and not is_detector(net):
            raise LeanconvError(
                f"objects are learnt by a detector of torchvision, elastic or not, got {type(net).__name__}: build one"
                " with create_model('detection/mask_rcnn')"
            )
        if not isinstance(num_random, int) or num_random < 0:
            raise LeanconvError(f"num_random must be a whole number from 0, got {num_random!r}")
        self.net, self.num_random, self.seed, self.low_memory = net, num_random, seed, low_memory
        self.resolutions: tuple[int, ...] = ()
        if isinstance(net, ElasticDetector):
            sides = net.resolutions if resolutions is None else resolutions
            self.resolutions = tuple(sorted({net.checked(None, side).resolution for side in sides}, reverse=True))
            if self.resolutions[:1] != net.resolutions[:1]:
                raise LeanconvError(
                    f"resolutions to train at must include {net.resolutions[0]}, that of the full network, got"
                    f" {list(sides)}"
                )

    def forward(self, images: Sequence[Tensor], targets: Targets, step: int) -> dict[str, Tensor]:
        """Images (3, h, w) of any sizes and their objects to `loss`, and the detector's own losses, detached.

        The parts are sums over the sub-networks, and add up to the loss; `full` is that of the full network.
        """
        parts: dict[str, Tensor] = {}
        losses = self._losses(images, targets, step, parts)
        loss = part_by_part(losses, self.net.parameters()) if self.low_memory else together(losses)
        return {"loss": loss, **parts}

    def plan(self, step: int) -> tuple[Config, ...]:
        """The configurations that `step` trains, the full network first; none where the network is not elastic."""
        if not isinstance(self.net, ElasticDetector):
            return ()
        return plan_step(self.seed, step, self.net.widths, self.resolutions, self.num_random)

    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Boxes, labels, scores and masks of every image, by the full network at the largest resolution."""
        found: list[dict[str, Tensor]]
        if not isinstance(self.net, ElasticDetector):
            found = self.net(list(images))
            return found
        with self.net.at(self.net.widths[1], self.net.resolutions[0]):
            found = self.net(list(images))
        return found

    def _losses(
        self, images: Sequence[Tensor], targets: Targets, step: int, parts: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        for config in self.plan(step) or (None,):
            losses = self._of(config, list(images), [_trained_on(target) for target in targets])
            for name, value in losses.items():
                name = name.removeprefix("loss_")
                parts[name] = parts.get(name, 0) + value.detach()
            loss = torch.stack(list(losses.values())).sum()
            del losses
            parts.setdefault("full", loss.detach())
            yield loss
            del loss

    def _of(self, config: Config | None, images: list[Tensor], targets: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor]
        if config is None:
            found = self.net(images, targets)
            return found
        with self.net.at(*config):  # type: ignore[operator]
            found = self.net(images, targets)
        return found


def _trained_on(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """What of a target a detector reads."""
    return {name: target[name] for name in ("boxes", "labels", "masks") if name in target}
