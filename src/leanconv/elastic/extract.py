"""One configuration of an elastic network as an ordinary network: for export, folding, fusing and honest timing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from leanconv.dryrun import duplicate
from leanconv.elastic.layers.leaves import Elastic
from leanconv.story import remember, story_of

if TYPE_CHECKING:
    from leanconv.elastic.net import ElasticNet

__all__ = ["extract"]


def extract(
    net: ElasticNet,
    width: float | None = None,
    resolution: int | None = None,
    frames: int | None = None,
    *,
    calibrated: bool = True,
) -> nn.Module:
    """The network at `width` (None: the largest) built of plain modules that own their tensors.

    `resolution` and `frames` (None: the native ones) pick the BatchNorm statistics; the result resizes nothing, so give
    it inputs of that size. With `calibrated=False` a configuration that was never measured gets statistics of mean 0
    and variance 1: good for counting and timing, not for answers. The training mode is kept. A module whose own code
    holds channel counts of the full network keeps its class under a parent that replaces them.

    Raises `NotCalibrated` where statistics are missing, `LeanconvError` for a configuration the network does not have.

    >>> from leanconv.elastic import make_elastic
    >>> net = make_elastic(nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 1)), resolutions=(32,))
    >>> net.extract(width=0.5)
    Sequential(
      (0): Conv2d(3, 16, kernel_size=(3, 3), stride=(1, 1))
      (1): Conv2d(16, 8, kernel_size=(1, 1), stride=(1, 1))
    )
    """
    config = net.checked(net.widths[1] if width is None else width, resolution, frames)
    static = duplicate(net.model, share_tensors=True)
    for module in reversed(list(static.modules())):  # children before their parents
        if isinstance(module, Elastic):
            plain = module.plain(config, calibrated=calibrated)
            vars(module).clear()
            vars(module).update(vars(plain))
            module.__class__ = type(plain)  # type: ignore[assignment]
            if "forward" in vars(module):  # chosen when the module was made
                vars(module)["forward"] = getattr(module, vars(module)["forward"].__name__)
        else:
            _own_tensors(module)
    story = story_of(net)
    if story is not None:
        settings = {"width": config.width, "resolution": config.resolution}
        settings |= {} if config.frames is None else {"frames": config.frames}
        remember(static, story.then("elastic", {"extract": settings}))
    return static


def _own_tensors(module: nn.Module) -> None:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.clone()
