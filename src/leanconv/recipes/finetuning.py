"""Finetuning: a network goes on from weights that were trained before, its own or those of another.

`finetune` is the recipe for somebody's own network and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from leanconv.data.contract import attach, contract_of, match_classes
from leanconv.elastic import ElasticNet
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.recipes.settings import DataSettings, DetectionSettings, ElasticSettings, Recipe, VideoSettings
from leanconv.story import Story
from leanconv.train import OptimSettings, ScheduleSettings
from leanconv.train.runfolder import saved_model

if TYPE_CHECKING:
    from leanconv.data import ImageData, VideoData

__all__ = ["Taken", "check_classes", "finetune", "knows_others", "load_teacher", "take_weights"]

_ALIKE = 0.02
"""Means and deviations, of pixels in 0..1, that differ by less are those of other draws of the same pictures."""


def finetune(
    model: str,
    data: str,
    *,
    elastic: bool = False,
    teacher: str | None = None,
    new_classifier: bool = False,
) -> Recipe:
    """The recipe that trains `model` on `data`: a saved model or run goes on from its weights, a name from fresh ones.

    Trained weights are handled with care: a fifth of the rate, a tenth of that for all but the classifier, a warm-up, a
    cosine, averaged weights, no mixup. A network that was rewritten and not trained since has to find its weights
    again, so it learns at the full rate everywhere, and longer. Inputs have the size that the network was made for.
    `elastic` makes it elastic and trains it by mutual learning from a quarter of its width, and from its resolution
    down to about half of it. `teacher` is a run folder or a saved model with the same classes. "hf:OWNER/NAME" is
    fetched now: the recipe names the folder. Raises `LeanconvError` where nothing says the size of the inputs.

    >>> finetune("resnet20", "folder:pictures").data.resolution
    32
    """
    from leanconv.build import default_size, is_folder, located

    if data.startswith(("coco:", "scattered-digits")):
        return _finetune_detector(model, data, elastic=elastic, teacher=teacher, new_classifier=new_classifier)
    said, model = model, located(model)
    teacher = None if teacher is None else located(teacher)
    folder = saved_model(model)
    trained = is_folder(str(folder))
    rewritten = trained and said == model and _is_rewritten(folder)
    careful = trained and not elastic and not rewritten
    size = default_size(str(folder) if trained else model)
    side = size[-1]
    video = VideoSettings(frames=size[1]) if len(size) == 4 else None
    batch = 32 if video is None else 8
    mutual = ElasticSettings(
        resolutions=tuple(sorted({round(side * share / 8) * 8 for share in (1, 6 / 7, 5 / 7, 4 / 7)}, reverse=True))
        if side >= 64
        else (side, round(side * 3 / 4)),
        teacher=teacher,
    )
    return Recipe(
        name=f"finetune_{Path(said).name}" if trained else f"train_{Path(said).name}",
        note=f"{said} on {data}, from {'its weights' if trained else 'fresh weights'}",
        model=model,
        new_classifier=new_classifier,
        teacher=None if elastic else teacher,
        elastic=mutual if elastic else None,
        data=DataSettings(
            spec=data,
            resolution=side,
            augment=("mobile" if side >= 96 else "shift") if video is None else "none",
            batch_size=batch,
            video=video,
        ),
        epochs=16 if rewritten else 10 if trained else 30,
        optim=OptimSettings(lr=0.05 if rewritten or not trained else 0.01, body=0.1 if careful else 1.0),
        schedule=ScheduleSettings("cosine", warmup_epochs=1),
        ema=0.99 if trained and not elastic else None,
    )


def _is_rewritten(folder: Path) -> bool:
    """Whether layers of the model saved in `folder` were replaced, and no run of ours has trained it since: then the
    folder is not the one that a run has left its model in."""
    from leanconv.build.folder import read_record
    from leanconv.rewrites.steps import STEPS

    steps = Story.from_json(read_record(folder)["story"]).steps
    replaced = any(stem in STEPS and stem != "inflate" for stem, _ in steps)
    return replaced and not (folder.absolute().parent / "config.yaml").exists()


def _finetune_detector(model: str, data: str, *, elastic: bool, teacher: str | None, new_classifier: bool) -> Recipe:
    """The recipe for a detector on objects in COCO's format; a name is built at 600 x 1000 from fresh weights."""
    from leanconv.build import default_size, is_folder, located
    from leanconv.build.folder import read_record

    if teacher is not None:
        raise LeanconvError("a detector learns from the objects themselves: leave --teacher out")
    said, model = model, located(model)
    folder = saved_model(model)
    trained = is_folder(str(folder))
    side, longest = default_size(str(folder) if trained else model)[-2:]
    sides = tuple(dict.fromkeys(round(side * share) for share in (1, 0.8, 0.6, 0.4)))
    built_as = said if not trained else str(read_record(folder)["story"]["model"])
    masks = "faster" not in built_as
    return Recipe(
        name=f"finetune_{Path(said).name}" if trained else f"train_{Path(said).name}",
        note=f"{said} on {data}, from {'its weights' if trained else 'fresh weights'}",
        model=model,
        new_classifier=new_classifier,
        elastic=ElasticSettings(resolutions=sides, low_memory=True) if elastic else None,
        data=DataSettings(
            spec=data,
            resolution=side,
            batch_size=4,
            detection=DetectionSettings(longest=longest, masks=masks),
        ),
        epochs=12 if trained else 36,
        optim=OptimSettings(lr=0.0025 if trained else 0.005, weight_decay=1e-4),
        schedule=ScheduleSettings("cosine", warmup_epochs=1),
        clip=35.0,
    )


