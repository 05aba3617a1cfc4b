"""What an exported file says about its input is enough to run it: the script of the tutorial knows nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_fold import lively
from torch import Tensor, nn

from documents import ROOT, blocks
from leanconv.data import InputContract, attach, open_inputs
from leanconv.deploy import FileInput, export, input_of, onnxruntime_runner
from leanconv.deploy.configurations import INDEX, export_configurations
from leanconv.deploy.examples import Examples
from leanconv.deploy.pixels import FromPixels
from leanconv.deploy.verify import random_inputs
from leanconv.elastic import make_elastic
from leanconv.elastic.width import Config
from leanconv.errors import DataError, ExportError, LeanconvError, UnknownName

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


# ------------------------------------------------------------------------------------------------ what is said in files


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that says how its input is made."""
    return export(network(), tmp_path_factory.mktemp("said") / "a.pt2", contract=CONTRACT).path


def test_the_text_has_every_field_of_the_contract() -> None:
    text = FileInput(contract=CONTRACT, dtype="uint8").to_text()
    assert FileInput.from_text(text) == FileInput(contract=CONTRACT, dtype="uint8")
    assert json.loads(text) == {"dtype": "uint8", "layout": "NCHW", **CONTRACT.to_json()}
    assert json.loads(FileInput(contract=CONTRACT.at((3, 4, 32, 32))).to_text())["layout"] == "NCTHW"
    for wrong in ("{", "[]", "{}", text.replace("uint8", "int4"), text.replace("bicubic", "cubic")):
        with pytest.raises(LeanconvError, match=r"net\.onnx: what it says about its input .* cannot be read"):
            FileInput.from_text(wrong, "net.onnx")


@pytest.mark.parametrize(("name", "told"), [("a.txt", "expected a file that"), ("b.onnx", "there is no such file")])
def test_what_is_no_exported_file(name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ExportError, match=told):
        input_of(tmp_path / name)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_damaged_files_are_called_damaged(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"\x93nothing of the kind")
    with pytest.raises(ExportError, match="or is damaged"):
        input_of(tmp_path / f"a{suffix}")


def test_a_file_without_a_contract_says_so(tmp_path: Path) -> None:
    report = export(network(), tmp_path / "a.pt2", size=(3, 32, 32))
    assert report.contract is None
    assert input_of(report.path) is None
    assert "does not say how its input is made" in report.remarks[0]


def test_the_size_is_the_contracts_or_the_contract_is_for_the_size(said: Path, tmp_path: Path) -> None:
    assert input_of(said) == FileInput(contract=CONTRACT)
    report = export(network(), tmp_path / "a.pt2", contract=CONTRACT, size=(3, 40, 40), dynamic_batch=False)
    assert report.contract == CONTRACT.at((3, 40, 40))


def test_class_names_of_another_network(tmp_path: Path) -> None:
    more = replace(CONTRACT, class_names=(*CLASSES, "fox"))
    with pytest.raises(ExportError, match="has 5 outputs, and its input contract names 6 classes"):
        export(network(), tmp_path / "a.pt2", contract=more)
    fewer = replace(CONTRACT, class_names=CLASSES[:3])
    assert "only the first 3 of them" in export(network(), tmp_path / "a.pt2", contract=fewer).remarks[0]


# ------------------------------------------------------------------------------------------------ what goes into a file


@pytest.mark.parametrize("size", [(3, 8, 8), (3, 4, 8, 8)])
def test_pixels_are_normalised_inside_as_outside(size: tuple[int, ...]) -> None:
    contract = CONTRACT.at(size)
    first = FromPixels(nn.Identity(), contract)
    pixels = torch.randint(0, 256, (2, *size), dtype=torch.uint8)
    mean, std = (torch.tensor(v).reshape(3, *[1] * (len(size) - 1)) for v in (contract.mean, contract.std))
    inputs = (pixels / 255 - mean) / std
    torch.testing.assert_close(first(pixels), inputs, atol=1e-6, rtol=1e-6)
    assert torch.equal(first.pixels(inputs), pixels)
    assert random_inputs(first, size, 2, 0)[0].dtype == torch.uint8


