"""Finetuning: a network takes over the weights of another, trained on other classes or on images."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from leanconv.data.contract import attach, contract_of
from leanconv.elastic import ElasticNet
from leanconv.errors import CheckpointError
from leanconv.train.runfolder import saved_model

__all__ = ["Taken", "take_weights"]


class Taken(NamedTuple):
    """Names of the tensors that were copied, of those inflated in time, and of those left as they were drawn."""

    copied: tuple[str, ...]
    inflated: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.copied)} tensors taken over"
        if self.inflated:
            text += f", {len(self.inflated)} inflated from images"
        if self.fresh:
            text += f", {len(self.fresh)} fresh ({', '.join(self.fresh[:3])}{', ...' * (len(self.fresh) > 3)})"
        return text


def take_weights(net: nn.Module, folder: str | Path, *, num_classes: int) -> Taken:
    """Give `net` the weights of the run or saved model in `folder`, in place; returns what became of every tensor.

    Kernels of an image network (out, in, h, w) are repeated in time and divided by their new length, as I3D does. The
    classifier, found by its `num_classes` rows, stays fresh where the other network had other classes; so does what
    the other network has not got. Raises `CheckpointError` when anything else does not fit.
    """
    from leanconv.build import load
    from leanconv.rewrites.inflate import inflated_kernel

    given_net = load(saved_model(folder))
    if (contract := contract_of(given_net)) is not None and len(contract.mean) == 3:
        attach(net, contract)  # until the run has its own: what was learnt there is of pixels that were normalised so
    if isinstance(given_net, ElasticNet):
        given_net.drop_calibrations()  # what was calibrated there is of those weights and images
    source: dict[str, Tensor] = given_net.state_dict()
    target: dict[str, Tensor] = net.state_dict()
    copied, inflated, wrong = [], [], [name for name in source if name not in target]
    with torch.no_grad():
        for name, mine in target.items():
            given = source.get(name)
            if given is None:
                continue
            if given.shape == mine.shape:
                mine.copy_(given)
                copied.append(name)
            elif given.ndim == 4 and mine.ndim == 5 and given.shape == (*mine.shape[:2], *mine.shape[3:]):
                mine.copy_(inflated_kernel(given, mine.shape[2], "mean"))
                inflated.append(name)
            elif given.shape[1:] != mine.shape[1:] or mine.shape[:1] != (num_classes,):
                wrong.append(f"{name} {tuple(given.shape)} for {tuple(mine.shape)}")
    if wrong:
        raise CheckpointError(
            f"{folder}: its weights are not for this network: {len(wrong)} of {len(source)} tensors have no place in"
            f" it, for example {', '.join(wrong[:3])}: give the same network and options, or another folder"
        )
    done = {*copied, *inflated}
    return Taken(tuple(copied), tuple(inflated), tuple(name for name in target if name not in done))
