"""What an exported file says about its input is enough to run it: the script of the tutorial knows nothing else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_fold import lively
from torch import nn

from documents import ROOT, blocks
from leanconv.data import InputContract, open_inputs
from leanconv.deploy import FileInput, export, input_of

CLASSES = ("ant", "bee", "cat", "dog", "eel")
CONTRACT = InputContract(
    size=(3, 32, 32), mean=(0.1, 0.3, 0.5), std=(0.2, 0.3, 0.4), resize="shorter_side", interpolation="bicubic",
    crop=0.875, exif=False, class_names=CLASSES,
)  # fmt: skip
RULES = [CONTRACT, replace(CONTRACT, resize="square", crop=0.8, exif=True), replace(CONTRACT, resize="whole")]


@cache
def network() -> nn.Sequential:
    """A network whose scores are how red five places are, so that its answers differ from picture to picture."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(256, len(CLASSES)),
    )  # fmt: skip
    made: nn.Sequential = lively(net).eval()
    small = torch.randn(1000, 3, 5, 5)
    smooth = nn.functional.interpolate(small, 32, mode="bicubic")
    places = small[:, 0, [0, 0, 2, 4, 4], [0, 4, 2, 0, 4]]
    with torch.no_grad():
        made[-1].weight.copy_(torch.linalg.lstsq(made[:-1](smooth), places).solution.T)
        made[-1].bias.zero_()
    return made


def photographs(root: Path, count: int = 8) -> Path:
    """Smooth pictures of many shapes in a folder for each class, some to be turned by their EXIF record."""
    draw = np.random.default_rng(0)
    for index in range(count):
        small = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        picture = small.resize(tuple(draw.integers(35, 70, 2)), Image.Resampling.BICUBIC)
        (folder := root / CLASSES[index % len(CLASSES)]).mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if index % 3 == 0 else 1
        picture.save(folder / f"{index}.jpg", quality=95, exif=exif)
    return root


def ours(net: nn.Module, contract: InputContract, root: Path) -> list[str]:
    """The class that leanconv gives each photograph of the folder, in its order."""
    data = open_inputs(f"folder:{root}", contract, testing=True, batch_size=64)
    with torch.inference_mode():
        return [CLASSES[int(k)] for inputs, _ in data.eval_loader() for k in net(inputs).argmax(1)]


def scripts() -> list[str]:
    """The Python blocks of the tutorial that run files without leanconv, in their order: ONNX, OpenVINO, torch."""
    page = blocks(ROOT / "docs" / "tutorials" / "deploy.md")
    found = [block.text for block in page if block.language == "python" and "leanconv.input" in block.text]
    found += [block.text for block in page if block.language == "python" and '"leanconv", "input"' in block.text]
    return found


def theirs(script: str, file: Path, root: Path) -> list[str]:
    """What the tutorial's `top1` gives, defined by the block for the file's format, in a Python of its own."""
    [name] = [name for name in ("lean.onnx", "lean.xml", "lean.pt2") if f'"{name}"' in script]
    prepare, rest = scripts()[0].partition("\nsession")[::2] if name != "lean.onnx" else ("", "")
    code = "\n".join((prepare if rest else "", script)).replace(f'"{name}"', repr(str(file)))
    code += f"\nimport glob\nfor file in sorted(glob.glob({str(root / '*' / '*.jpg')!r})): print(top1(file))\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "leanconv" not in [line.split()[1] for line in code.splitlines() if line.startswith(("import", "from"))]
    return done.stdout.split()


@pytest.mark.parametrize(
    ("contract", "input_type"), [(RULES[0], "uint8"), (RULES[1], "float32"), (RULES[2], "float32")]
)
def test_the_tutorials_script_sees_what_leanconv_sees(contract: InputContract, input_type: str, tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs")
    file = export(network(), tmp_path / "a.onnx", contract=contract, input_type=input_type).path
    expected = ours(network(), contract, root)
    assert len(set(expected)) > 2, "a network with a favourite would prove nothing"
    assert theirs(scripts()[0], file, root) == expected


@pytest.mark.parametrize(("suffix", "input_type"), [(".xml", "uint8"), (".pt2", "uint8"), (".xml", "float32")])
def test_so_do_its_scripts_for_other_formats(suffix: str, input_type: str, tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs")
    report = export(network(), tmp_path / f"a{suffix}", contract=CONTRACT, input_type=input_type)
    assert report.max_abs_difference < 1e-4
    assert sorted(file.name for file in tmp_path.glob("a.*")) == sorted(file.name for file in report.files)
    assert input_of(report.path) == FileInput(contract=CONTRACT, dtype=input_type)
    [script] = [text for text in scripts() if f'"lean{suffix}"' in text]
    assert theirs(script, report.path, root) == ours(network(), CONTRACT, root)
