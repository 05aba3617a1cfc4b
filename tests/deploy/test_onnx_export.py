"""A file that exists is a file that was verified, and whatever goes wrong leaves the folder as it was."""

from __future__ import annotations

import json
import logging
import resource
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
from test_fold import lively
from torch import Tensor, nn

from leanconv.deploy import ExportReport, compare, densify, export, fold, onnx_file, onnxruntime_runner
from leanconv.deploy import export as _export_function
from leanconv.elastic import make_elastic
from leanconv.errors import ExportError, LeanconvError, MissingExtra
from leanconv.ops import OPERATORS, conv_maker
from leanconv.ops.osep import OptimizedSeparableConv2d

module = sys.modules[_export_function.__module__]


def tiny(ndim: int = 2) -> Any:
    torch.manual_seed(0)
    conv, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d), 3: (nn.Conv3d, nn.BatchNorm3d)}[ndim]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[ndim]
    return lively(
        nn.Sequential(conv(3, 8, 3, stride=2, padding=1), norm(8), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(8, 5))
    )


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_any_number_of_axes_and_any_batch(ndim: int, tmp_path: Path) -> None:
    net, size = tiny(ndim), (3, *[12] * ndim)
    report = export(net, tmp_path / "net.onnx", size=size)
    assert report.path.exists()
    assert report.max_abs_difference < 1e-5
    assert report.folded == 1
    assert report.samples == 1 + 2 + 3
    assert "onnxruntime" in report.backend
    assert report.bytes == report.path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    # Independent of what export looked at: another batch size, other inputs.
    assert compare(net.eval(), onnxruntime_runner(report.path), size, batches=(7,), seed=99).max_abs < 1e-5
    graph = onnx.load(str(report.path)).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "output"]


def test_a_fixed_batch_is_one(tmp_path: Path) -> None:
    report = export(tiny(), tmp_path / "net.onnx", size=(3, 12, 12), dynamic_batch=False)
    assert onnx.load(str(report.path)).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert report.samples == 3


