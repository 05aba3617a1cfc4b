"""The elastic side of a run: the network made elastic, the objective of mutual learning, the table at the end."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

from leanconv.errors import LeanconvError
from leanconv.ranks import rank_and_world
from leanconv.recipes.finetuning import load_teacher
from leanconv.recipes.settings import ElasticSettings, Recipe

if TYPE_CHECKING:
    from leanconv.data import ImageData, VideoData
    from leanconv.elastic import ElasticNet
    from leanconv.query import QueryTable

__all__ = ["elastic_options", "made_elastic", "measured_table", "mutual_objective"]


def elastic_options(recipe: Recipe) -> dict[str, Any]:
    """An elastic network of the zoo is made for the widths, resolutions and frames of its recipe."""
    from leanconv.zoo import ZOO

    entry = ZOO.get(recipe.model)
    options = list(inspect.signature(entry.builder).parameters) if entry is not None else []
    if recipe.elastic is None or "widths" not in options:
        return {}
    made: dict[str, Any] = {"widths": list(recipe.elastic.widths), "resolutions": list(recipe.elastic.resolutions)}
    return made | ({"frames": list(recipe.elastic.frames)} if "frames" in options else {})


def made_elastic(name: str, model: nn.Module, settings: ElasticSettings, size: tuple[int, ...]) -> nn.Module:
    """`model`, called `name`, elastic over what the settings say; `LeanconvError` where it is over others."""
    from leanconv.elastic import ElasticNet, make_elastic

    if not isinstance(model, ElasticNet):
        return make_elastic(
            model,
            widths=settings.widths,
            resolutions=settings.resolutions,
            frames=settings.frames,
            divisor=settings.divisor,
            size=size,
        )
    for what in ("widths", "resolutions", "frames"):
        made, wanted = list(getattr(model, what)), list(getattr(settings, what))
        if made != wanted:
            raise LeanconvError(
                f"{name} is elastic over {what} {made}, the recipe says {wanted}: set model_args.{what} to the same"
            )
    return model


def mutual_objective(
    net: ElasticNet, settings: ElasticSettings, seed: int, data: ImageData | VideoData, trust_code: bool
) -> nn.Module:
    """The objective of mutual learning that the settings describe; `seed` draws widths and resolutions."""
    from leanconv.elastic.mutual import MutualObjective

    return MutualObjective(
        net,
        num_random=settings.num_random,
        seed=seed,
        temperature=settings.temperature,
        hard_labels=settings.hard_labels,
        resolutions=settings.train_resolutions,
        teacher=None if settings.teacher is None else load_teacher(settings.teacher, data, trust_code=trust_code),
        low_memory=settings.low_memory,
        layer_widths=settings.layer_widths,
        draw_full=settings.draw_full,
    )


def measured_table(net: Any, data: ImageData | VideoData, recipe: Recipe, *, latency: bool) -> QueryTable:
    """Calibrate and measure, every process its share; all have the same statistics and table afterwards."""
    import torch

    from leanconv.elastic import calibrate
    from leanconv.query import QueryTable

    settings = recipe.elastic or ElasticSettings()
    if recipe.accelerator in ("auto", "cuda") and torch.cuda.is_available():
        net.cuda()  # training hands the network back on the CPU
    data.set_epoch(recipe.epochs)  # images in an order and augmentation that training has not seen
    rank, world = rank_and_world()
    images = data.train_loader(rank=rank, world=world)
    calibrate(net, images, settings.configs, max_images=settings.calibration_images)
    tests = data.eval_loader(rank=rank, world=world, limit=recipe.test_limit)
    table = QueryTable.measure(net, tests, configs=settings.configs, latency=latency)
    net.cpu()
    return table
