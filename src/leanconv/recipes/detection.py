"""A recipe for objects: what `run_recipe` does where `data.detection` is set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from leanconv.data.contract import attach
from leanconv.data.detection.data import DetectionData, open_detection
from leanconv.dryrun import classes_of, is_detector
from leanconv.elastic import DetectionObjective, ElasticDetector, ElasticNet, calibrate, make_elastic
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.files import held, write_text
from leanconv.query import QueryTable
from leanconv.ranks import rank_and_world
from leanconv.recipes.config import to_data
from leanconv.recipes.finetuning import Taken, check_classes, knows_others
from leanconv.recipes.settings import DetectionSettings, ElasticSettings, Recipe
from leanconv.rewrites import parse_step, rewrite
from leanconv.train import fit, is_main_process
from leanconv.train.detected import Detected, evaluate_detector
from leanconv.train.runfolder import saved_model
from leanconv.train.settings import FitResult

__all__ = [
    "DetectionRun",
    "build_detector",
    "coco_results",
    "finite",
    "interval_figures",
    "open_objects",
    "run_detection",
    "take_body",
]


class DetectionRun(dict[str, Any]):
    """What a run of a detector left: `fit`, `net`, `model_folder`, `table` and `detected`, by these names."""


def open_objects(recipe: Recipe, class_names: tuple[str, ...] | None = None) -> DetectionData:
    """The images and objects of the recipe."""
    data, settings = recipe.data, recipe.data.detection or DetectionSettings()
    return open_detection(
        data.spec,
        batch_size=data.batch_size,
        workers=data.workers,
        seed=recipe.seed,
        mirror=settings.mirror,
        empty=settings.empty,
        masks=settings.masks,
        passes=settings.passes,
        validation=data.held_out,
        class_names=class_names,
    )


def build_detector(recipe: Recipe, data: DetectionData, *, trust_code: bool = False) -> nn.Module:
    """The detector of the recipe, for the classes of the data, elastic where the recipe says so.

    A saved one goes on from its weights, where its classes are those of the data or it may begin with a fresh
    classifier. Raises `LeanconvError` where it is no detector, or one of other sizes or classes.
    """
    from leanconv.build import create_model, is_folder, load, with_new_classifier

    folder, settings = saved_model(recipe.model), recipe.data.detection or DetectionSettings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        left = recipe.rewrites
        if is_folder(str(folder)):
            model = load(folder, trust_code=trust_code)
            inner = model.model if isinstance(model, ElasticNet) else model
            if not is_detector(inner):
                raise LeanconvError(
                    f"{recipe.model} is no detector: objects are found by detection/mask_rcnn and its like"
                )
            same = classes_of(inner) == data.num_classes and not knows_others(model, data.class_names)
            if same:
                check_classes(recipe, model, data.class_names)
            elif not recipe.new_classifier:
                raise LeanconvError(
                    f"{recipe.model} tells {classes_of(inner)} classes apart, and the data have"
                    f" {data.num_classes}, or others: let it begin with a fresh classifier: --new-classifier"
                )
            else:
                model = _for_classes(
                    lambda count: with_new_classifier(folder, count, trust_code=trust_code)[0], data.num_classes
                )
        else:
            options: dict[str, Any] = {"min_size": recipe.data.resolution, "max_size": settings.longest}
            if left and recipe.model.startswith("detection/"):  # a body is rewritten before it is one
                options, left = {**options, "rewrites": list(left)}, ()
            options |= recipe.model_args
            model = _for_classes(
                lambda count: create_model(recipe.model, **{"num_classes": count, **options}), data.num_classes
            )
        if left:
            model = rewrite(model, *map(parse_step, left)).model
        elastic = recipe.elastic
        if elastic is not None and not isinstance(model, ElasticNet):
            model = make_elastic(model, widths=elastic.widths, resolutions=elastic.resolutions, divisor=elastic.divisor)
    if not isinstance(model, ElasticDetector) and not is_detector(model):
        raise LeanconvError(f"{recipe.model} is no detector, and data.detection is set: name detection/mask_rcnn")
    if elastic is not None and list(model.resolutions) != list(elastic.resolutions):  # type: ignore[arg-type]
        raise LeanconvError(
            f"{recipe.model} is elastic over {list(model.resolutions)}, the recipe says {list(elastic.resolutions)}:"  # type: ignore[arg-type]
            " set elastic.resolutions and data.resolution to the same"
        )
    return model.train()


def _for_classes(build: Callable[[int], nn.Module], count: int) -> nn.Module:
    """What `build` makes for so many classes. torchvision's builders count the background as one more, ours do not.

    Raises `LeanconvError` for a detector that needs more than boxes and masks to learn from.
    """
    model = build(count)
    inner = model.model if isinstance(model, ElasticNet) else model
    if not is_detector(inner):
        return model
    if inner.roi_heads.has_keypoint():  # type: ignore[union-attr, operator]
        raise LeanconvError(
            f"{type(inner).__name__} learns from keypoints, and what is read of COCO's files are boxes and masks: name"
            " a Mask or Faster R-CNN"
        )
    return build(count + 1) if classes_of(inner) == count - 1 else model


def take_body(net: nn.Module, folder: str | Path, *, trust_code: bool = False) -> Taken:
    """Give the body of a detector the weights of a trained classifier of the same network, in place, by name.

    Both may be elastic. What comes behind the last stage is left out; statistics that were calibrated there are too.
    Raises `CheckpointError` where a tensor of the body is missing there or has another shape.
    """
    from leanconv.build import load

    given_net = load(saved_model(folder), trust_code=trust_code)
    if isinstance(given_net, ElasticNet):
        given_net.drop_calibrations()
    source = (
        {name.removeprefix("model."): t for name, t in given_net.state_dict().items()}
        if isinstance(given_net, ElasticNet)
        else given_net.state_dict()
    )
    model: Any = net.model if isinstance(net, ElasticNet) else net
    if any(name.startswith("backbone.body.") for name in source):
        source = {name.removeprefix("backbone.body."): tensor for name, tensor in source.items()}
    target: dict[str, Tensor] = model.backbone.body.state_dict()
    wrong = [name for name, mine in target.items() if _given(source, name, mine) is None]
    if wrong:
        raise CheckpointError(
            f"{folder}: its weights are not for the body of this detector: {len(wrong)} of {len(target)} tensors are"
            f" missing or have another shape there, for example {', '.join(wrong[:3])}: train the same network"
        )
    with torch.no_grad():
        for name, mine in target.items():
            mine.copy_(_given(source, name, mine))  # type: ignore[arg-type]
    fresh = tuple(name for name, _ in model.named_parameters() if not name.startswith("backbone.body."))
    return Taken(tuple(f"backbone.body.{name}" for name in target), (), fresh)


def _given(source: dict[str, Tensor], name: str, mine: Tensor) -> Tensor | None:
    found = source.get(name, source.get(name.removeprefix("network.")))
    return found if found is not None and found.shape == mine.shape else None


def run_detection(
    recipe: Recipe, out: Path, *, resume: bool, progress: bool, latency: bool, trust_code: bool
) -> DetectionRun:
    """Carry out a recipe for objects in the run folder `out`: what `fit` writes, then `model/`, the table if it is
    elastic, `evaluation.json` and `detections.json`, the answers on the test images in COCO's format of results."""
    data = open_objects(recipe)
    net = build_detector(recipe, data, trust_code=trust_code)
    if recipe.weights is not None:
        taken = take_body(net, recipe.weights, trust_code=trust_code)
        if progress and is_main_process():
            print(f"weights of {recipe.weights}: {taken}", flush=True)
    if progress and is_main_process():
        for remark in data.remarks:
            print(remark, flush=True)
    elastic = recipe.elastic or ElasticSettings()
    objective = DetectionObjective(
        net,
        num_random=elastic.num_random,
        seed=recipe.seed,
        resolutions=None if recipe.elastic is None else elastic.train_resolutions,
        low_memory=elastic.low_memory,
    )
    with held(out) if is_main_process() else nullcontext():
        result = fit(
            objective,
            cast(Any, data),
            recipe.fit_settings(),
            out,
            config=to_data(recipe),
            resume=resume,
            progress=progress,
        )
        return _finished(recipe, net, data, result, out, latency=latency)


