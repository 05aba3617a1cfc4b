"""A ResNet-18 that timm alone has trained, and photographs as folders: what the path on the first page starts from.

    python benchmarks/photographs.py folders PHOTOS train=A.parquet val=B.parquet test=C.parquet
    python benchmarks/photographs.py train PHOTOS --out her --epochs 12 --size 64
    python benchmarks/photographs.py validate PHOTOS/test --checkpoint her/last.pth.tar --size 64

`folders` writes the images of parquet files (columns image {bytes, path} and label) as PHOTOS/PART/CLASS/NUMBER.jpg,
byte for byte. `train` is timm's own training script in short: its loader, its moving average and its `CheckpointSaver`,
which writes state_dict, state_dict_ema, optimizer, args, arch, epoch and metric; `--initial-checkpoint` goes on at
another size, say. `validate` is timm's validation: `resolve_data_config`, `create_loader`, top-1. Nothing of leanconv
is used here.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def folders(options: argparse.Namespace) -> None:
    from pyarrow import parquet

    for part, _, file in (given.partition("=") for given in options.parts):
        for number, row in enumerate(parquet.read_table(file).to_pylist()):
            label = row["label"]
            name = options.names[label] if options.names else f"class_{label}"
            folder = options.photos / part / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:05}.jpg").write_bytes(row["image"]["bytes"])


def loader(options: argparse.Namespace, root: Path, training: bool):
    import timm
    from timm.data import create_dataset, create_loader, resolve_data_config

    cfg = resolve_data_config(
        {"input_size": (3, options.size, options.size)}, pretrained_cfg=timm.get_pretrained_cfg(options.model).to_dict()
    )
    return create_loader(
        create_dataset("", root),
        input_size=cfg["input_size"],
        batch_size=options.batch_size,
        is_training=training,
        scale=(0.35, 1.0),
        color_jitter=0.2,
        interpolation=cfg["interpolation"],
        mean=cfg["mean"],
        std=cfg["std"],
        crop_pct=cfg["crop_pct"],
        num_workers=options.workers,
        use_prefetcher=False,
        persistent_workers=training,
    )


def top1(net, batches) -> tuple[int, int]:
    import torch

    net.eval()
    device = next(net.parameters()).device
    right = total = 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((net(images.to(device)).argmax(1).cpu() == labels).sum())
            total += len(labels)
    return right, total


def train(options: argparse.Namespace) -> None:
    import timm
    import torch
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import CheckpointSaver, ModelEmaV3, random_seed

    random_seed(options.seed)
    torch.set_num_threads(options.threads)
    batches = loader(options, options.photos / "train", True)
    classes = len(batches.dataset.reader.class_to_idx)
    net = timm.create_model(options.model, num_classes=classes, checkpoint_path=options.initial_checkpoint).to(
        device=options.device, memory_format=torch.channels_last
    )
    optimizer = create_optimizer_v2(net, opt="adamw", lr=options.lr, weight_decay=0.05)
    ema = ModelEmaV3(net, decay=options.ema, use_warmup=True)
    steps = len(batches)
    schedule = CosineLRScheduler(
        optimizer, options.epochs * steps, warmup_t=2 * steps, warmup_lr_init=options.lr / 20, t_in_epochs=False
    )
    options.out.mkdir(parents=True, exist_ok=True)
    saver = CheckpointSaver(
        net, optimizer, args=options, model_ema=ema, checkpoint_dir=options.out, recovery_dir=options.out, max_history=1
    )
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    for epoch in range(options.epochs):
        net.train()
        start, total = time.perf_counter(), 0.0
        for step, (images, labels) in enumerate(batches):
            schedule.step_update(epoch * steps + step)
            images = images.to(device=options.device, memory_format=torch.channels_last)
            loss = loss_of(net(images), labels.to(options.device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(net, step=epoch * steps + step)
            total += loss.item()
        right, of = top1(ema.module, loader(options, options.photos / "val", False))
        saver.save_checkpoint(epoch, metric=100 * right / of)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: loss {total / steps:.3f}, val (ema) {right} of {of}, {seconds:.0f} s", flush=True)


def validate(options: argparse.Namespace) -> None:
    import timm
    import torch
    from timm.models import load_checkpoint

    net = timm.create_model(options.model, num_classes=len(list(options.photos.iterdir())))
    load_checkpoint(net, options.checkpoint, use_ema=options.ema_weights, weights_only=False)
    torch.set_num_threads(options.threads)
    right, total = top1(net, loader(options, options.photos, False))
    print(f"{right} of {total} right: {100 * right / total:.2f} %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    for name, function in (("folders", folders), ("train", train), ("validate", validate)):
        verb = verbs.add_parser(name)
        verb.set_defaults(run=function)
        verb.add_argument("photos", type=Path)
        if name == "folders":
            verb.add_argument("parts", nargs="+", metavar="PART=FILE")
            verb.add_argument("--names", type=lambda text: text.split(","), default=None, help="of the classes")
            continue
        verb.add_argument("--model", default="resnet18")
        verb.add_argument("--size", type=int, default=96)
        verb.add_argument("--batch-size", type=int, default=64)
        verb.add_argument("--threads", type=int, default=1)
        verb.add_argument("--workers", type=int, default=1, help="processes that read pictures")
        if name == "train":
            verb.add_argument("--out", type=Path, required=True)
            verb.add_argument("--epochs", type=int, default=20)
            verb.add_argument("--initial-checkpoint", default="", help="go on from these weights, at another size, say")
            verb.add_argument("--lr", type=float, default=1e-3)
            verb.add_argument("--ema", type=float, default=0.99)
            verb.add_argument("--seed", type=int, default=0)
            verb.add_argument("--device", default="cpu")
        else:
            verb.add_argument("--checkpoint", required=True)
            verb.add_argument("--ema-weights", action="store_true")
    options = parser.parse_args()
    run = options.run
    del options.run  # a function is no setting: timm keeps the rest in its checkpoint
    run(options)


if __name__ == "__main__":
    main()
