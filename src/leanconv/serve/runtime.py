"""The runtime: one elastic network, ready to run in any of several configurations, changed between two calls.

Every configuration is extracted beforehand, so a change is the change of one reference. Wherever an extracted tensor is
the corner W[:a, :b, ...] of the full one, bit for bit, it becomes a view of it, so that all configurations together
need little more memory than the largest. What is not (a gather behind a concatenation, BatchNorm statistics) each owns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from leanconv.elastic.calibrate import as_configs
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError

__all__ = ["Runtime"]


class Runtime:
    """An elastic network prepared for `configs`; `runtime(x)` answers in the one that `use` chose last.

    A change holds for all threads, from their next call on: one runtime has one configuration, and a call is wholly in
    the one that is in force when it begins. Threads that want different ones have a runtime each, or use `net.at`.

    Inference only: networks in evaluation mode, no gradients. The weights are those of `net` at the time; training it
    further changes what is shared and not the rest, so make a new runtime then.

    Args:
        net: calibrated in all of `configs`.
        configs: (width, resolution) pairs, for example of a table's front; the first is in force at the beginning.
        share: keep weights once, as views; otherwise every configuration owns a copy, contiguous.

    Raises `NotCalibrated` where statistics are missing, `LeanconvError` for a configuration the network does not have.

    >>> from leanconv.elastic import make_elastic
    >>> net = make_elastic(nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 1)), resolutions=(32, 24))
    >>> runtime = Runtime(net, [(1.0, 32), (0.5, 24)])
    >>> runtime.use(0.5, 24)
    >>> runtime(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 8, 22, 22])
    """

    def __init__(self, net: ElasticNet, configs: Iterable[Config | tuple[float, int]], *, share: bool = True) -> None:
        chosen = as_configs(net, configs)
        if not chosen:
            raise LeanconvError("a runtime needs at least one configuration to run in")
        self._fitted, like = net.fitted, next(net.parameters())
        self._native = net.inputs.arguments(net.model, lambda shape: torch.zeros((1, *shape)).to(like))
        self._nets: dict[Config, nn.Module] = {}
        for config in chosen:
            static = net.extract(*config).eval().requires_grad_(False)
            self._nets[config] = _sharing(static, net) if share else static
        self._now = chosen[0], self._nets[chosen[0]]

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._now[0]

    @property
    def configs(self) -> tuple[Config, ...]:
        """The configurations it can run in."""
        return tuple(self._nets)

    def use(self, width: float, resolution: int, frames: int | None = None) -> None:
        """Run in that configuration from the next call on. Raises `LeanconvError` for one that was not prepared."""
        config = Config(width, resolution, frames)
        net = self._nets.get(config)
        if net is None:
            known = ", ".join(map(str, self._nets))
            raise LeanconvError(f"the runtime was not prepared for {config}: it has {known}; name it when making one")
        self._now = config, net

    def __call__(self, *inputs: Any) -> Any:
        """(b, channels, *size) of any size, brought to the configuration in force, to whatever the network returns.

        A detector is given images as they are, a list or (b, 3, h, w), and boxes are those of these.
        """
        config, net = self._now  # read once: another thread may change it meanwhile
        with torch.inference_mode():
            return net(*self._fitted(inputs, config.resolution, config.frames))

    def warm_up(self, calls: int = 3) -> None:
        """Run every configuration on zeros, so that no later call is anybody's first."""
        before = self.config
        for config in self._nets:
            self.use(*config)
            for _ in range(calls):
                self(*self._native)
        self.use(*before)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights and statistics of all configurations together, shared ones counted once."""
        tensors = (tensor for net in self._nets.values() for tensor in (*net.parameters(), *net.buffers()))
        storages = (tensor.untyped_storage() for tensor in tensors)
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _sharing(static: nn.Module, net: ElasticNet) -> nn.Module:
    """`static` with every parameter that is a corner of the full network's replaced by a view of it."""
    full = dict(net.model.named_parameters(remove_duplicate=False))
    for name, module in static.named_modules():
        for key, parameter in module._parameters.items():
            whole = full.get(f"{name}.{key}" if name else key)
            if parameter is not None and whole is not None and whole.ndim == parameter.ndim:
                corner = whole.detach()[tuple(slice(kept) for kept in parameter.shape)]
                if torch.equal(corner, parameter):
                    module._parameters[key] = nn.Parameter(corner, requires_grad=False)
    return static
