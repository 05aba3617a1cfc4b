"""Counts of networks by hooks on a forward of meta tensors: written apart from `leanconv.cost`, which it checks."""

from __future__ import annotations

from math import comb
from typing import Any

import torch
from paper_rows import Row
from torch import Tensor, nn

from leanconv.build import create_model, default_size
from leanconv.recipes import RECIPES

__all__ = ["count", "network_of"]

_CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10, "imagenet": 1000, "kinetics400": 400, "kinetics600": 600}
_CLASSES |= {"sports1m": 487, "food101": 101, "indoor67": 67, "digits": 10, "moving-digits": 6, "ut-interaction": 6}


def classes_of(spec: str) -> int:
    """Of the published set that a recipe's data.spec names."""
    kind, _, rest = spec.partition(":")
    name = rest.rpartition("/")[2]
    return _CLASSES.get(name) or _CLASSES[kind]


def network_of(row: Row) -> tuple[nn.Module, tuple[int, ...]]:
    """The network behind a row, without memory for its weights, and the shape of its input."""
    options: dict[str, Any]
    if row.recipe is None:
        name, options, size = str(row.network), {}, default_size(str(row.network))
    else:
        recipe = RECIPES[row.recipe]()
        name, size = recipe.model, recipe.data.input_size
        options = {"num_classes": classes_of(recipe.data.spec), **recipe.model_args}
        if recipe.elastic is not None:
            options |= {"widths": list(recipe.elastic.widths), "resolutions": list(recipe.elastic.resolutions)}
    options |= row.options
    if row.width is None:
        with torch.device("meta"):
            return create_model(name, **options), row.size or size
    net: Any = create_model(name, **options)
    side = row.resolution or size[-1]
    return net.extract(row.width, side, calibrated=False).to("meta"), (3, side, side)


def count(net: nn.Module, size: tuple[int, ...]) -> dict[str, int]:
    """What `net` (on meta) costs for one input of shape `size`; a classifier beside the way of the forward is left out.

    Multiply-adds of convolutions and linear layers, all parameters, those of these layers alone, and the pairs of
    channels that convolutions bring together.
    """
    found = {"macs": 0, "weights": 0, "interactions": 0}
    seen: set[int] = set()

    def note(layer: nn.Module, _: Any, output: Tensor) -> None:
        weight: Tensor = layer.weight  # type: ignore[assignment]
        found["macs"] += output[0].numel() * weight[0].numel()
        if id(layer) not in seen:
            seen.add(id(layer))
            found["weights"] += weight.numel()
            if weight.ndim > 2:
                found["interactions"] += weight.shape[0] * comb(weight.shape[1], 2)

    hooks = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)]
    with torch.no_grad():
        net.eval()(torch.empty(1, *size, device="meta"))
    for hook in hooks:
        hook.remove()
    return {"params": sum(parameter.numel() for parameter in net.parameters()), **found}
