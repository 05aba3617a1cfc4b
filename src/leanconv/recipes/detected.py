"""Detectors that were trained: what they find in files, how they score on annotated images, and the table of theirs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from leanconv.data.contract import contract_of
from leanconv.data.detection.data import DetectionData, open_detection, read_pixels
from leanconv.data.detection.masks import Rle, from_pixels
from leanconv.data.detection.results import answers_of, read_results
from leanconv.data.sets.splits import Problem
from leanconv.dryrun import ModelHolder, as_module, classes_of, detector_in
from leanconv.elastic import ElasticDetector, ElasticNet, calibrate
from leanconv.elastic.width import Config
from leanconv.errors import DataError, LeanconvError
from leanconv.intervals import Interval
from leanconv.modes import eval_mode
from leanconv.query import QueryTable
from leanconv.recipes.asked import configured
from leanconv.recipes.config import read_recipe
from leanconv.recipes.detection import coco_results, finite, interval_figures, open_objects
from leanconv.recipes.settings import DetectionSettings, Recipe
from leanconv.train.detected import Detected, evaluate_answers, evaluate_detector, has_masks
from leanconv.train.precision import coco_rows
from leanconv.train.runfolder import saved_model

__all__ = [
    "Found",
    "LoadedDetector",
    "ScoredObjects",
    "detect",
    "evaluate_objects",
    "evaluate_results",
    "find_detector",
    "is_results",
    "measure_objects",
    "open_for",
    "refuse_for_detector",
]


class LoadedDetector(NamedTuple):
    """A detector, what messages call it, and the recipe of its run (None where it is no run's)."""

    network: nn.Module
    name: str
    recipe: Recipe | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a detector found in files.

    Attributes:
        names: of the files that could be read, in order.
        objects: for each of them boxes (n, 4), labels (n,) from 1 and scores (n,), the surest first.
        masks: for each of them the run lengths of every object; None of a detector without masks.
        class_names, class_ids: of the labels 1, 2, ...
        unreadable: the files that could not be read, each with its reason.
    """

    names: tuple[str, ...]
    objects: tuple[dict[str, Tensor], ...]
    masks: tuple[list[Rle], ...] | None
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    unreadable: tuple[Problem, ...] = ()

    def rows(self, least: float = 0.0) -> list[dict[str, Any]]:
        """In COCO's format of results, with file_name; image_id is the file's own number, or its place from 1."""
        stems = [Path(name).stem for name in self.names]
        numbered = all(stem.isdigit() for stem in stems) and len({int(stem) for stem in stems}) == len(stems)
        ids = [int(stem) for stem in stems] if numbered else list(range(1, len(stems) + 1))
        answers = [coco_rows(one, masks=False) for one in self.objects]
        for rows, masks in zip(answers, self.masks or (), strict=False):
            for row, rle in zip(rows, masks, strict=True):
                row["segmentation"] = rle
        named = dict(zip(ids, self.names, strict=True))
        found = coco_results(answers, ids, self.class_ids)
        return [{**row, "file_name": named[row["image_id"]]} for row in found if row["score"] >= least]


@dataclass(frozen=True, kw_only=True)
class ScoredObjects:
    """A test of a detector, or of answers from a file.

    Attributes:
        detected: the scores, their intervals, and every answer.
        part: what was tested on: "validation" or "train".
        class_names, class_ids: of the labels 1, 2, ...
        problems: images and annotations that could not be used, each with its reason.
        remarks: sentences about the data that may surprise.
        configuration: of an elastic network, the width and the resolution in words; "" of any other.
    """

    detected: Detected
    part: str
    class_names: tuple[str, ...]
    class_ids: tuple[int, ...]
    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()
    configuration: str = ""

    @property
    def box_ap(self) -> float:
        """Average precision of boxes over intersections of .50 to .95, from 0 to 1."""
        return self.detected.box_ap

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of `box_ap`."""
        return self.detected.intervals["box_ap"]

    def results(self) -> list[dict[str, Any]]:
        """Every answer in COCO's format of results; a test of these has the same scores."""
        return coco_results(self.detected.answers, self.detected.image_ids, self.class_ids)

    def figures(self, name: str) -> dict[str, Any]:
        """The test of the network called `name` in plain data, as `leanconv eval --json` prints it."""
        return {
            "model": name + self.configuration,
            "images": self.detected.images,
            "part": self.part,
            **finite(self.detected.scores),
            **interval_figures(self.detected),
            "problems": len(self.problems),
        }


def find_detector(model: str | Path | nn.Module | ModelHolder, *, trust_code: bool = False) -> LoadedDetector | None:
    """The detector that `model` is or names (a saved model or a run folder); None where it is none, or no folder.

    Nothing is loaded, and no code of one's own is run, for a model whose weights are not called as those of a detector.
    Raises `LeanconvError` for a detector that was exported.
    """
    from leanconv.build import load, located
    from leanconv.build.folder import tensor_names

    if not isinstance(model, str | Path):
        network = as_module(model)
        inner = detector_in(network)
        return None if inner is None else LoadedDetector(network, f"this {type(inner).__name__}", None)
    name = located(model)
    if not os.path.isdir(name):
        _refuse_file(name)
        return None
    folder = saved_model(name)
    parts = {of.removeprefix("model.").partition(".")[0] for of in tensor_names(Path(folder))}
    if not {"backbone", "rpn", "roi_heads"} <= parts:
        return None
    network = load(folder, trust_code=trust_code)
    config = Path(name) / "config.yaml"
    recipe = read_recipe(config) if config.exists() else None
    return None if detector_in(network) is None else LoadedDetector(network, str(model), recipe)


def _refuse_file(name: str) -> None:
    """Raise `LeanconvError` for a detector that was exported: files are tested as classifiers are."""
    from leanconv.deploy.exported import is_exported
    from leanconv.deploy.metadata import input_of

    if not is_exported(name) or not name.lower().endswith(".onnx") or not os.path.isfile(name):
        return
    about = input_of(Path(name))
    if about is not None and about.contract.resize == "inside":
        raise LeanconvError(
            f"{name} is an exported detector, which takes one image (3, h, w) and gives boxes; export has compared it"
            " with the detector, so ask that one: the folder that it was written from"
        )


def detect(
    loaded: LoadedDetector,
    files: Sequence[str | Path],
    *,
    width: float | None = None,
    resolution: int | None = None,
    shown: Callable[[str, Tensor, dict[str, Tensor]], None] | None = None,
) -> Found:
    """What the detector finds in images, one after the other; a file that cannot be read is named, the others go on.

    `shown` is given the name, the image (3, h, w) from 0 to 1 and what was found in it, masks included. Raises
    `DataError` where no file can be read.
    """
    from leanconv.data import find_files

    names, ids = _classes(loaded)
    kept: list[tuple[str, dict[str, Tensor], list[Rle]]] = []
    problems: list[Problem] = []
    paths = [str(path) for path in find_files([str(file) for file in files], videos=False)]
    with configured(loaded.network, width, resolution) as (network, _), eval_mode(network) as device:
        for path in paths:
            try:
                image = read_pixels(path, exif=True).float() / 255
            except Exception as error:  # decoders raise anything on broken files
                problems.append(Problem(path, " ".join(str(error).split()) or type(error).__name__))
                continue
            [answer] = network([image.to(device)])
            answer = {name: value.cpu() for name, value in answer.items()}
            masks = from_pixels((answer["masks"] > 0.5)[:, 0]) if "masks" in answer else []
            if shown is not None:
                shown(path, image, answer)
            kept.append((path, {name: answer[name] for name in ("boxes", "labels", "scores")}, masks))
    if not kept:
        first = f", for example {problems[0].name}: {problems[0].reason}" if problems else ""
        raise DataError(f"none of {len(paths)} files could be read{first}")
    return Found(
        names=tuple(path for path, _, _ in kept),
        objects=tuple(found for _, found, _ in kept),
        masks=tuple(masks for _, _, masks in kept) if has_masks(loaded.network) else None,
        class_names=names,
        class_ids=ids,
        unreadable=tuple(problems),
    )


def _classes(loaded: LoadedDetector) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and COCO's numbers of the classes, as the contract has them, else plain numbers."""
    contract = contract_of(loaded.network)
    inner = loaded.network.model if isinstance(loaded.network, ElasticNet) else loaded.network
    count = classes_of(inner)
    names = None if contract is None else contract.class_names
    ids = None if contract is None else contract.class_ids
    return names or tuple(map(str, range(1, count + 1))), ids or tuple(range(1, count + 1))


def open_for(loaded: LoadedDetector, spec: str | None) -> DetectionData:
    """The annotated images `spec`, or those of the run, numbered by the detector's classes.

    Raises `LeanconvError` where neither is said, and for classes that it does not know.
    """
    names = _classes(loaded)[0]
    if spec is None:
        if loaded.recipe is None:
            raise LeanconvError(
                f"{loaded.name} is a saved model, not a run folder: say which images with --data"
                " coco:ANNOTATIONS.json,FOLDER"
            )
        return open_objects(loaded.recipe, names)
    settings = DetectionSettings() if loaded.recipe is None else loaded.recipe.data.detection or DetectionSettings()
    return open_detection(spec, batch_size=1, masks=has_masks(loaded.network), empty=settings.empty, class_names=names)


def evaluate_objects(
    loaded: LoadedDetector, data: DetectionData, *, width: float | None = None, resolution: int | None = None
) -> ScoredObjects:
    """The test of a detector on the test images of `data`."""
    with configured(loaded.network, width, resolution) as (network, which):
        return _tested(evaluate_detector(network, data.eval_loader()), data, which)


def evaluate_results(path: str | Path, spec: str) -> ScoredObjects:
    """The test of the answers in `path`, in COCO's format of results, on the annotated images `spec`.

    Masks are tested where every answer has one. Raises `DataError` for a file of another form, and for answers for
    images or classes that the annotations do not name.
    """
    given = read_results(path)
    masks = bool(given) and all("segmentation" in row for row in given)
    data = open_detection(spec, batch_size=1, masks=masks)
    answers = answers_of(path, given, data, masks=masks)

    def answered() -> Iterator[tuple[list[list[dict[str, Any]]], Any]]:
        for _, targets in data.eval_loader():
            yield [answers.get(int(target["image_id"]), []) for target in targets], targets

    return _tested(evaluate_answers(answered(), masks=masks), data, "")


def is_results(model: object) -> bool:
    """Whether `model` names a file of results."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() == ".json" and not os.path.isdir(model)


def _tested(detected: Detected, data: DetectionData, which: str) -> ScoredObjects:
    return ScoredObjects(
        detected=detected,
        part=data.part,
        class_names=data.class_names,
        class_ids=data.class_ids,
        problems=data.problems,
        remarks=data.remarks,
        configuration=which,
    )


def refuse_for_detector(given: Mapping[str, object]) -> None:
    """Raise `LeanconvError` for options, by their names, that are not for detectors."""
    if names := [name for name, value in given.items() if value]:
        raise LeanconvError(f"{', '.join(names)}: not for detectors, which take images as they are and find objects")


def measure_objects(
    loaded: LoadedDetector, data: DetectionData, *, step: float, resolutions: Sequence[int], store: Path | None
) -> QueryTable:
    """The query table without latencies; what is not calibrated yet is, on the training images, and kept in `store`."""
    net = loaded.network
    if not isinstance(net, ElasticDetector):
        raise LeanconvError(f"{loaded.name} has a single configuration: a query table is for elastic networks")
    sides = [net.checked(net.widths[1], side).resolution for side in resolutions] or net.resolutions
    configs: list[Config] = [config for config in net.configurations(step) if config.resolution in sides]
    if torch.cuda.is_available():
        net.cuda()
    missing = [config for config in configs if not net.can_evaluate(*config)]
    if missing:
        calibrate(net, data.train_loader(), missing, min_images=1)
        if store is not None:
            from leanconv.build import save

            save(net.cpu(), store)
    table = QueryTable.measure(net, data.eval_loader(), configs=configs, latency=False)
    net.cpu()
    return table