def _finished(
    recipe: Recipe, net: nn.Module, data: DetectionData, result: FitResult, out: Path, *, latency: bool
) -> DetectionRun:
    settings = recipe.data.detection or DetectionSettings()
    attach(net, data.contract(recipe.data.input_size, settings.longest))
    table, rank, world = None, *rank_and_world()
    on_gpu = recipe.accelerator in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        net.cuda()  # training hands the network back on the CPU
    if isinstance(net, ElasticDetector):
        elastic = recipe.elastic or ElasticSettings()
        if net.norms:
            data.set_epoch(recipe.epochs)
            train = data.train_loader(rank=rank, world=world)
            calibrate(net, train, elastic.configs, max_images=elastic.calibration_images, min_images=1)
        tests = data.eval_loader(rank=rank, world=world, limit=recipe.test_limit)
        table = QueryTable.measure(net, tests, configs=elastic.configs, latency=latency)
    with net.at(net.widths[1], net.resolutions[0]) if isinstance(net, ElasticDetector) else nullcontext():
        detected = evaluate_detector(net, data.eval_loader(rank=rank, world=world, limit=recipe.test_limit))
    net.cpu()
    folder = out / "model"
    if is_main_process():
        from leanconv.build import save

        if table is not None:
            table.save(out / "table.json")
            table.save(out / "table.csv")
        save(net, folder, size=recipe.data.input_size)
        figures = {
            "part": data.part,
            "images": detected.images,
            **finite(detected.scores),
            **interval_figures(detected),
        }
        write_text(out / "evaluation.json", json.dumps(figures, indent=2) + "\n")
        if world == 1:
            results = coco_results(detected.answers, detected.image_ids, data.class_ids)
            write_text(out / "detections.json", json.dumps(results) + "\n")
    return DetectionRun(fit=result, net=net, model_folder=folder, table=table, detected=detected)


def coco_results(
    answers: Iterable[Sequence[dict[str, Any]]], image_ids: Iterable[int], class_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Answers in COCO's format of results: image_id, category_id, bbox (x, y, width, height), score, segmentation.

    `answers` are the rows of `coco_rows` for each image.
    """
    results = []
    for rows, image_id in zip(answers, image_ids, strict=True):
        for row in rows:
            result = {"image_id": image_id, **row, "category_id": class_ids[row["category_id"] - 1]}
            if "segmentation" in row:
                rle = row["segmentation"]
                result["segmentation"] = {"size": list(rle["size"]), "counts": rle["counts"].decode()}
            results.append(result)
    return results


def interval_figures(detected: Detected) -> dict[str, list[float] | None]:
    """The intervals of a test as plain data, by the names of the scores with _interval."""
    return {f"{name}_interval": None if one is None else list(one) for name, one in detected.intervals.items()}


def finite(scores: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if value == value else None for name, value in scores.items()}