def test_what_cannot_be_given_pixels(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nothing says with which mean and std.*--mean R,G,B --std R,G,B"):
        export(network(), tmp_path / "a.onnx", size=(3, 32, 32), input_type="uint8")
    with pytest.raises(UnknownName, match="input type 'uint9': did you mean 'uint8'"):
        export(network(), tmp_path / "a.onnx", contract=CONTRACT, input_type="uint9")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------- fp16, int8, any size


def labelled(count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of smooth images with the labels that the network itself gives most of them."""
    draw = torch.Generator().manual_seed(1)
    small = torch.rand(count, 3, 5, 5, generator=draw)
    mean, std = (torch.tensor(v)[:, None, None] for v in (CONTRACT.mean, CONTRACT.std))
    smooth = nn.functional.interpolate(small, 32, mode="bilinear")
    inputs = ((smooth * 255).round() / 255 - mean) / std
    with torch.no_grad():
        labels = network()(inputs).argmax(1)
    labels[::5] = (labels[::5] + 1) % len(CLASSES)
    return list(zip(inputs.split(16), labels.split(16), strict=True))


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8_is_calibrated_on_some_images_and_tested_on_the_others(suffix: str, tmp_path: Path) -> None:
    report = export(
        network(), tmp_path / f"a{suffix}", contract=CONTRACT, precision="int8", data=labelled(80), calibration=20,
        input_type="uint8" if suffix == ".onnx" else "float32",
    )  # fmt: skip
    assert report.scores is not None
    assert report.scores.images == 60
    told = report.to_json()["scores"]
    assert 0.7 < told["model"] < 0.9
    assert told["model_interval"][0] < told["model"] < told["model_interval"][1]
    assert abs(told["change"]) < 0.15
    assert told["change_interval"][0] <= told["change"] <= told["change_interval"][1]
    assert 1e-4 < report.max_abs_difference / report.max_abs_output < 0.3, "int8 rounds, and no more than that"
    assert input_of(report.path) == FileInput(contract=CONTRACT, dtype=report.input_type)
    weights = report.path if suffix == ".onnx" else report.path.with_suffix(".bin")
    if suffix == ".onnx":
        graph = onnx.load(str(weights)).graph
        assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}


class Shortcut(nn.Module):
    """A residual block whose shortcut is a slice and a padding, as in the ResNets for small images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + self.b(self.a(x).relu())
        return y.relu().mean((2, 3))[:, :5]


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_int8_of_a_residual_block(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    report = export(Shortcut(), tmp_path / f"a{suffix}", contract=CONTRACT, precision="int8", data=labelled(40))
    assert report.max_abs_difference < 0.05 * report.max_abs_output


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_half_precision_is_half_as_large(suffix: str, tmp_path: Path) -> None:
    wide = nn.Sequential(nn.Conv2d(3, 128, 5), nn.ReLU(), nn.Conv2d(128, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    report = export(wide, tmp_path / f"a{suffix}", size=(3, 16, 16), precision="fp16")
    numbers = sum(p.numel() for p in wide.parameters())
    assert 2 * numbers < report.bytes < 3 * numbers
    assert 0 < report.max_abs_difference < 0.01 * report.max_abs_output


def test_calibration_sees_images_from_everywhere() -> None:
    data = labelled(160)
    examples = Examples(data, 40, seed=3)
    assert len(examples.drawn) == 40
    assert sum(len(labels) for _, labels in examples.rest) == 120
    assert len({place // 40 for place in examples._kept}) == 4
    drawn = torch.cat(examples.drawn)
    assert all(not (x == drawn).flatten(1).all(1).any() for inputs, _ in examples.rest for x in inputs)
    assert len(Examples(data[:1], 40, seed=3).drawn) == 8, "at most half"
    assert Examples(data, 0, seed=3).drawn == []
    with pytest.raises(DataError, match="calibrated on some of the images"):
        Examples([], 10, seed=0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"precision": "int8"}, "int8 needs images"),
        ({"precision": "int8", "data": [1], "path": "a.pt2"}, "int8 is for .onnx and .xml"),
        ({"precision": "int4"}, "unknown precision 'int4'"),
        ({"compiled": True}, "only .pt2 files are compiled"),
        ({"path": "a.pt2", "opset": 18}, "opset is for ONNX"),
        ({"path": "a.xml", "opset": 18}, "opset is for ONNX"),
        ({"size": [(3, 8, 8), (1, 8, 8)], "dynamic_size": True}, "dynamic size is for one input"),
        ({"size": None}, "the size of one input is not known"),
    ],
)
def test_what_no_file_can_be(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    given = {"path": "a.onnx", "size": (3, 32, 32), **options}
    with pytest.raises(LeanconvError, match=told):
        export(network(), tmp_path / given.pop("path"), **given)
    assert list(tmp_path.iterdir()) == []


def test_any_size_where_the_network_allows_it(tmp_path: Path) -> None:
    free = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    report = export(free, tmp_path / "a.onnx", size=(3, 32, 32), dynamic_size=True)
    assert report.samples == 18
    [x] = random_inputs(free, (3, 50, 37), 2, 9)
    [y] = onnxruntime_runner(report.path)(x)  # type: ignore[misc]
    torch.testing.assert_close(torch.as_tensor(y), free(x).detach(), atol=1e-5, rtol=1e-5)


class Asks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[-1] == 32 else x


@pytest.mark.parametrize(
    ("fixed", "suffix", "told"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), ".pt2", "does not run on inputs of shape"),
        (Asks(), ".pt2", "it fixes its size"),
        # Here only the comparison knows: torch writes a pooling for this size, without a word.
        pytest.param(network(), ".onnx", r"compared at \(3, 64, 96\) too", marks=pytest.mark.slow),
    ],
    ids=["flat", "asks", "pooled"],
)
def test_a_size_that_is_fixed(fixed: nn.Module, suffix: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=told):
        export(fixed, tmp_path / f"a{suffix}", size=(3, 32, 32), dynamic_size=True)
    assert list(tmp_path.iterdir()) == []


def test_every_configuration_in_one_call(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    attach(net, CONTRACT)
    elastic = make_elastic(net, widths=(0.5, 1.0), resolutions=(32, 24), size=(3, 32, 32), divisor=8)
    configs = [Config(1.0, 32), Config(0.5, 24), Config(0.5, 24)]
    reports = export_configurations(elastic, tmp_path / "all", configs, suffix=".pt2", input_type="uint8")
    names = ["width1_at32.pt2", "width0.5_at24.pt2"]
    assert [report.path for report in reports] == [tmp_path / "all" / name for name in names]
    index = json.loads((tmp_path / "all" / INDEX).read_text())
    assert [(entry["file"], entry["width"], entry["resolution"]) for entry in index] == [
        (names[0], 1.0, 32),
        (names[1], 0.5, 24),
    ]
    found = [input_of(report.path) for report in reports]
    assert found == [FileInput(contract=CONTRACT.at((3, side, side)), dtype="uint8") for side in (32, 24)]
    with pytest.raises(LeanconvError, match="resolution must be one of 32, 24"):
        export_configurations(elastic, tmp_path / "none", [Config(1.0, 32), Config(1.0, 20)], suffix=".pt2")
    with pytest.raises(ExportError, match="there is no configuration"):
        export_configurations(elastic, tmp_path / "none", [])
    assert not (tmp_path / "none").exists(), "all or nothing"


@pytest.mark.slow
def test_compiled_for_this_machine(tmp_path: Path) -> None:
    report = export(network(), tmp_path / "a.pt2", contract=CONTRACT, compiled=True)
    assert report.backend.startswith("AOTInductor")
    assert report.max_abs_difference < 1e-4
    assert input_of(report.path) == FileInput(contract=CONTRACT)


def test_running_a_file_leaves_nothing_and_reports_nothing(tmp_path: Path) -> None:
    """onnxruntime's reports begin with a file of its own in the temporary folder."""
    file = export(network(), tmp_path / "a.onnx", contract=CONTRACT).path
    (tmp_path / "tmp").mkdir()
    code = f"from leanconv.deploy import onnxruntime_runner; onnxruntime_runner({str(file)!r})"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code], env={**environment, "TMPDIR": str(tmp_path / "tmp")}, check=True)
    assert list((tmp_path / "tmp").iterdir()) == []
