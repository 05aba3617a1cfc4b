"""Mixup: what is blended, what the loss is, and that a step draws the same share again."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional

from leanconv.errors import LeanconvError
from leanconv.train import Classify


class Keep(nn.Module):
    """A linear network that remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        logits: torch.Tensor = self.linear(x.flatten(1))
        return logits


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 3, 4, 4), torch.tensor([0, 1, 2, 3, 4, 0])


def test_images_and_losses_are_blended_by_the_same_share(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    net = Keep()
    loss = Classify(net, mixup=0.2, seed=3)(images, labels, step=7)["loss"]
    share = Random("mixup 3 7").betavariate(0.2, 0.2)
    torch.testing.assert_close(net.seen, share * images + (1 - share) * images.flip(0))
    logits = net.linear(net.seen.flatten(1))
    soft = share * functional.one_hot(labels, 5) + (1 - share) * functional.one_hot(labels.flip(0), 5)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, soft))


def test_the_share_follows_the_step_and_the_seed(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, labels = batch
    net = Keep()

    def loss(seed: int, step: int) -> float:
        return float(Classify(net, mixup=1.0, seed=seed)(images, labels, step=step)["loss"].detach())

    assert loss(0, 1) == loss(0, 1)
    assert len({loss(0, 1), loss(0, 2), loss(1, 1)}) == 3


def test_evaluation_is_not_blended(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, _ = batch
    net = Keep()
    Classify(net, mixup=1.0).predict(images)
    assert torch.equal(net.seen, images)


def test_negative_mixup_is_refused() -> None:
    with pytest.raises(LeanconvError, match=r"mixup must not be negative, got -0\.1"):
        Classify(Keep(), mixup=-0.1)
