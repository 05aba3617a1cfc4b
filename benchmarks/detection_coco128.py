"""Train an elastic Mask R-CNN on COCO128 from fresh weights, and measure its query table: benchmarks/detection.md.

    torchrun --nproc_per_node 6 benchmarks/detection_coco128.py DATA OUT --how overfit --minutes 2
    python benchmarks/detection_coco128.py DATA OUT --how mutual --steps 300 --seed 1
    python benchmarks/detection_coco128.py DATA OUT --weights OUT/weights.pt

DATA is a folder with instances.json (COCO's format) and images/train2017. `overfit` trains and tests on all images,
`usnet` and `mutual` on 96 and 32 of them. Images, boxes and masks are brought to half their size once, which is still
more than the network sees. OUT gets weights.pt (in half precision; with --weights they are tested, where there is more
time, without training), table.json, table.csv, run.json and sheets of predictions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from leanconv.build import create_model
from leanconv.data.detection.data import DetectionData, open_detection
from leanconv.elastic import DetectionObjective, ElasticDetector, calibrate, make_elastic
from leanconv.query import QueryTable
from leanconv.ranks import rank_and_world
from leanconv.report.detections import draw_detections, save_sheet

WIDTHS = (1.0, 0.7, 0.4)
Sample = tuple[torch.Tensor, dict[str, torch.Tensor]]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--how", choices=("overfit", "usnet", "mutual"), default="overfit")
    parser.add_argument("--steps", type=int, default=0, help="0: as many as fit into --minutes")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8, help="over all processes")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--random", type=int, default=0, help="sub-networks beside the full and the narrowest one")
    parser.add_argument("--sides", type=int, nargs="+", default=[240, 192, 144, 96])
    parser.add_argument("--longest", type=int, default=400)
    parser.add_argument("--backbone", default="torchvision/resnet18")
    parser.add_argument("--images", type=int, default=0, help="tested on so many; 0: all")
    parser.add_argument("--calibrate", type=int, default=96, help="images for the statistics of each configuration")
    parser.add_argument("--weights", type=Path, help="of an earlier run: test them, train nothing")
    parser.add_argument("--only-train", action="store_true", help="leave the test for --weights")
    parser.add_argument("--first", type=int, default=0, help="overfit: train and test on so many of them; 0: all")
    return parser.parse_args()


def network(given: argparse.Namespace, classes: int) -> ElasticDetector:
    torch.manual_seed(given.seed)
    few = {f"rpn_{when}_nms_top_n_{mode}": 250 for when in ("pre", "post") for mode in ("train", "test")}
    model = create_model(
        "detection/mask_rcnn",
        backbone=given.backbone,
        num_classes=classes,
        min_size=given.sides[0],
        max_size=given.longest,
        channels=64,
        box_features=512,
        mask_channels=64,
        rcnn={**few, "box_batch_size_per_image": 96, "box_detections_per_img": 40},
    )
    net = make_elastic(model, widths=(WIDTHS[-1], 1.0), resolutions=given.sides)
    assert isinstance(net, ElasticDetector)
    return net


def samples(data: DetectionData, images: Any, device: torch.device) -> list[Sample]:
    """Images and objects at half their size, on the device once and for all."""
    found = []
    for one in images:
        image, target = data.sample(one, None)
        sides = (image.shape[1] // 2, image.shape[2] // 2)
        image = functional.interpolate(image[None].to(device), sides, mode="area")[0]
        masks = functional.interpolate(target["masks"][:, None].float(), sides, mode="area")[:, 0] >= 0.5
        target = {**target, "boxes": target["boxes"] / 2, "area": target["area"] / 4, "masks": masks.to(torch.uint8)}
        found.append((image, {name: value.to(device) for name, value in target.items()}))
    return found


def batches(kept: list[Sample], chunks: Any, mirrored: torch.Generator | None) -> Iterator[Any]:
    for chunk in chunks:
        images, targets = zip(*(kept[number] for number in chunk), strict=True)
        if mirrored is None:
            yield list(images), list(targets)
            continue
        flips = (torch.rand(len(chunk), generator=mirrored) < 0.5).tolist()
        pairs = [mirror(*pair) if flip else pair for flip, *pair in zip(flips, images, targets, strict=True)]
        yield [image for image, _ in pairs], [target for _, target in pairs]


def mirror(image: torch.Tensor, target: dict[str, torch.Tensor]) -> Sample:
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    boxes = torch.stack([image.shape[-1] - x2, y1, image.shape[-1] - x1, y2], 1)
    return image.flip(-1), {**target, "boxes": boxes, "masks": target["masks"].flip(-1)}


def train(given: argparse.Namespace, net: ElasticDetector, data: DetectionData, kept: list[Sample]) -> dict[str, Any]:
    rank, world = rank_and_world()
    sides = given.sides[:1] if given.how == "usnet" else given.sides
    objective: Any = DetectionObjective(net, num_random=given.random, seed=given.seed, resolutions=sides)
    runs = DistributedDataParallel(objective) if world > 1 else objective
    optimizer = torch.optim.AdamW(net.parameters(), lr=given.lr, weight_decay=1e-4)
    draws = None if given.how == "overfit" else torch.Generator().manual_seed(given.seed)
    start, step, epoch, log, done = time.perf_counter(), 0, 0, [], 0.0
    while done < 1:
        data.set_epoch(epoch)
        epoch += 1
        for images, targets in batches(kept, data.train_loader(rank=rank, world=world).chunks, draws):
            spent = time.perf_counter() - start
            progress = torch.tensor(step / given.steps if given.steps else spent / (60 * given.minutes))
            if world > 1:
                dist.broadcast(progress, 0)
            if (done := float(progress)) >= 1:
                break
            for group in optimizer.param_groups:  # a short warm-up, then a cosine over the steps or the minutes
                group["lr"] = given.lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * done))
            losses = runs(images, targets, step)
            optimizer.zero_grad(set_to_none=True)
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
            step += 1
            if step % 50 == 1 and rank == 0:
                row = {name: round(float(value.detach()), 4) for name, value in losses.items()}
                log.append({"step": step, "seconds": round(spent, 1), **row})
                print(given.out.name, log[-1], flush=True)
    return {"steps": step, "epochs": epoch, "seconds_training": round(time.perf_counter() - start, 1), "log": log}


def main() -> None:
    given = arguments()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, world = rank_and_world()
    given.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    data = open_detection(
        f"coco:{given.data / 'instances.json'},{given.data / 'images' / 'train2017'}",
        batch_size=given.batch,
        seed=given.seed,
        validation=0.0 if given.how == "overfit" else 0.25,
    )
    if given.first and given.how == "overfit":
        data.train_images = data.test_images = data.train_images[: given.first]
    net = network(given, data.num_classes).to(device).train()
    kept = samples(data, data.train_images, device)
    begun = time.perf_counter()
    torch.manual_seed(1000 * given.seed + rank)
    if given.weights:
        net.load_state_dict(torch.load(given.weights, map_location=device, weights_only=True))
        record: dict[str, Any] = {}
    else:
        record = train(given, net, data, kept)
        if rank == 0:
            halves = {name: one.half() if one.is_floating_point() else one for name, one in net.state_dict().items()}
            torch.save(halves, given.out / "weights.pt")
            (given.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    if not given.only_train:
        test(given, net, data, kept, record, begun)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def test(
    given: argparse.Namespace,
    net: ElasticDetector,
    data: DetectionData,
    kept: list[Sample],
    record: dict[str, Any],
    begun: float,
) -> None:
    """Statistics, query table and sheets of every configuration."""
    rank, world = rank_and_world()
    device = next(net.parameters()).device
    configs = [(width, side) for side in given.sides for width in WIDTHS]
    tested = samples(data, data.test_images[: given.images or None], device)
    chunks = data.train_loader(rank=rank, world=world).chunks
    calibrate(net, batches(kept, chunks, None), configs, max_images=given.calibrate, min_images=1)
    mine = [(number,) for number in range(rank, len(tested), world)]
    table = QueryTable.measure(net, batches(tested, mine, None), configs=configs, latency=False)
    if rank == 0:
        table.save(given.out / "table.json")
        table.save(given.out / "table.csv")
        settings = {name: str(value) for name, value in vars(given).items() if name not in ("data", "out")}
        record |= {"seconds": round(time.perf_counter() - begun, 1), "settings": settings, "torch": torch.__version__}
        record |= {"processes": world, "parameters": sum(p.numel() for p in net.parameters())}
        record |= {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
        (given.out / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        for row in table.rows:
            precision = {name: round(value, 3) for name, value in row.scores.items() if name.endswith(("ap", "ap50"))}
            print(given.out.name, row.config, precision, f"{row.macs / 1e9:.2f} G", flush=True)
        for width, side in ((1.0, given.sides[0]), (WIDTHS[-1], given.sides[0]), (1.0, given.sides[-1])):
            with torch.no_grad(), net.eval().at(width, side):
                found = net([image for image, _ in tested[:16]])
            pairs = zip(tested[:16], found, strict=True)
            drawn = [draw_detections(image, one, data.class_names) for (image, _), one in pairs]
            save_sheet(drawn, given.out / f"sheet_{width:g}_{side}.jpg")


if __name__ == "__main__":
    main()
