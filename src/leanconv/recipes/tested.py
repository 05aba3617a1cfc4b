"""A trained network on labelled data: `evaluate`, which the verbs `eval` and `compare` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from leanconv.dryrun import ModelHolder
from leanconv.errors import LeanconvError
from leanconv.intervals import Interval
from leanconv.recipes.asked import configured
from leanconv.recipes.detected import (
    ScoredObjects,
    evaluate_objects,
    evaluate_results,
    find_detector,
    is_results,
    open_for,
    refuse_for_detector,
)
from leanconv.recipes.images import image_figures, score_images
from leanconv.recipes.load import LoadedRun, load_run
from leanconv.recipes.videos import score_videos, video_figures
from leanconv.train import Evaluation, VideoEvaluation

if TYPE_CHECKING:
    from leanconv.data import ImageData, Problem, VideoData

__all__ = ["Tested", "evaluate", "evaluate_loaded"]


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A test of a network.

    Attributes:
        result: the accuracies and every prediction; of images with `top1`, `top5` and `loss`, of whole videos with
            `clip1`, `video1` and `video5`.
        part: what was tested on: "test", "validation" or "train".
        class_names: of the outputs, in order.
        unreadable: the files that could not be read and took no part, each with its reason.
        remarks: sentences about the data that may surprise.
        configuration: of an elastic network, the width and the resolution in words; "" of any other.
        views: clips of each video and crops of each clip; None of images.
    """

    result: Evaluation | VideoEvaluation
    part: str
    class_names: tuple[str, ...]
    unreadable: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()
    configuration: str = ""
    views: tuple[int, int] | None = None

    @property
    def top1(self) -> float:
        """The share of images, or of whole videos, that were recognized, from 0 to 1."""
        return self.result.top1 if isinstance(self.result, Evaluation) else self.result.video1

    @property
    def interval(self) -> Interval:
        """The 95 % interval of `top1` (Wilson's)."""
        return self.result.intervals["top1" if isinstance(self.result, Evaluation) else "video1"]

    def figures(self, name: str) -> dict[str, Any]:
        """The test of the network called `name` in plain data, as `leanconv eval --json` prints it."""
        if isinstance(self.result, Evaluation):
            found = image_figures(self.result)
        else:
            clips, crops = self.views or (1, 1)
            found = video_figures(self.result, clips=clips, crops=crops)
        return {
            "model": name + self.configuration,
            **found,
            "part": self.part,
            "unreadable": len(self.unreadable),
            "missing": sum(problem.is_missing for problem in self.unreadable),
            "remarks": list(self.remarks),
        }


def evaluate(
    model: str | Path | nn.Module | ModelHolder,
    data: str | None = None,
    *,
    part: str | None = None,
    size: Sequence[int] | None = None,
    width: float | None = None,
    resolution: int | None = None,
    clips: int | None = None,
    crops: int | None = None,
    given: Mapping[str, Any] | None = None,
    trust_code: bool = False,
) -> Tested | ScoredObjects:
    """Test `model` on labelled images, or a network for clips on whole videos.

    Of a detector, or of a file of results in COCO's format ("found.json", with `data`), the average precision of boxes
    and masks (`ScoredObjects`) on "coco:ANNOTATIONS.json,FOLDER"; it takes `data`, `width` and `resolution`.

    Args:
        model: a network with an input contract, a saved model, a run folder, an exported file, or "hf:OWNER/NAME".
        data: "folder:DIR", "parquet:FILE", "digits", ...; of a run by default its own. What is not split yet is used
            whole.
        part: test on the "test", "validation" or "train" part that training would have instead.
        size: shape of one input, by default the model's, (3, H, W) or (3, frames, H, W).
        width, resolution: of an elastic network (resolution in pixels); by default its largest.
        clips, crops: views of each video; by default those of the run, or of the input contract.
        given: fields of `InputContract` that are said now, such as {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}; a
            model without a contract needs these two.

    Inputs are made as the input contract says, and classes are matched by name. Raises `LeanconvError` where nothing
    says how inputs are made, for a part that is not there, and for data that do not fit the network.

        tested = lc.evaluate("runs/lean", "folder:photos")
        tested.top1, tested.interval, tested.result.predictions[0]
    """
    others = {"part": part, "size": size, "clips": clips, "crops": crops, "given": given}
    if is_results(model):
        refuse_for_detector(others | {"width": width, "resolution": resolution})
        if data is None:
            raise LeanconvError(f"{model} is a file of results: say for which images with data (--data coco:...)")
        return evaluate_results(str(model), data)
    if (detector := find_detector(model, trust_code=trust_code)) is not None:
        refuse_for_detector(others)
        return evaluate_objects(detector, open_for(detector, data), width=width, resolution=resolution)
    loaded = load_run(model, data=data, size=size, given=given, part=part, trust_code=trust_code)
    return evaluate_loaded(loaded, width=width, resolution=resolution, clips=clips, crops=crops)


def evaluate_loaded(
    loaded: LoadedRun,
    *,
    width: float | None = None,
    resolution: int | None = None,
    clips: int | None = None,
    crops: int | None = None,
    predictions: Path | None = None,
    contact_sheet: Path | None = None,
) -> Tested:
    """As `evaluate`, of a network and data that are loaded; writes the files that `score_images` writes."""
    data, views = loaded.data, None
    result: Evaluation | VideoEvaluation
    with configured(loaded.network, width, resolution) as (network, which):
        if data.unit == "video":
            views = loaded.views(clips, crops)
            result = score_videos(
                network,
                cast("VideoData", data),
                clips=views[0],
                crops=views[1],
                predictions=predictions,
                contact_sheet=contact_sheet,
            )
        elif clips is not None or crops is not None:
            raise LeanconvError("this network is tested on images: clips and crops are for videos")
        else:
            result = score_images(
                network, cast("ImageData", data), predictions=predictions, contact_sheet=contact_sheet
            )
    return Tested(
        result=result,
        part=data.part,
        class_names=data.class_names,
        unreadable=data.test_problems,
        remarks=data.remarks,
        configuration=which,
        views=views,
    )
