"""`compare`: the same items for all, the difference in pairs with its interval, curves; other items are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from leanconv.build import save
from leanconv.cli import main
from leanconv.data import InputContract, attach
from leanconv.intervals import paired_difference
from leanconv.recipes import TestedRun, paired_with
from leanconv.train import Prediction

NAMES = ("dark", "light")


class Threshold(nn.Module):
    """Light is what is brighter than `level`; a convolution makes it a network that costs something."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1 / 3)
            self.conv.bias.fill_(-level)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        lighter = self.conv(x)
        return torch.cat([-lighter, lighter], 1).mean((2, 3))


def build(level: float = 0.5) -> nn.Module:
    return Threshold(level)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred even greys; the darker half is called dark."""
    root = tmp_path_factory.mktemp("grey")
    for level in range(100):
        folder = root / NAMES[level >= 50]
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), round(2.55 * level), np.uint8)).save(folder / f"{level:02d}.png")
    return root


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks that find light at their level."""
    root = tmp_path_factory.mktemp("nets")
    for name, level, names in (("good", 0.4975, NAMES), ("alike", 0.4775, NAMES), ("bad", 0.1975, NAMES),
                               ("foreign", 0.5, ("dark", "bright"))):  # fmt: skip
        net = build(level)
        attach(net, InputContract(size=(3, 8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, class_names=names))
        source = {"source": "test_compare:build", "source_options": {"level": level}}
        save(net, root / name, size=(3, 8, 8), **source)  # type: ignore[arg-type]
    curves = {"good": (0.5, 0.9, 1.0), "bad": (0.4, 0.6, 0.7)}
    for name, heights in curves.items():
        rows = [f"{epoch},{height},{height - 0.1},{min(1, height + 0.1)}" for epoch, height in enumerate(heights, 1)]
        (root / name / "metrics.csv").write_text("\n".join(["epoch,val_accuracy,val_low,val_high", *rows]) + "\n")
    return root


@pytest.fixture
def tell(nets: Path, grey: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `compare` prints."""

    def call(names: str, *arguments: object, code: int = 0) -> str:
        data = ("--trust-code", "--data", f"folder:{grey}")
        with pytest.raises(SystemExit) as caught:
            main(["compare", *(str(nets / name) for name in names.split()), *data, *map(str, arguments)])
        told = capsys.readouterr()
        assert int(caught.value.code or 0) == code, told.err
        return told.err if code else told.out

    return call


def test_differences_are_of_pairs(tell: Callable[..., str]) -> None:
    good, alike, bad = json.loads(tell("good alike bad", "--json"))
    assert [row["top1"] for row in (good, alike, bad)] == [1.0, 0.98, 0.7]
    assert good["difference"] is None
    for row, gone in ((alike, 2), (bad, 30)):
        found, wanted = row["difference"], paired_difference(0, gone, 100)
        assert (found["value"], found["interval"]) == (wanted.value, list(wanted.interval))
        assert (found["only_this"], found["only_first"]) == (0, gone)
    assert (alike["difference"]["clear"], bad["difference"]["clear"]) == (False, True)
    assert (good["params"], good["macs"], good["items"]) == (4, 3 * 64, 100)


def test_the_table_says_what_it_means(tell: Callable[..., str], nets: Path) -> None:
    text = tell("good alike bad")
    assert f"{nets / 'alike'}: these items do not tell it from {nets / 'good'}." in text
    assert f"{nets / 'bad'} is worse than {nets / 'good'}." in text
    (line,) = (line for line in text.splitlines() if line.startswith(f"{nets / 'bad'} ") and "-30.00" in line)
    assert "0 : 30" in line
    assert f"{nets / 'good'} is better than {nets / 'bad'}." in tell("bad good")


def test_curves_of_all_runs_in_one_plot(tell: Callable[..., str], tmp_path: Path) -> None:
    assert f"written: {tmp_path / 'c.png'}" in tell("good alike bad", "--out", tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert "none of these is a run folder" in tell("alike foreign", "--out", tmp_path / "d.png", code=2)
    assert not (tmp_path / "d.png").exists()


def test_what_cannot_be_compared_is_refused_by_name(tell: Callable[..., str]) -> None:
    assert "the class 'light' (1 of 2) is none of the 2 that the network knows" in tell("good foreign", code=2)
    assert "compare needs two or more" in tell("good", code=2)
    assert "is named twice" in tell("good good", code=2)


def run_of(name: str, rights: dict[str, bool], names: tuple[str, ...] = NAMES, label: int = 0) -> TestedRun:
    return TestedRun(
        name=name,
        class_names=names,
        predictions=[
            Prediction(name=item, label=label, classes=(label if right else 1 - label,), probabilities=(1.0,))
            for item, right in rights.items()
        ],
    )


def test_items_and_classes_are_matched_by_name() -> None:
    one = run_of("one", {"a": True, "b": False, "c": True})
    other = run_of("other", {"c": True, "a": False, "b": False}, names=NAMES[::-1], label=1)
    found = paired_with(one, other)
    assert (found["value"], found["only_this"], found["only_first"]) == (-1 / 3, 0, 1)
    for wrong, message in (
        (run_of("other", {"a": True, "b": False}), r"one and other have other items: 'c' \(1 of 3\) of one is none of"),
        (run_of("other", {"a": True, "b": False, "c": True, "d": True}), "'d' .1 of 4. of other is none of one"),
        (run_of("other", {"a": True, "b": False, "c": True}, names=("dark", "x")), "other classes: 'light'"),
        (run_of("other", {"a": True, "b": False, "c": True}, label=1), "a is 'dark' for one and 'light' for other"),
    ):
        with pytest.raises(ValueError, match=message):
            paired_with(one, wrong)
