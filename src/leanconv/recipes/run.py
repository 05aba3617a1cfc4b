"""From a recipe to a run folder: build, rewrite, make elastic, train, calibrate, measure, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from leanconv.errors import LeanconvError
from leanconv.recipes.config import read_recipe, to_data, to_yaml
from leanconv.recipes.settings import ElasticSettings, Recipe
from leanconv.train import Classify, ClassifyWithTower, FitResult, fit, is_main_process

if TYPE_CHECKING:
    from leanconv.data import ImageData
    from leanconv.elastic import ElasticNet, QueryTable

__all__ = ["RunResult", "build_model", "open_data", "run_recipe"]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run left: the trained network (also in `model_folder`), its figures and, if elastic, its query table.

    In a distributed run only the first process measures and saves; the others have no table.
    """

    recipe: Recipe
    fit: FitResult
    net: nn.Module
    model_folder: Path
    table: QueryTable | None = None


def open_data(recipe: Recipe) -> ImageData:
    """The images of the recipe."""
    from leanconv.data import open_images

    settings = recipe.data
    return open_images(
        settings.spec,
        size=settings.size,
        batch_size=settings.batch_size,
        workers=settings.workers,
        seed=recipe.seed,
        augment=settings.augment,
    )


def build_model(recipe: Recipe, num_classes: int) -> nn.Module:
    """The network of the recipe, rewritten and made elastic; its weights are drawn from the recipe's seed."""
    import torch

    from leanconv.build import create_model
    from leanconv.rewrites import parse_step, rewrite

    knobs = {"num_classes": num_classes, **recipe.model_args}
    if knobs["num_classes"] is None:
        del knobs["num_classes"]
    elif knobs["num_classes"] < num_classes:
        raise LeanconvError(
            f"model_args.num_classes is {knobs['num_classes']}, but the data has {num_classes} classes: leave it out"
        )
    size = (3, recipe.data.size, recipe.data.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = create_model(recipe.model, **knobs)
        if recipe.rewrites:
            steps = [parse_step(text) for text in recipe.rewrites]
            model = rewrite(model, *steps, example_size=size).model
        return model if recipe.elastic is None else _elastic(recipe.model, model, recipe.elastic, size)


def run_recipe(
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    progress: bool = True,
    latency: bool = True,
) -> RunResult:
    """Carry out `recipe` in the run folder `out`: what `fit` writes, then `model/` and, if elastic, the table.

    The table is `table.json` and `table.csv`; `latency` says whether it has milliseconds as well. Raises as
    `open_images`, `create_model`, `rewrite` and `fit`.
    """
    out = Path(out)
    data = open_data(recipe)
    net = build_model(recipe, data.num_classes)
    objective: nn.Module
    if recipe.auxiliary or recipe.drop_path:
        batches = len(data.train_loader())
        objective = ClassifyWithTower(
            net,
            auxiliary=recipe.auxiliary,
            drop_path=recipe.drop_path,
            total_steps=recipe.epochs * min(batches, recipe.steps_per_epoch or batches),
            label_smoothing=recipe.label_smoothing,
        )
    elif recipe.elastic is None:
        objective = Classify(net, label_smoothing=recipe.label_smoothing)
    else:
        from leanconv.elastic.mutual import MutualObjective

        settings = recipe.elastic
        objective = MutualObjective(
            cast("ElasticNet", net), num_random=settings.num_random, seed=recipe.seed, temperature=settings.temperature
        )
    if resume and (out / "config.yaml").exists():
        _complete(out / "config.yaml")
    result = fit(objective, data, recipe.fit_settings(), out, config=to_data(recipe), resume=resume, progress=progress)
    if not is_main_process():
        return RunResult(recipe=recipe, fit=result, net=net, model_folder=out / "model")
    table = None if recipe.elastic is None else _measure(net, data, recipe, out, latency=latency)
    from leanconv.build import save

    return RunResult(recipe=recipe, fit=result, net=net, model_folder=Path(save(net, out / "model")), table=table)


def _complete(config: Path) -> None:
    """Write out the settings that the leanconv which started the run did not know yet, at their defaults.

    A default is what a run did without the setting, so the run stays the same run; `fit` compares the rest.
    """
    from leanconv.train.runfolder import write_text

    text = to_yaml(read_recipe(config))
    if is_main_process() and text != config.read_text():
        write_text(config, text)


def _elastic(name: str, model: nn.Module, settings: ElasticSettings, size: tuple[int, ...]) -> nn.Module:
    from leanconv.elastic import ElasticNet, make_elastic

    if not isinstance(model, ElasticNet):
        return make_elastic(
            model,
            widths=settings.widths,
            resolutions=settings.resolutions,
            divisor=settings.divisor,
            example_size=size,
        )
    if tuple(model.widths) != tuple(settings.widths) or tuple(model.resolutions) != tuple(settings.resolutions):
        raise LeanconvError(
            f"{name} is elastic over widths {list(model.widths)} and resolutions {list(model.resolutions)}, the"
            f" recipe says {list(settings.widths)} and {list(settings.resolutions)}: set model_args.widths and"
            " model_args.resolutions to the same"
        )
    return model


def _measure(net: Any, data: ImageData, recipe: Recipe, out: Path, *, latency: bool) -> QueryTable:
    import torch

    from leanconv.elastic import QueryTable, calibrate

    settings = recipe.elastic or ElasticSettings()
    if recipe.accelerator in ("auto", "cuda") and torch.cuda.is_available():
        net.cuda()  # training hands the network back on the CPU
    data.set_epoch(recipe.epochs)  # images in an order and augmentation that training has not seen
    calibrate(net, data.train_loader(), settings.configs, max_images=settings.calibration_images)
    table = QueryTable.measure(net, data.eval_loader(), configs=settings.configs, latency=latency)
    for name in ("table.json", "table.csv"):
        table.save(out / name)
    net.cpu()
    return table
