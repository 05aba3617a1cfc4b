"""Whether a network can be trained on, or fed, what the data are: found by a dry run, before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from leanconv.dryrun import DryRun, ModelHolder, as_module
from leanconv.elastic import ElasticNet
from leanconv.errors import DataError, LeanconvError
from leanconv.modes import eval_mode

__all__ = ["check_inputs", "check_training", "outputs_of"]


def outputs_of(net: nn.Module | ModelHolder, size: Sequence[int]) -> int:
    """How many classes `net` tells apart, given inputs of `size` (without the batch axis).

    Raises `DataError`, with what to do, where it cannot be given such inputs or does not return logits (n, classes).
    """
    net = as_module(net)
    shape = _run(net, size, batch=2, training=False)
    if len(shape) != 2:
        raise DataError(
            f"{_called(net)} returns a tensor of shape {shape} for 2 inputs, and classes are told apart by logits of"
            " shape (inputs, classes): give it a classifier"
        )
    return shape[1]


def check_inputs(net: nn.Module | ModelHolder, size: Sequence[int], classes: int, *, named: bool = True) -> None:
    """Raise `DataError` unless `net` takes inputs of `size` and has an output for each of the `classes`.

    Where nobody has `named` the outputs, there must be as many as classes: which is which would be a guess.
    """
    outputs = outputs_of(net, size)
    if outputs < classes or (not named and outputs != classes):
        raise DataError(
            f"{_called(as_module(net))} has {outputs} outputs, and the data has {classes} classes:"
            + (
                f" give it {classes} (num_classes), or other data"
                if outputs < classes
                else " nothing says which output is which class"
            )
        )


def check_training(objective: nn.Module, size: Sequence[int], classes: int, batch: int, *, sample: str) -> None:
    """Raise `DataError` unless the network of `objective` can be trained on batches of `batch` inputs of `size`.

    `sample` is what one input is called: image, clip. An elastic network is also run at its narrowest and smallest.
    """
    net: nn.Module = as_module(objective.net)
    check_inputs(net, size, classes)
    configs: list[Any] = [None]
    if isinstance(net, ElasticNet):
        configs = [(net.widths[1], net.resolutions[0]), (net.widths[0], net.resolutions[-1])]
    for config in configs:
        if config is None:
            _run(net, size, batch=batch, training=None, sample=sample)
        else:
            side = config[1]
            with net.at(*config):  # type: ignore[operator]
                _run(net, (*size[:-2], side, side), batch=batch, training=None, sample=sample)


def _run(
    net: nn.Module, size: Sequence[int], *, batch: int, training: bool | None, sample: str = "input"
) -> tuple[int, ...]:
    """The shape of what `net` returns for a batch of inputs."""
    try:
        return DryRun(net, tuple(size), batch=batch, training=training).run().shapes[0]
    except LeanconvError as error:
        cause = error.__cause__ or error
        if "more than 1 value per channel" in str(cause):
            raise DataError(_one_value(size, batch, sample)) from error
        if (told := _channels(net, size)) is not None:
            raise DataError(told) from error
        if not _can_run(net, size, batch, training):
            raise DataError(f"{error} (inputs of {_text(size)})") from error
        with eval_mode(net) as device:
            given: Tensor = net(torch.zeros(batch, *size, device=device))
        return tuple(given.shape)


def _can_run(net: nn.Module, size: Sequence[int], batch: int, training: bool | None) -> bool:
    """Whether a network that cannot be followed without values runs on real ones; it stays as it was."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trial = copy.deepcopy(net)
        if training is not None:
            trial.train(training)
        like = next(trial.parameters(), torch.zeros(()))
        try:
            trial(torch.zeros(batch, *size, device=like.device, dtype=like.dtype))
        except Exception:  # anything: the dry run has said what
            return False
    return True


def _channels(net: nn.Module, size: Sequence[int]) -> str | None:
    """What to say where the first convolution takes other channels than the data have."""
    first = next((module for module in net.modules() if isinstance(module, _ConvNd)), None)
    if first is None or first.in_channels == size[0]:
        return None
    return (
        f"{_called(net)} takes {first.in_channels} channel{'s' * (first.in_channels > 1)}, and the data have {size[0]}"
        f" (pictures are read as RGB, grey ones too): build it with {size[0]} (timm: in_chans={size[0]}), or put a"
        f" convolution from {size[0]} to {first.in_channels} before it"
    )


def _one_value(size: Sequence[int], batch: int, sample: str) -> str:
    what = f"1 {sample}" if batch == 1 else f"{batch} {sample}s"
    return (
        f"a process trains on batches of {what} of {_text(size)}, of which a normalization layer sees a single value a"
        " channel, whose mean is itself: use a larger batch_size (or fewer processes), larger inputs, or frozen_norms"
    )


def _called(net: nn.Module) -> str:
    return type(net.model if isinstance(net, ElasticNet) else net).__name__


def _text(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