def test_the_model_keeps_its_mode_and_weights(tmp_path: Path) -> None:
    net = tiny().train()
    net[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    export(net, tmp_path / "net.onnx", size=(3, 12, 12))
    assert [child.training for child in net][:2] == [True, False]
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_it_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(tiny(), tmp_path / "net.onnx", size=(3, 12, 12))
        with pytest.raises(ExportError):
            export(Depends(), tmp_path / "other.onnx", size=(3, 12, 12))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert [str(warning.message) for warning in caught] == []


def test_the_warnings_of_the_model_itself_pass(tmp_path: Path) -> None:
    class Warns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            return x * 2

    with pytest.warns(UserWarning, match="mind the gap"):
        export(Warns(), tmp_path / "net.onnx", size=(3, 8))


class Several(nn.Module):
    """Outputs as `kind` gives them, and one more in training."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.aid = kind, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 99, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.training:
            return y, self.aid(y)
        low = nn.functional.avg_pool2d(y, 2)
        return {
            "dict": {"map": y, "low": low},
            "tuple": (y, None, low),
            "nested": [y, {"low": (low, y.mean((2, 3)))}],
            "alone in a tuple": (y,),
            "the input and one twice": (x, y, y),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "count"),
    [("dict", 2), ("tuple", 2), ("nested", 3), ("alone in a tuple", 1), ("the input and one twice", 3)],
)
def test_several_outputs_are_named_as_promised(kind: str, count: int, tmp_path: Path) -> None:
    report = export(Several(kind).train(), tmp_path / "net.onnx", size=(3, 12, 12))
    graph = onnx.load(str(report.path)).graph
    names = ["output"] if count == 1 else [f"output_{number}" for number in range(count)]
    assert [value.name for value in graph.output] == names
    assert not any(99 in initializer.dims for initializer in graph.initializer)  # the head for training only


def test_outputs_that_are_no_tensors_are_refused_by_name(tmp_path: Path) -> None:
    class Counted(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, float]:
            return x * 2, 3.0

    with pytest.raises(ExportError, match="it returns float among its outputs"):
        export(Counted(), tmp_path / "net.onnx", size=(3, 8))


@pytest.mark.parametrize("listed", [False, True])
def test_several_inputs(listed: bool, tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.a(a).mean((2, 3)) + self.b(b).mean((2, 3))

    class Listed(Pair):
        def forward(self, inputs: list[Tensor]) -> Tensor:  # type: ignore[override]
            return super().forward(*inputs)

    sizes = [(3, 8, 8), (1, 12, 6)]
    report = export((Listed if listed else Pair)(), tmp_path / "net.onnx", size=sizes)
    graph = onnx.load(str(report.path)).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["input_0", "input_1", "output"]
    assert report.samples == 6
    assert json.loads(json.dumps(report.to_json()))["size"] == [[3, 8, 8], [1, 12, 6]]


def test_what_fold_and_densify_return_is_taken(tmp_path: Path) -> None:
    net = nn.Sequential(OptimizedSeparableConv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    for result in (fold(net, (16, 8, 8)), densify(net, (16, 8, 8))):
        assert result.story is None
        assert export(result, tmp_path / "net.onnx", size=(16, 8, 8)).max_abs_difference < 1e-4


def test_a_network_without_values_is_refused_by_name(tmp_path: Path) -> None:
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for verb in (lambda: export(net, tmp_path / "net.onnx", size=(3, 8, 8)), lambda: fold(net, (3, 8, 8))):
        with pytest.raises(LeanconvError, match=r"0\.weight is on the meta device.*to_empty"):
            verb()


def test_outputs_that_are_infinite_in_both_are_equal(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.conv(x).mean((2, 3))
            return scores.masked_fill(scores < 0, float("-inf"))

    torch.manual_seed(0)
    report = export(Masked(), tmp_path / "net.onnx", size=(3, 18, 18))
    assert report.max_abs_output < 10


def test_large_outputs_are_judged_by_their_size(tmp_path: Path) -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp().sum(1) * 1e4  # rounding of 1e-7 is 1e-2 here

    report = export(Large(), tmp_path / "net.onnx", size=(64, 8))
    assert report.max_abs_output > 1e6


def test_without_folding_the_outputs_are_the_same(tmp_path: Path) -> None:
    report = export(tiny(), tmp_path / "net.onnx", size=(3, 12, 12), fold=False)
    assert report.folded == 0
    assert report.max_abs_difference < 1e-5


def test_folding_reaches_what_the_exporter_does_not(tmp_path: Path) -> None:
    """An interleaved group convolution ends in a shuffle, which hides the convolution from torch's own folding."""
    conv = conv_maker(OPERATORS["igc"](primary_partitions=8))
    net = lively(nn.Sequential(conv(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()))
    folded = export(net, tmp_path / "a.onnx", size=(16, 8, 8))
    plain = export(net, tmp_path / "b.onnx", size=(16, 8, 8), fold=False)
    assert operators(folded.path)["BatchNormalization"] == 0
    assert operators(plain.path)["BatchNormalization"] == 1


@pytest.mark.parametrize("opset", [18, 19, 20])
def test_the_opset_that_was_asked_for(opset: int, tmp_path: Path) -> None:
    report = export(tiny(), tmp_path / "net.onnx", size=(3, 12, 12), opset=opset)
    assert report.opset == opset
    written = onnx.load(str(report.path)).opset_import
    assert [entry.version for entry in written if entry.domain == ""] == [opset]


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 99])
def test_an_opset_that_cannot_be_written_is_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"opset {opset}"):
        export(tiny(), tmp_path / "net.onnx", size=(3, 12, 12), opset=opset)
    assert not list(tmp_path.iterdir())


def test_the_report_is_json(tmp_path: Path) -> None:
    report = export(tiny(), tmp_path / "net.onnx", size=(3, 12, 12))
    told = json.loads(json.dumps(report.to_json()))
    assert told["path"] == str(tmp_path / "net.onnx")
    assert told["size"] == [3, 12, 12]


def test_weights_beyond_one_file_go_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_SINGLE_FILE_BYTES", 1000)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    report = export(net, tmp_path / "net.onnx", size=(3, 12, 12))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert report.files == (tmp_path / "net.onnx", tmp_path / "net.onnx.data")
    assert report.bytes > 4 * 64 * 64 * 9
    # The graph refers to the weights by their final name.
    assert compare(net.eval(), onnxruntime_runner(report.path), (3, 12, 12)).max_abs < 1e-4


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Exotic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svd(x).S


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Leaves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


UNEXPORTABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "depends on values": (Depends, r"at `if x.sum\(\) > 0:`.*depends on values of its input"),
    "unknown operator": (Exotic, r"ONNX has no operator for aten\._linalg_svd"),
    "fixed batch": (FixedBatch, r"fixes its batch size.*dynamic_batch=False"),
    "leaves torch": (Leaves, r"at `return torch.from_numpy\(x.numpy\(\) \* 2\)`"),
}


