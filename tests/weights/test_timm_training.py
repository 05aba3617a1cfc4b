"""A network that timm alone has trained: its checkpoint comes in, and `eval` counts what timm's validation counts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.utils import CheckpointSaver, ModelEmaV3, random_seed
from torch import Tensor, nn

from leanconv.cli import main

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # timm leaves the files that it reads open

CLASSES = ("2", "10", "kite")
"""timm numbers class folders in this order, others put "10" before "2"."""


class Trained(NamedTuple):
    """What timm's script leaves, the pictures, and its own answers for each of them, of both sets of weights."""

    file: Path
    photos: Path
    answers: dict[str, list[int]]
    labels: list[int]

    def right(self, which: str) -> int:
        return sum(map(int.__eq__, self.answers[which], self.labels))


def draw(root: Path, count: int, seed: int, *, mistaken: bool = False) -> None:
    """Noisy stripes of a direction for each class, as JPEG files of many shapes.

    If `mistaken` a tenth lies in the folder of another class, so that no network knows all of them.
    """
    generator = np.random.default_rng(seed)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
    for number in range(len(CLASSES)):
        for index in range(count):
            height, width = generator.integers(40, 64, 2)
            rows, columns = np.mgrid[:height, :width] / 6
            waves = np.sin((rows, columns, rows + columns)[number] + generator.uniform(0, 6))
            pixels = 128 + 25 * waves[..., None] + generator.normal(0, 50, (height, width, 3))
            name = CLASSES[(number + (mistaken and index % 10 == 0)) % len(CLASSES)]
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(
                root / name / f"{number}{index:02}.jpg", quality=90
            )


def batches(root: Path, training: bool) -> Any:
    cfg = resolve_data_config({"input_size": (3, 32, 32), "crop_pct": 0.9}, pretrained_cfg={"interpolation": "bicubic"})
    return create_loader(
        create_dataset("", root),
        input_size=cfg["input_size"],
        batch_size=16,
        is_training=training,
        interpolation=cfg["interpolation"],
        mean=cfg["mean"],
        std=cfg["std"],
        crop_pct=cfg["crop_pct"],
        scale=(0.5, 1.0),
        num_workers=0,
        use_prefetcher=False,
    )


def ask(net: nn.Module, photos: Path) -> tuple[list[int], list[int]]:
    """timm's validation: the most probable class of every test picture, and its label."""
    net.eval()
    with torch.no_grad():
        found = [(net(images).argmax(1), labels) for images, labels in batches(photos / "test", False)]
    answers, labels = (torch.cat(column).tolist() for column in zip(*found, strict=True))
    return answers, labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("timm")
    random_seed(0)
    draw(root / "photos" / "train", 24, 0)
    draw(root / "photos" / "test", 20, 1, mistaken=True)
    options = argparse.Namespace(model="test_resnet", lr=5e-3, epochs=12, data_dir=str(root), img_size=None)
    net = timm.create_model(options.model, num_classes=len(CLASSES))
    optimizer = torch.optim.AdamW(net.parameters(), options.lr)
    ema = ModelEmaV3(net, decay=0.95)
    saver = CheckpointSaver(
        net, optimizer, args=options, model_ema=ema, checkpoint_dir=str(root), recovery_dir=str(root)
    )
    for epoch in range(options.epochs):
        net.train()
        for images, labels in batches(root / "photos" / "train", True):
            loss: Tensor = nn.functional.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update(net)
        saver.save_checkpoint(epoch, metric=-loss.item())
    answers, labels = ask(net, root / "photos")
    averaged, _ = ask(ema.module, root / "photos")
    return Trained(root / "last.pth.tar", root / "photos", {"": answers, "--ema": averaged}, labels)


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments if argument != ""])
    told = capsys.readouterr()
    assert (ended.value.code or 0) == code, told.err
    return told.err if code else told.out


MADE = ("--mean", ".485,.456,.406", "--std", ".229,.224,.225", "--crop", "0.9", "--interpolation", "bicubic")


def test_the_file_is_what_timms_script_writes(trained: Trained) -> None:
    content = torch.load(trained.file, weights_only=False)
    assert {"state_dict", "state_dict_ema", "optimizer", "args", "epoch", "arch", "metric"} <= set(content)
    assert content["arch"] == "test_resnet"
    # The comparisons below say something: neither none nor all are right, and the two sets of weights differ.
    assert 0.4 < trained.right("") / 60 < 0.98
    assert trained.answers[""] != trained.answers["--ema"]


@pytest.mark.parametrize("which", ["", "--ema"])
def test_it_scores_what_timms_validation_gives(trained: Trained, which: str, tmp_path: Path, capsys: Any) -> None:
    names = ",".join(CLASSES)
    told = said(
        capsys, "import-weights", trained.file, "timm/test_resnet", "--set", "num_classes=3", "--out",
        tmp_path / "hers",
        "--size", "3,32,32", *MADE, "--no-exif", "--classes", names, which,
    )  # fmt: skip
    assert f"(entry {'state_dict_ema' if which else 'state_dict'})" in told
    csv = tmp_path / "answers.csv"
    data = ("--data", f"folder:{trained.photos}")
    figures = json.loads(said(capsys, "eval", tmp_path / "hers", *data, "--predictions", csv, "--json"))
    assert (figures["images"], figures["top1"]) == (60, trained.right(which) / 60)
    got = {line.split(",")[0]: line.split(",")[2] for line in csv.read_text().splitlines()[1:]}
    files = [str(path) for name in CLASSES for path in sorted((trained.photos / "test" / name).iterdir())]
    assert [got[file] for file in files] == [CLASSES[answer] for answer in trained.answers[which]]


def test_without_names_the_order_is_told(trained: Trained, tmp_path: Path, capsys: Any) -> None:
    """timm's order is another than the alphabet's: the figure is wrong then, and the line says what to look at."""
    common = ("import-weights", trained.file, "timm/test_resnet", "--set", "num_classes=3", "--size", "3,32,32", *MADE)
    said(capsys, *common, "--out", tmp_path / "hers")
    told = said(capsys, "eval", tmp_path / "hers", "--data", f"folder:{trained.photos}")
    assert "the network names no classes, so they are in the order 10, 2, kite, ...; timm has 2, 10, kite, ..." in told
    names = tmp_path / "names.txt"
    for text, complaint in (
        ("2,10", "--classes names 2 classes, and the network has 3 outputs"),
        ("2,10,2", "'2' is there twice"),
    ):
        assert complaint in said(capsys, *common, "--out", tmp_path / "new", "--classes", text, code=2)
        names.write_text(text.replace(",", "\n") + "\n")
        assert complaint in said(capsys, *common, "--out", tmp_path / "new", "--classes", names, code=2)
    assert not (tmp_path / "new").exists()
