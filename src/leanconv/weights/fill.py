"""Weights of another project into one of our networks, after everything that could differ has been compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import CheckpointError
from leanconv.weights.files import read_tensors
from leanconv.weights.naming import OURS, Naming, key_map, outline

__all__ = ["Imported", "fill", "import_weights"]


@dataclass(frozen=True)
class Imported:
    """What was imported: whose `format`, how many `tensors`, which `network`, and whether its classifier as well."""

    format: str
    network: str
    tensors: int
    classifier: bool

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)


def import_weights(
    model: nn.Module, path: str | os.PathLike[str], naming: Naming, *, new_classifier: bool = False
) -> Imported:
    """Fill `model`, one of the zoo's channel-separated networks, in place from the file `path`, named as in `naming`.

    Args:
        new_classifier: keep the model's own classifier, for a file without one or with other classes.

    Raises `CheckpointError`, before anything is changed, where the file is of another depth, kind, class count or
    eps, or where a name is missing, unexpected or of another shape.
    """
    return fill(model, read_tensors(path), naming, source=str(path), new_classifier=new_classifier)


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], naming: Naming, *, source: str, new_classifier: bool = False
) -> Imported:
    """`import_weights` from tensors that are read already; `source` is what messages call them."""
    own = model.state_dict()
    names = key_map(naming, own)
    tensors = _with_prefix(naming, tensors)
    _same_network(naming, own, tensors, source, new_classifier)
    _same_eps(naming, model, source)
    if new_classifier:
        names = {ours: theirs for ours, theirs in names.items() if not theirs.startswith(naming.classifier)}
        tensors = {name: value for name, value in tensors.items() if not name.startswith(naming.classifier)}
    wanted = {theirs: ours for ours, theirs in names.items()}
    missing = [name for name in wanted if name not in tensors and not name.endswith(".num_batches_tracked")]
    extra = [name for name in tensors if name not in wanted]
    odd = [
        f"{name} (file {tuple(value.shape)}, network {tuple(own[wanted[name]].shape)})"
        for name, value in tensors.items()
        if name in wanted and value.shape != own[wanted[name]].shape
    ]
    kinds = (("missing", missing), ("unexpected", extra), ("of another shape", odd))
    parts = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for what, names in kinds if names
    ]
    if parts:
        raise CheckpointError(f"{source} is no {naming.name} file of this network: {'; '.join(parts)}")
    broken = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise CheckpointError(f"{source}: {broken[0]} holds NaN or infinity: the file is damaged or training diverged")
    found = {wanted[name]: value for name, value in tensors.items()}
    model.load_state_dict({**own, **found})
    return Imported(naming.name, str(outline(OURS, own)), len(found), not new_classifier)


def _with_prefix(naming: Naming, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A file of a backbone alone, under the names of a whole network."""
    prefix = naming.optional_prefix
    if not prefix or naming.first in tensors or naming.first.removeprefix(prefix) not in tensors:
        return tensors
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def _same_network(
    naming: Naming, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str, new_classifier: bool
) -> None:
    """Refuse another kind, depth or class count in the words that say what to build instead."""
    mine, theirs = outline(OURS, own), outline(naming, tensors)
    if mine is None or theirs is None:
        raise CheckpointError(f"{source} holds no {naming.name} network: {naming.first} and its blocks are not in it")
    if (mine.kind, mine.blocks) != (theirs.kind, theirs.blocks):
        raise CheckpointError(f"{source} is {theirs}, but the network to fill is {mine}: build the one of the file")
    if new_classifier:
        return
    if theirs.classes is None:
        raise CheckpointError(
            f"{source} holds no classifier ({naming.classifier}weight): pass new_classifier=True (--new-classifier) to "
            "keep the network's own, which then has to be trained"
        )
    if mine.classes != theirs.classes:
        raise CheckpointError(
            f"{source} has a classifier of {theirs.classes} classes, the network one of {mine.classes}: build it with "
            f"num_classes={theirs.classes} (--set num_classes={theirs.classes}), or pass new_classifier=True "
            "(--new-classifier) to train another one"
        )


def _same_eps(naming: Naming, model: nn.Module, source: str) -> None:
    """BatchNorm's eps is in no file, and another one would change every output a little."""
    other = {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm3d)} - {naming.norm_eps}
    if other:
        raise CheckpointError(
            f"{source}: {naming.name} networks have BatchNorm eps {naming.norm_eps:g}, this one {other.pop():g}: build "
            f"it with norm_eps={naming.norm_eps:g}"
        )