@pytest.mark.parametrize("name", UNEXPORTABLE)
def test_the_construct_that_cannot_be_exported_is_named(name: str, tmp_path: Path) -> None:
    make, pattern = UNEXPORTABLE[name]
    with pytest.raises(ExportError, match=pattern) as caught:
        export(nn.Sequential(make()), tmp_path / "net.onnx", size=(3, 12, 12))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_difference_above_the_tolerance_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    export(tiny(), path, size=(3, 12, 12))
    before = path.read_bytes()
    real = onnxruntime_runner

    def wrong(path: Path) -> Callable[[Tensor], object]:
        runner = real(path)
        return lambda x: [y + 1e-3 for y in runner(x)]  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "onnxruntime_runner", wrong)
    with pytest.raises(ExportError, match=r"differ from torch's by up to 1\.00e-03.*tolerance 0\.0001"):
        export(tiny(), path, size=(3, 12, 12))
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == before
    assert export(tiny(), path, size=(3, 12, 12), tolerance=0.01).max_abs_difference == pytest.approx(1e-3, rel=0.01)


def test_small_outputs_are_not_waved_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny()
    with torch.no_grad():
        net[-1].weight.mul_(1e-6)
        net[-1].bias.mul_(1e-6)
    monkeypatch.setattr(module, "onnxruntime_runner", lambda path: lambda x: torch.zeros(len(x), 5))
    with pytest.raises(ExportError, match="differ from torch's"):
        export(net, tmp_path / "net.onnx", size=(3, 12, 12))
    monkeypatch.undo()
    assert export(net, tmp_path / "net.onnx", size=(3, 12, 12)).max_abs_difference < 1e-10


def test_a_file_that_onnxruntime_cannot_run(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="onnxruntime cannot load it"):
        export(nn.Conv2d(3, 4, 3).bfloat16(), tmp_path / "net.onnx", size=(3, 12, 12))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A real failure of write(): the process may not write files above 64 KiB for a moment."""
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(ExportError, match=r"new/net\.onnx: cannot be written: File too large; nothing was left"):
            export(net, tmp_path / "new" / "net.onnx", size=(3, 12, 12))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []  # nor the folder that was made for it


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError, match=r"file/net\.onnx: cannot be written"):
        export(tiny(), tmp_path / "file" / "net.onnx", size=(3, 12, 12))
    with pytest.raises(ExportError, match="cannot be written"):
        export(tiny(), "/proc/net.onnx", size=(3, 12, 12))


def test_a_missing_extra_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"'onnxscript'.*pip install 'leanconv\[export\]'"):
        export(tiny(), tmp_path / "net.onnx", size=(3, 12, 12))


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(LeanconvError, match=r"must end in \.onnx, \.xml"):
        export(tiny(), tmp_path / "net.pt", size=(3, 12, 12))
    with pytest.raises(LeanconvError, match="samples must be at least 1"):
        export(tiny(), tmp_path / "net.onnx", size=(3, 12, 12), samples=0)
    with pytest.raises(LeanconvError, match=r"does not run on inputs of shape \(1, 4, 12, 12\).*check size"):
        export(tiny(), tmp_path / "net.onnx", size=(4, 12, 12))
    assert list(tmp_path.iterdir()) == []


def test_an_elastic_network_is_many(tmp_path: Path) -> None:
    net = make_elastic(tiny(), widths=(0.5, 1.0), resolutions=(12, 8), divisor=4)
    with pytest.raises(ExportError, match=r"net\.extract"):
        export(net, tmp_path / "net.onnx", size=(3, 12, 12))
    report = export(net.extract(width=1.0), tmp_path / "net.onnx", size=(3, 12, 12))
    assert report.max_abs_difference < 1e-5


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet18", "efficientnet_b0", "densenet121")]


@pytest.mark.parametrize("name", ["mobilenetv2_100", *SLOW])
def test_known_networks(name: str, tmp_path: Path) -> None:
    net = lively(timm.create_model(name, num_classes=10))
    with torch.no_grad():  # outputs of the order of 1, as a trained network has
        net.eval()
        net.get_classifier().weight.mul_(1 / net(torch.randn(2, 3, 64, 64)).abs().max())
    report: ExportReport = export(net, tmp_path / "net.onnx", size=(3, 64, 64))
    assert report.max_abs_difference < 1e-4
    assert report.max_abs_output > 0.1


@pytest.mark.slow
def test_a_video_network(tmp_path: Path) -> None:
    import torchvision

    net = lively(torchvision.models.video.r3d_18(num_classes=5))
    report = export(net, tmp_path / "net.onnx", size=(3, 4, 32, 32))
    assert report.max_abs_difference < 1e-4
    assert report.max_abs_output > 0.1
