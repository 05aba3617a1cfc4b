"""BatchNorm statistics after training, per configuration: the cumulative mean of batch statistics, as in US-Net.

    mu   <- mu + n_t / (n_1 + ... + n_t) * (mu_t - mu)            equal batches: momentum 1 / (t + 1)
    var  <- likewise, with the unbiased variance of the batch

Reference implementation: training-mode forwards of nine batches of augmented training images, each resized. Deviation:
batches count by their size, and only BatchNorms leave evaluation mode, so that dropout does not disturb what they see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanconv.elastic.width import Config, LayerWidths
from leanconv.errors import DataError, LeanconvError
from leanconv.ranks import rank_and_world, summed

if TYPE_CHECKING:
    from leanconv.elastic.layers.leaves import ElasticBatchNorm
    from leanconv.elastic.net import ElasticNet

__all__ = ["as_configs", "calibrate", "evaluating", "inputs_of"]


def calibrate(
    net: ElasticNet,
    loader: Iterable[Any],
    configs: Iterable[Config | tuple[float, int]] | None = None,
    *,
    max_images: int = 2048,
    min_images: int = 16,
) -> tuple[Config, ...]:
    """Measure the BatchNorm statistics of `configs` and store them in `net`; returns the configurations.

    The loader is read once, up to `max_images` images (the paper: 2,000 suffice), and every batch runs in every
    configuration. Nothing is stored unless all of them succeed. A training step afterwards drops what was stored. The
    mode of the network is left alone.

    In a distributed run (an initialised `torch.distributed` group) every process must call it, with its share of the
    images; all end with the statistics of all images together.

    Args:
        loader: yields (inputs, ...) or inputs of the native resolution, best as they are in training.
        configs: (width, resolution) pairs; default the paper's grid, `net.configurations()`.
        max_images: images to use, over all processes.
        min_images: with fewer than these (or `max_images`), nothing is stored.

    Raises `DataError` for a loader with too few images, and `LeanconvError` for a configuration the network does not
    have.
    """
    wanted = as_configs(net, configs)
    for name, value in (("max_images", max_images), ("min_images", min_images)):
        if not isinstance(value, int) or value < 1:
            raise LeanconvError(f"{name} must be a whole number from 1, got {value!r}")
    collected = {config: _Collected() for config in wanted}
    rank, world = rank_and_world()
    seen = 0
    with torch.no_grad(), evaluating(net):
        for inputs in _batches(net, loader, max_images // world + (rank < max_images % world)):
            seen += len(inputs)
            for config, statistics in collected.items():
                statistics.momentum = len(inputs) / seen
                net.dial.statistics = statistics
                try:
                    with net.at(*config):
                        net(inputs)
                except ValueError as error:
                    if "more than 1 value per channel" not in str(error):
                        raise
                    raise DataError(
                        f"calibration of {config}: a batch of {len(inputs)} leaves BatchNorm one value per channel, "
                        "and one value has no variance: use a loader with larger batches"
                    ) from error
                finally:
                    net.dial.statistics = None
    images = int(summed(torch.tensor(seen, device=next(net.parameters()).device)))
    if not images:
        raise DataError(
            "the calibration loader yields no images, and BatchNorm statistics are measured on images: check the data "
            "set's path and split, and that drop_last does not drop everything"
        )
    if images < (needed := min(min_images, max_images)):
        raise DataError(
            f"calibration needs at least {needed} images, the loader has {images}: the statistics of so few would "
            "say more about them than about the data; use more images, or min_images= where this is meant"
        )
    for config, statistics in collected.items():
        for norm, mean, var in _of_all_ranks(net, config, statistics, seen):
            norm.store(config, mean, var)
    net.tell_calibrated()
    return wanted


def as_configs(net: ElasticNet, configs: Iterable[Config | tuple[float, int]] | None) -> tuple[Config, ...]:
    """`configs` checked against the network, each once; None is the paper's grid."""
    pairs = net.configurations() if configs is None else configs
    checked = [net.checked(*pair) for pair in pairs]
    for config in checked:
        if isinstance(config.width, LayerWidths):
            raise LeanconvError(
                f"{config.width!r} has a width for every layer, which is for training: what is calibrated, measured "
                "and run has one width for the whole network"
            )
    return tuple({config.tag: config for config in checked}.values())


def inputs_of(batch: Any) -> Tensor:
    """The images of what a loader yields: a tensor, or a tuple or list that begins with one."""
    inputs = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if not isinstance(inputs, Tensor):
        raise DataError(f"a loader must yield inputs or (inputs, targets) as tensors, got {type(batch).__name__}")
    return inputs


class evaluating:
    """A scope in which a network is in evaluation mode; afterwards every module is in the mode it had."""

    def __init__(self, net: ElasticNet) -> None:
        self.net = net
        self.modes = [(module, module.training) for module in net.modules()]

    def __enter__(self) -> None:
        self.net.eval()

    def __exit__(self, *_: object) -> None:
        for module, mode in self.modes:
            module.training = mode


def _batches(net: ElasticNet, loader: Iterable[Any], max_images: int) -> Iterator[Tensor]:
    device = next(net.parameters()).device
    left = max_images
    for batch in loader:
        inputs = inputs_of(batch)[:left]
        # A last image alone may have no variance, and says little beside those before it.
        if len(inputs) == 0 or (len(inputs) == 1 and left < max_images):
            continue
        left -= len(inputs)
        yield inputs.to(device)
        if not left:
            return


def _of_all_ranks(
    net: ElasticNet, config: Config, statistics: _Collected, seen: int
) -> Iterator[tuple[ElasticBatchNorm, Tensor, Tensor]]:
    """What all processes measured together: each counts by the images it has seen."""
    if rank_and_world()[1] == 1:
        yield from statistics.measured()
        return
    mine = {id(norm): (mean, var) for norm, mean, var in statistics.measured()}
    rows = []
    for norm in net.norms:
        mean, var = mine.get(id(norm), (norm.filled(config, 0.0), norm.filled(config, 0.0)))
        ran = mean.new_full((1,), float(id(norm) in mine))
        rows.append(torch.cat([ran, mean, var]).double() * seen)
    sums = torch.split(summed(torch.cat(rows)), [len(row) for row in rows])
    for norm, total in zip(net.norms, sums, strict=True):
        if total[0] > 0:
            mean, var = (total[1:] / total[0]).chunk(2)
            like = norm.filled(config, 0.0)
            yield norm, mean.to(like), var.to(like)


class _Collected:
    """The accumulators of one configuration."""

    def __init__(self) -> None:
        self.momentum = 1.0
        self._of: dict[int, tuple[ElasticBatchNorm, Tensor, Tensor]] = {}

    def of(self, norm: ElasticBatchNorm) -> tuple[Tensor, Tensor]:
        """The tensors that the forward updates in place; the first update, of momentum 1, replaces what is in them."""
        found = self._of.get(id(norm))
        if found is None:
            config = norm.dial.config
            found = self._of[id(norm)] = (norm, norm.filled(config, 0.0), norm.filled(config, 1.0))
        return found[1], found[2]

    def measured(self) -> Iterator[tuple[ElasticBatchNorm, Tensor, Tensor]]:
        """Every BatchNorm that ran, with its statistics."""
        yield from self._of.values()
