"""The body of a detector: a network for classification that gives its feature maps, one for each stride.

    x -> {"0": (n, c_0, h/4, w/4), "1": (n, c_1, h/8, w/8), "2": ..., "3": (n, c_3, h/32, w/32)}

A stage is the last layer before the map is halved again, as in the pyramid paper; of VGG-16 these are conv3_3, conv4_3,
conv5_3 and the last pool. MutualNet's text does not say which it takes. The layers keep the names that they have in
the network, so that the weights of a classifier fit by name; what comes after the last stage is left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import LeanconvError

__all__ = ["ListedStages", "Stages", "body_of"]

_SIDE = 64
"""Pixels of the image on which stages are found: two are left at stride 32."""


class Stages(nn.Module):
    """The layers of a network up to its last stage, called one after the other; `stages` are called by number.

    Args:
        network: the network, whose layers are taken over (not copied).
        steps: the layers by qualified name in the order of their calls.
        stages: those of them whose outputs are wanted.
    """

    def __init__(self, network: nn.Module, steps: Sequence[str], stages: Sequence[str]) -> None:
        super().__init__()
        self.steps, self.stages = tuple(steps), tuple(stages)
        for step in self.steps:
            _put(self, step.split("."), network.get_submodule(step))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w) to the maps of all stages by number, the largest first."""
        found: dict[str, Tensor] = OrderedDict()
        for step in self.steps:
            x = self.get_submodule(step)(x)
            if step in self.stages:
                found[str(len(found))] = x
        return found


class ListedStages(nn.Module):
    """A network that gives its feature maps itself (timm's `features_only`), of which those at `places` are wanted."""

    def __init__(self, network: nn.Module, places: Sequence[int]) -> None:
        super().__init__()
        self.network, self.places = network, tuple(places)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(n, 3, h, w) to the maps of all stages by number, the largest first."""
        maps = self.network(x)
        return OrderedDict((str(number), maps[place]) for number, place in enumerate(self.places))


def body_of(network: nn.Module, strides: Sequence[int] = (4, 8, 16, 32), *, name: str = "") -> nn.Module:
    """The feature maps of `network` at `strides`; its layers are taken over.

    Raises `LeanconvError` for a network that is no chain of its layers, and where a stride is missing; `name` is what
    messages call it.

    >>> from torchvision.models import vgg16
    >>> body_of(vgg16()).stages
    ('features.15', 'features.22', 'features.29', 'features.30')
    """
    name = name or type(network).__name__
    like = next(network.parameters())
    image = torch.linspace(-1, 1, 3 * _SIDE * _SIDE, device=like.device, dtype=like.dtype).view(1, 3, _SIDE, _SIDE)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return _found(network, image, strides, name)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _found(network: nn.Module, image: Tensor, strides: Sequence[int], name: str) -> nn.Module:
    chain = list(_chain(network, ""))
    seen: dict[str, Any] = {}
    hooks = [network.get_submodule(step).register_forward_hook(_Keep(seen, step)) for step in chain]
    try:
        answer = network(image)
    except Exception as error:
        raise LeanconvError(
            f"{name} does not run on an image of {_SIDE} pixels ({error}), and the body of a detector runs on any size"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(answer, list | tuple):
        at = _last_of(dict(enumerate(answer)), strides, name)
        return ListedStages(network, [at[stride] for stride in strides])
    maps: dict[str, Any] = {}
    x: Any = image
    for step in chain:
        try:
            x = network.get_submodule(step)(x)
        except Exception:  # the classifier, behind a flatten that is in the forward
            break
        maps[step] = x
        if step not in seen or seen[step].shape != x.shape or not torch.equal(_plain(seen[step]), _plain(x)):
            break
        if x.ndim != 4:
            break
    else:
        step = ""
    maps.pop(step, None)
    last = _last_of(maps, strides, name)
    stages = [last[stride] for stride in strides]
    return Stages(network, chain[: chain.index(stages[-1]) + 1], stages)


class _Keep:
    """A forward hook that keeps the output of one layer."""

    def __init__(self, seen: dict[str, Any], step: str) -> None:
        self.seen, self.step = seen, step

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.seen[self.step] = output.clone()  # what follows may work in place


def _last_of(maps: Mapping[Any, Tensor], strides: Sequence[int], name: str) -> dict[int, Any]:
    """For each stride the last map that has it."""
    last = {_SIDE // one.shape[-1]: place for place, one in maps.items() if one.ndim == 4 and one.shape[-1]}
    missing = [stride for stride in strides if stride not in last]
    if missing:
        raise LeanconvError(
            f"{name} gives maps at the strides {', '.join(map(str, sorted(last))) or 'none'} as far as it is a chain of"
            f" its layers, and {', '.join(map(str, missing))} is missing: name a network with these stages, or one of"
            " timm's with backbone_args={features_only: true}"
        )
    return last


def _plain(x: Tensor) -> Tensor:
    """As an ordinary tensor, an octave map merged."""
    return x.clone() + 0


def _chain(module: nn.Module, prefix: str) -> Iterator[str]:
    """The layers by name in the order in which they were registered, sequences opened."""
    for key, child in module.named_children():
        path = f"{prefix}{key}"
        if type(child) is nn.Sequential and any(True for _ in child.children()):
            yield from _chain(child, f"{path}.")
        else:
            yield path


def _put(root: nn.Module, parts: Sequence[str], layer: nn.Module) -> None:
    for part in parts[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Sequential())
        root = root._modules[part]  # type: ignore[assignment]
    root.add_module(parts[-1], layer)
