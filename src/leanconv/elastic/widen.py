"""Widths above 1: every tensor allocated at the largest width, the original in its first part, the rest drawn.

A weight is drawn from N(0, s) with s so that a layer of the new width scales its input as the old one did: the root of
the mean square of the original, times sqrt(C_in / C_in'). A number per channel (gamma, bias, slope, layer scale) is the
mean of the original ones, a buffer repeats them. BatchNorm keeps the statistics of width 1 as a calibrated
configuration; those of the new network do not exist before it is trained or calibrated.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from leanconv.elastic.layers.leaves import Elastic, ElasticBatchNorm, index_tensor
from leanconv.elastic.slices import Axes, Channels
from leanconv.elastic.width import ActiveConfig, Config, Width

__all__ = ["widen"]


@torch.no_grad()
def widen(model: nn.Module, active: ActiveConfig) -> None:
    """Give every elastic tensor of `model` room for the largest width, in place; the same draw every time."""
    generator = torch.Generator().manual_seed(0)
    original = Config(1.0, active.largest.resolution, active.largest.frames)
    for module in model.modules():
        if not isinstance(module, Elastic):
            continue
        for name, axes in module.elastic_layer.tensors.items():
            old = module._parameters.get(name)
            if old is not None:
                module._parameters[name] = nn.Parameter(_wider(old, axes, generator), old.requires_grad)
            elif (buffer := module._buffers.get(name)) is not None:
                module._buffers[name] = _wider(buffer, axes, None)
        if isinstance(module, ElasticBatchNorm) and module.remembers:
            _new_statistics(module, original)
        vars(module).update(module.attributes_at(active.largest.width))


def _wider(old: Tensor, axes: Axes[Channels], generator: torch.Generator | None) -> Tensor:
    """The tensor at full size; `generator` None for one whose values repeat."""
    if old.is_meta:
        return old.new_empty([size if c is None else c.full for size, c in zip(old.shape, axes, strict=True)])
    per_channel = prod(old.shape[1:]) == 1
    columns = axes[1].full / old.shape[1] if len(axes) > 1 and axes[1] is not None else 1.0
    scale = float(old.float().square().mean() / columns) ** 0.5
    for axis, channels in enumerate(axes):
        if channels is None or channels.full == old.shape[axis]:
            continue
        shape = (*old.shape[:axis], channels.full, *old.shape[axis + 1 :])
        if generator is None:
            wider = old.index_select(axis, torch.arange(channels.full, device=old.device) % old.shape[axis])
        elif per_channel:
            wider = old.new_full(shape, float(old.float().mean()))
        else:
            wider = (torch.randn(shape, generator=generator) * scale).to(old)
        wider.index_copy_(axis, index_tensor(channels.runs(Width(1.0)), old.device), old.detach())
        old = wider
    return old


def _new_statistics(norm: ElasticBatchNorm, original: Config) -> None:
    """Those of the network as it was become a calibrated configuration; those of the wider one start anew."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None
    assert isinstance(var, Tensor)
    norm.store(original, mean, var)
    full = norm.elastic_layer.outputs.full
    norm._buffers["running_mean"] = mean.new_zeros(full)
    norm._buffers["running_var"] = var.new_ones(full)
    if (seen := norm._buffers.get("num_batches_tracked")) is not None:
        norm._buffers["num_batches_tracked"] = torch.zeros_like(seen)
    norm.elastic_untrained_at_full_width = True
