"""BatchNorm statistics after training, per configuration: the cumulative mean of batch statistics, as in US-Net.

    mu   <- mu + n_t / (n_1 + ... + n_t) * (mu_t - mu)            equal batches: momentum 1 / (t + 1)
    var  <- likewise, with the unbiased variance of the batch

Reference implementation: training-mode forwards of nine batches of augmented training images, each resized. Deviation:
batches count by their size, and only BatchNorms leave evaluation mode, so that dropout does not disturb what they see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn

from leanconv.dryrun.size import check_count
from leanconv.elastic.layers.leaves import ElasticBatchNorm, use_statistics
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.width import Config
from leanconv.errors import DataError, LeanconvError
from leanconv.modes import eval_mode
from leanconv.ranks import rank_and_world, summed

__all__ = ["Statistics", "as_configs", "calibrate", "images_of", "inputs_of", "moved"]


def calibrate(
    net: ElasticNet,
    loader: Iterable[Any],
    configs: Iterable[Config | tuple[float, int]] | None = None,
    *,
    max_images: int = 2048,
    min_images: int = 16,
) -> tuple[Config, ...]:
    """Measure the BatchNorm statistics of `configs` and store them in `net`; returns the configurations.

    Every batch runs in every configuration, and nothing is stored unless all of them succeed. A training step drops
    what was stored. In a distributed run every process must call it, with its share of the images; all end with the
    statistics of all images together.

    Args:
        loader: yields (inputs, ...) or inputs of the native resolution, best as they are in training.
        configs: (width, resolution) pairs; default the paper's grid, `net.configurations()`.
        max_images: images to use, over all processes (the paper: 2,000 suffice).
        min_images: with fewer than these (or `max_images`), nothing is stored.

    Raises `DataError` for a loader with too few images, `LeanconvError` for a configuration the network does not have.
    """
    wanted = as_configs(net, configs)
    for name, value in (("max_images", max_images), ("min_images", min_images)):
        check_count(value, name)
    measured = {config: Statistics(config) for config in wanted}
    rank, world = rank_and_world()
    seen = 0
    with eval_mode(net) as device:
        for inputs in _batches(loader, device, max_images // world + (rank < max_images % world)):
            seen += len(inputs)
            for config, statistics in measured.items():
                try:
                    with net.at(*config), statistics.collected(net, len(inputs)):
                        net(inputs)
                except ValueError as error:
                    if "more than 1 value per channel" not in str(error):
                        raise
                    raise DataError(
                        f"calibration of {config}: a batch of {len(inputs)} leaves BatchNorm one value per channel, "
                        "and one value has no variance: use a loader with larger batches"
                    ) from error
    images = int(summed(torch.tensor(seen, device=device)))
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
    for config, statistics in measured.items():
        for norm, mean, var in statistics.of_all_ranks(net):
            norm.store(config, mean, var)
    net.update_story()
    return wanted


def as_configs(net: ElasticNet, configs: Iterable[Config | tuple[float, int]] | None) -> tuple[Config, ...]:
    """`configs` checked against the network, each once; None is the paper's grid."""
    checked = [net.checked(*given) for given in (net.configurations() if configs is None else configs)]
    for config in checked:
        if config.width.drawn is not None:
            raise LeanconvError(
                f"{config.width!r} has a width for every layer, which is for training: what is calibrated, measured "
                "and run has one width for the whole network"
            )
    return tuple(dict.fromkeys(checked))


def images_of(batch: Any) -> Tensor | list[Tensor]:
    """As `inputs_of`; of a detector's loader a list of images of various sizes."""
    inputs = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if isinstance(inputs, Sequence) and inputs and all(isinstance(image, Tensor) for image in inputs):
        return list(inputs)
    return inputs_of(batch)


def moved(inputs: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """On that device."""
    return inputs.to(device) if isinstance(inputs, Tensor) else [image.to(device) for image in inputs]


def inputs_of(batch: Any) -> Tensor:
    """The images of what a loader yields: a tensor, or a tuple or list that begins with one."""
    inputs = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if not isinstance(inputs, Tensor):
        raise DataError(f"a loader must yield inputs or (inputs, targets) as tensors, got {type(batch).__name__}")
    return inputs


def _batches(loader: Iterable[Any], device: torch.device, max_images: int) -> Iterator[Tensor | list[Tensor]]:
    left = max_images
    for batch in loader:
        inputs = images_of(batch)[:left]
        # A last image alone may have no variance, and says little beside those before it.
        if len(inputs) == 0 or (len(inputs) == 1 and left < max_images and isinstance(inputs, Tensor)):
            continue
        left -= len(inputs)
        yield moved(inputs, device)
        if not left:
            return


class Statistics:
    """Mean and variance of every BatchNorm that has run in one configuration, over all its uses.

    A norm that a forward uses twice has seen every image twice, and its mean is that of all it has seen.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.of: dict[ElasticBatchNorm, tuple[Tensor, Tensor]] = {}
        self.seen: dict[ElasticBatchNorm, int] = {}

    @contextmanager
    def collected(self, net: ElasticNet, images: int) -> Iterator[None]:
        """A scope for a batch of `images`, in which BatchNorms use its statistics and move their means to them."""
        norms = net.norms
        for norm in norms:
            vars(norm)["forward"] = partial(self._run, norm, images)
        try:
            yield
        finally:
            for norm in norms:
                del vars(norm)["forward"]

    def _run(self, norm: ElasticBatchNorm, images: int, *args: Any, **kwargs: Any) -> Any:
        if norm not in self.of:  # the first update, of momentum 1, replaces what is in them
            self.of[norm] = norm.fresh_statistics(self.config)
        self.seen[norm] = self.seen.get(norm, 0) + images
        view = norm.view(self.config.width)
        use_statistics(view, *self.of[norm])
        vars(view).update(training=True, momentum=images / self.seen[norm])
        if isinstance(norm, nn.SyncBatchNorm):
            # It counts its batches, always; and it must not wait for the others here, who may have fewer batches:
            # `of_all_ranks` brings the statistics of all processes together.
            view._buffers["num_batches_tracked"] = torch.zeros((), dtype=torch.long)
            if distributed.is_available():
                vars(view)["process_group"] = distributed.GroupMember.NON_GROUP_MEMBER
        return norm.kind.forward(view, *args, **kwargs)

    def of_all_ranks(self, net: ElasticNet) -> Iterator[tuple[ElasticBatchNorm, Tensor, Tensor]]:
        """What all processes measured together: each counts by the images that its norm has seen."""
        if rank_and_world()[1] == 1:
            yield from ((norm, mean, var) for norm, (mean, var) in self.of.items())
            return
        mine = [self.of.get(norm, norm.fresh_statistics(self.config)) for norm in net.norms]
        rows = [
            torch.cat([mean.new_ones(1), mean, var]).double() * self.seen.get(norm, 0)
            for norm, (mean, var) in zip(net.norms, mine, strict=True)
        ]
        sums = torch.split(summed(torch.cat(rows)), [len(row) for row in rows])
        for norm, (like, _), total in zip(net.norms, mine, sums, strict=True):
            if total[0] > 0:
                mean, var = (total[1:] / total[0]).chunk(2)
                yield norm, mean.to(like), var.to(like)
