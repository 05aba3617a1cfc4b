"""What training on the C library is worth for a network here: the same step both ways, values compared, then timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from leanconv.cost.latency import compare_latency
from leanconv.deploy.forms.trained import train_by_kernels_
from leanconv.deploy.kept import kept_bytes
from leanconv.deploy.verify import random_inputs
from leanconv.dryrun import Size, check_sizes, duplicate
from leanconv.kernels.library import NAMES, load, missing

__all__ = ["TrainingOnKernels", "measure_training", "missing", "vectors_used"]


@dataclass(frozen=True, kw_only=True)
class TrainingOnKernels:
    """`convs` of `of` convolutions ran on the library; `ratio` is its time over that of torch, forward and backward.

    `difference` is the largest of what the gradients of all parameters are apart, by their norms: a share of a
    gradient's own norm, or of a thousandth of the whole network's where it has less (a bias in front of a BatchNorm has
    none but rounding);
    `saved_mb` and `plain_mb` are megabytes an image kept for the backward pass, on the library and without.
    """

    convs: int
    of: int
    batch: int
    median_ms: float
    ratio: float
    difference: float
    saved_mb: float
    plain_mb: float


def vectors_used() -> str:
    """The vectors that the C library computes with here, "AVX-512" say.

    Raises `NoLibrary` where it is not here; `missing` says why, None where it is.
    """
    return NAMES[load().lanes]


def measure_training(
    model: nn.Module, size: Size, *, batch: int = 8, threads: int = 1, rounds: int = 3
) -> TrainingOnKernels | None:
    """Forward and backward of copies of `model`, in training mode on random inputs of `size` (without the batch axis).

    Nothing of `model` changes, and neither does the state of torch's random numbers. None where no layer of it runs on
    the library.

    >>> measure_training(nn.Linear(2, 2), (2,)) is None
    True
    """
    size = check_sizes(size)
    with torch.random.fork_rng(devices=[]):
        plain, own = (duplicate(model).train() for _ in range(2))
        convs = train_by_kernels_(own)
        if not convs:
            return None
        inputs = random_inputs(model, size, batch, seed=0)
        steps, gradients, saved = [], [], []
        for network in (plain, own):
            torch.manual_seed(0)  # for what it drops at random
            steps.append(_step(network, inputs))
            gradients.append(steps[-1]())
            saved.append(kept_bytes(network, partial(_loss, network, inputs)) / batch / 1e6)
        difference = _apart(gradients[1], gradients[0])
        times = compare_latency(
            {"torch": steps[0], "kernels": steps[1]}, rounds=rounds, warmup=0, threads=threads, min_sample_ms=0
        )
    return TrainingOnKernels(
        convs=len(convs),
        of=sum(isinstance(module, nn.Conv2d) for module in own.modules()),
        batch=batch,
        median_ms=times["kernels"].median_ms,
        ratio=times["kernels"].ratio,
        difference=difference,
        saved_mb=saved[1],
        plain_mb=saved[0],
    )


def _loss(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """A number that every output counts in."""
    outputs = [y for y in tree_leaves(network(*inputs)) if isinstance(y, Tensor) and y.requires_grad]
    return torch.stack([y.square().mean() for y in outputs]).sum()


def _step(network: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], list[Tensor]]:
    """Forward and backward; the gradients of all parameters that have one."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def step() -> list[Tensor]:
        for parameter in parameters:
            parameter.grad = None
        _loss(network, inputs).backward()  # type: ignore[no-untyped-call]
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    return step


def _apart(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    norms = [other.norm() for other in others]
    least = torch.stack(norms).norm().clamp(min=1e-30) / 1000
    return max(
        float((one - other).norm() / norm.clamp(min=least))
        for one, other, norm in zip(ones, others, norms, strict=True)
    )