def knows_others(model: nn.Module, class_names: Sequence[str] | None) -> bool:
    """Whether the model was trained on classes of other names."""
    contract = contract_of(model)
    known = None if contract is None else contract.class_names
    return known is not None and class_names is not None and set(known) != set(class_names)


def check_classes(recipe: Recipe, model: nn.Module, class_names: Sequence[str] | None) -> None:
    """Raise `LeanconvError` naming the first class that the trained `model` does not know."""
    contract = contract_of(model)
    if contract is None or contract.class_names is None or class_names is None:
        return
    try:
        match_classes(recipe.data.spec, class_names, contract.class_names, what=recipe.model)
    except LeanconvError as error:
        raise LeanconvError(f"{error}; or let it begin with a fresh classifier: --new-classifier") from error


def load_teacher(
    folder: str | Path, data: ImageData | VideoData | None = None, *, trust_code: bool = False
) -> nn.Module:
    """The trained network in a run folder or a saved model, for another one to learn from, on `data`.

    Raises `LeanconvError` where it would teach something else: its outputs are of other classes, or in another order,
    or its inputs are normalised otherwise; and as `load`.
    """
    from leanconv.build import load

    teacher = load(saved_model(folder), trust_code=trust_code)
    contract = contract_of(teacher)
    if contract is None or data is None:
        return teacher
    pairs = zip((*contract.mean, *contract.std), (*data.mean, *data.std), strict=False)
    if len(contract.mean) != len(data.mean) or any(abs(theirs - ours) > _ALIKE for theirs, ours in pairs):
        theirs, ours = (", ".join(f"{value:.3f}" for value in side) for side in (contract.mean, data.mean))
        raise LeanconvError(
            f"the teacher {folder} sees inputs with mean {theirs} and a std of its own, the student {ours}: it would"
            f" say something else than it knows; give the student the same: data.mean={list(contract.mean)},"
            f" data.std={list(contract.std)} (of videos data.video.mean, data.video.std)"
        )
    if contract.class_names is not None:
        names, known = data.class_names, contract.class_names
        places, _ = match_classes("the student", names, known, what=f"the teacher {folder}")
        if places != tuple(range(len(known))):
            where = next(number for number, place in enumerate(places) if place != number)
            raise LeanconvError(
                f"the teacher {folder} has its classes in another order than the student: output {where} is"
                f" {known[where]!r} there and {names[where]!r} here; train one of them with the other's classes"
            )
    return teacher


class Taken(NamedTuple):
    """Names of the tensors that were copied, of those inflated in time, and of those left as they were drawn."""

    copied: tuple[str, ...]
    inflated: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.copied)} tensors taken over"
        if self.inflated:
            text += f", {len(self.inflated)} inflated from images"
        if self.fresh:
            text += f", {len(self.fresh)} fresh ({', '.join(self.fresh[:3])}{', ...' * (len(self.fresh) > 3)})"
        return text


def take_weights(net: nn.Module, folder: str | Path, *, num_classes: int, trust_code: bool = False) -> Taken:
    """Give `net` the weights of the run or saved model in `folder`, in place; returns what became of every tensor.

    Kernels of an image network (out, in, h, w) are repeated in time and divided by their new length, as I3D does. The
    classifier, found by its `num_classes` rows, stays fresh where the other network had other classes; so does what
    the other network has not got. Raises `CheckpointError` when anything else does not fit, and as `load`.
    """
    from leanconv.build import load
    from leanconv.rewrites.inflate import inflated_kernel

    given_net = load(saved_model(folder), trust_code=trust_code)
    if (contract := contract_of(given_net)) is not None and len(contract.mean) == 3:
        attach(net, contract)  # until the run has its own: what was learnt there is of pixels that were normalised so
    if isinstance(given_net, ElasticNet):
        given_net.drop_calibrations()  # what was calibrated there is of those weights and images
    source: dict[str, Tensor] = given_net.state_dict()
    target: dict[str, Tensor] = net.state_dict()
    copied, inflated, wrong = [], [], [name for name in source if name not in target]
    with torch.no_grad():
        for name, mine in target.items():
            given = source.get(name)
            if given is None:
                continue
            if given.shape == mine.shape:
                mine.copy_(given)
                copied.append(name)
            elif given.ndim == 4 and mine.ndim == 5 and given.shape == (*mine.shape[:2], *mine.shape[3:]):
                mine.copy_(inflated_kernel(given, mine.shape[2], "mean"))
                inflated.append(name)
            elif given.shape[1:] != mine.shape[1:] or mine.shape[:1] != (num_classes,):
                wrong.append(f"{name} {tuple(given.shape)} for {tuple(mine.shape)}")
    if wrong:
        raise CheckpointError(
            f"{folder}: its weights are not for this network: {len(wrong)} of {len(source)} tensors have no place in"
            f" it, for example {', '.join(wrong[:3])}: give the same network and options, or another folder"
        )
    done = {*copied, *inflated}
    return Taken(tuple(copied), tuple(inflated), tuple(name for name in target if name not in done))
