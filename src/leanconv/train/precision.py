"""Average precision of boxes and masks as COCO computes it, by faster-coco-eval.

Not through torchmetrics, whose wrapper of it (1.9) sorts objects into small and large otherwise and differs from
pycocotools on masks where there are crowds; a test holds this file to pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import need
from leanconv.ranks import rank_and_world

__all__ = ["SCORES", "AveragePrecision", "coco_rows", "scores_of"]

SCORES = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "recall": 8}
"""Our names and their places in COCO's summary; `ap` is the mean over intersections of .50, .55 to .95, `recall` that
of 100 answers."""

Row = dict[str, Any]


class AveragePrecision:
    """Collects detections and objects, and computes the scores of boxes and, with `masks`, of masks.

    In a distributed run every process adds its images, and all compute the scores of all of them.
    Raises `MissingExtra` without faster-coco-eval.
    """

    def __init__(self, *, masks: bool) -> None:
        try:
            import faster_coco_eval  # noqa: F401
        except ImportError as error:
            raise need("faster-coco-eval", "detect", "average precision") from error
        self.masks = masks
        self._images: list[tuple[list[Row], list[Row]]] = []  # of each image the objects and the answers

    @property
    def images(self) -> int:
        """How many this process has added."""
        return len(self._images)

    @property
    def rows(self) -> list[tuple[list[Row], list[Row]]]:
        """Of each image that any process has added the objects and the answers, as a COCO file has them."""
        return _of_all(self._images)

    def add(self, found: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]]) -> None:
        """What was found in some images, and what is in them; masks are shares (n, 1, h, w), cut at a half."""
        self.add_rows([coco_rows(answer, masks=self.masks) for answer in found], targets)

    def add_rows(self, answers: Sequence[list[Row]], targets: Sequence[dict[str, Tensor]]) -> None:
        """The same with answers as rows, see `coco_rows`."""
        for rows, target in zip(answers, targets, strict=True):
            objects = coco_rows({name: target[name] for name in target if name != "scores"}, masks=self.masks)
            for row, crowd, area in zip(objects, target["iscrowd"].tolist(), target["area"].tolist(), strict=True):
                row.update(iscrowd=int(crowd), area=float(area))
            self._images.append((objects, rows))

    def scores(self) -> dict[str, float]:
        """What `scores_of` makes of the images that any process has added."""
        return scores_of(self.rows, masks=self.masks)


def scores_of(rows: Sequence[tuple[list[Row], list[Row]]], *, masks: bool) -> dict[str, float]:
    """`box_ap`, `box_ap50`, ... and `mask_ap`, ... of the objects and answers of images, as `AveragePrecision.rows`.

    One that nothing can be said of (no small objects) is NaN.
    """
    found: dict[str, float] = {}
    for kind, by in (("box", "bbox"), *((("mask", "segm"),) if masks else ())):
        summary = _summary(rows, by)
        found |= {f"{kind}_{name}": float(summary[place]) for name, place in SCORES.items()}
    return {name: value if value >= 0 else float("nan") for name, value in found.items()}


def coco_rows(of: dict[str, Tensor], *, masks: bool) -> list[Row]:
    """A row for every box (x, y, width, height) with its label, the score where there is one, and its mask.

    Masks (n, 1, h, w) are shares, cut at a half, others (n, h, w) pixels; they become run lengths. Numbers are as exact
    as they came, so that what is written to a file and read again scores the same.
    """
    corners = of["boxes"].detach().double().cpu()
    sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    rows: list[Row] = [
        {"bbox": box, "category_id": int(label)}
        for box, label in zip(sides.tolist(), of["labels"].tolist(), strict=True)
    ]
    if "scores" in of:
        for row, score in zip(rows, of["scores"].tolist(), strict=True):
            row["score"] = float(score)
    if masks:
        given = of["masks"].detach()
        inside = (given > 0.5)[:, 0] if given.ndim == 4 else given > 0
        for row, rle in zip(rows, _run_lengths(inside), strict=True):
            row["segmentation"] = rle
    return rows


def _run_lengths(masks: Tensor) -> list[Row]:
    import numpy as np
    from faster_coco_eval.core import mask

    if not len(masks):
        return []
    flat = np.asfortranarray(masks.to(torch.uint8).permute(1, 2, 0).cpu().numpy())
    return [dict(one) for one in mask.encode(flat)]


def _of_all(mine: list[Any]) -> list[Any]:
    """The images of all processes, one behind the other."""
    world = rank_and_world()[1]
    if world == 1:
        return mine
    parts: list[Any] = [None] * world
    torch.distributed.all_gather_object(parts, mine)
    return [item for part in parts for item in part]


def _summary(images: Sequence[tuple[list[Row], list[Row]]], by: str) -> Any:
    """COCO's twelve numbers."""
    from faster_coco_eval import COCO, COCOeval_faster

    labels = sorted({row["category_id"] for pair in images for rows in pair for row in rows})
    head = {
        # Sizes are for polygons; ours are run lengths, which say their own.
        "images": [{"id": number, "width": 1, "height": 1} for number in range(1, len(images) + 1)],
        "categories": [{"id": label} for label in labels],
    }
    objects: list[Row] = []
    answers: list[Row] = []
    for number, (of_image, answered) in enumerate(images, 1):
        objects += [{**row, "id": len(objects) + place, "image_id": number} for place, row in enumerate(of_image, 1)]
        wanted = ("category_id", "score", "bbox" if by == "bbox" else "segmentation")
        answers += [{"image_id": number, **{name: row[name] for name in wanted}} for row in answered]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _indexed(COCO(), {**head, "annotations": objects})
        told = truth.loadRes(answers) if answers else _indexed(COCO(), {**head, "annotations": []})
        judge = COCOeval_faster(truth, told, iouType=by, print_function=lambda *_: None)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def _indexed(made: Any, dataset: dict[str, Any]) -> Any:
    made.dataset = dataset
    made.createIndex()
    return made
