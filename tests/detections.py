"""Objects in images and answers for them, and what pycocotools says of these."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as reference
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor


def scene(seed: int, images: int = 12) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Objects, and answers that are perturbed copies of them with misses and inventions; crowds and empties."""
    draws = np.random.default_rng(seed)
    found, targets = [], []
    for number in range(images):
        count = 0 if number % 5 == 4 else int(draws.integers(1, 7))
        corners = draws.uniform(0, 90, (count, 2))
        boxes = np.concatenate([corners, corners + draws.uniform(4, 60, (count, 2))], 1).clip(0, 120)
        labels = draws.integers(1, 4, count)
        crowds = (draws.random(count) < 0.2).astype(np.int64)
        kept = draws.random(count) < 0.85
        moved = boxes[kept] + draws.normal(0, 3, (int(kept.sum()), 4))
        extra = draws.uniform(0, 60, (int(draws.integers(0, 3)), 2))
        answers = np.concatenate([moved, np.concatenate([extra, extra + 30], 1)]).clip(0, 120)
        answers[:, 2:] = np.maximum(answers[:, 2:], answers[:, :2] + 4)
        named = np.concatenate([labels[kept], draws.integers(1, 4, len(extra))])
        scores = draws.permutation(np.linspace(0.1, 0.9, 997))[: len(answers)].round(3)
        scores += number * 1e-5  # no two alike
        masks = filled(boxes)
        area = np.array([float(mask.sum()) for mask in masks])
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor(labels),
                "iscrowd": torch.tensor(crowds),
                "area": torch.tensor(area, dtype=torch.float32),
                "masks": torch.from_numpy(masks),
            }
        )
        found.append(
            {
                "boxes": torch.tensor(answers, dtype=torch.float32),
                "labels": torch.tensor(named),
                "scores": torch.tensor(scores, dtype=torch.float32),
                "masks": torch.from_numpy(filled(answers)[:, None]).float(),
            }
        )
    return found, targets


def filled(boxes: Any) -> Any:
    masks = np.zeros((len(boxes), 128, 128), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.round().astype(int), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = 1
        mask[y1 : (y1 + y2) // 2, x1 : (x1 + x2) // 2] = 0
    return masks


def by_pycocotools(found: Any, targets: Any, kind: str) -> list[float]:
    truth, answers = COCO(), []
    truth.dataset = {
        "images": [{"id": number + 1, "width": 128, "height": 128} for number in range(len(targets))],
        "categories": [{"id": number} for number in (1, 2, 3)],
        "annotations": [],
    }
    for number, (answer, target) in enumerate(zip(found, targets, strict=True), 1):
        for place, box in enumerate(target["boxes"].double().tolist()):
            truth.dataset["annotations"].append(
                {
                    "id": len(truth.dataset["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(target["labels"][place]),
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": float(target["area"][place]),
                    "iscrowd": int(target["iscrowd"][place]),
                    "segmentation": reference.encode(np.asfortranarray(target["masks"][place].numpy())),
                }
            )
        for place, box in enumerate(answer["boxes"].double().tolist()):
            row = {"image_id": number, "category_id": int(answer["labels"][place])}
            row["score"] = float(answer["scores"][place])
            if kind == "segm":
                pixels = answer["masks"][place, 0].numpy().astype(np.uint8)
                row["segmentation"] = reference.encode(np.asfortranarray(pixels))
            else:
                row["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            answers.append(row)
    truth.createIndex()
    judge = COCOeval(truth, truth.loadRes(answers), kind)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return [float(value) for value in judge.stats]
