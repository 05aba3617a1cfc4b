"""MutualNet's and US-Net's files: every width that has statistics computes what theirs does, at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from foreign_mutual import Slimmable, mobilenet_v1, mobilenet_v2, resnet
from torch import Tensor

from leanconv.build import create_model, load, save
from leanconv.elastic import ElasticNet, make_elastic
from leanconv.errors import CheckpointError, NotCalibrated
from leanconv.nets import MobileNetV1
from leanconv.weights import FORMATS, fill, find_format, key_map, read_tensors

CLASSES = 7
US = tuple(round(0.25 + 0.025 * step, 3) for step in range(31))

NETWORKS: dict[str, tuple[Sequence[float], Callable[[Slimmable, Tensor], Tensor], str]] = {
    "MobileNetV1": ((0.25, 1.0), lambda n, x: mobilenet_v1(n, x, CLASSES), "elastic_mobilenet_v1"),
    "MobileNetV2": ((0.7, 0.9, 1.0), lambda n, x: mobilenet_v2(n, x, CLASSES), "elastic_mobilenet_v2"),
    "ResNet-50": ((0.9, 1.0), lambda n, x: resnet(n, x, (3, 4, 6, 3), CLASSES), "elastic_resnet50"),
    "US-Net MobileNetV1": (US, lambda n, x: mobilenet_v1(n, x, CLASSES), "elastic_mobilenet_v1"),
}


def answers(net: Slimmable, forward: Callable[[Slimmable, Tensor], Tensor], x: Tensor) -> dict[float, Tensor]:
    """The outputs at every width, the full one first, which draws the weights."""
    outputs = {}
    with torch.no_grad():
        for width in sorted(net.widths, reverse=True):
            net.width = width
            outputs[width] = forward(net, x)
    return outputs


@pytest.mark.parametrize("label", NETWORKS)
def test_every_width_computes_what_theirs_does(label: str, tmp_path: Path) -> None:
    widths, forward, name = NETWORKS[label]
    theirs, x = Slimmable(widths), torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wanted = answers(theirs, forward, x)
    state = {f"module.{key}": value for key, value in theirs.tensors.items()}
    torch.save({"model": state, "optimizer": {"state": {0: torch.ones(2)}}, "last_epoch": 249}, tmp_path / "w.pt")
    net = create_model(name, num_classes=CLASSES).eval()
    assert isinstance(net, ElasticNet)
    read = read_tensors(tmp_path / "w.pt")
    done = fill(net, read, find_format(read, own=net.state_dict()), source=label)
    assert (done.format, done.entry, done.prefix) == ("mutualnet", "model", "module.")
    told = ", ".join(f"{width:g}" for width in sorted(widths))
    assert done.notes[0].startswith(f"statistics of the widths {told} at 224 pixels are the file's")
    assert all(name.endswith("num_batches_tracked (a counter)") for name in done.passed_over)
    for width, outputs in wanted.items():
        with torch.no_grad(), net.at(width=width):
            torch.testing.assert_close(net(x), outputs, rtol=1e-5, atol=1e-5 * float(outputs.abs().max()))
    with torch.no_grad(), net.at(width=0.95, resolution=128), pytest.raises(NotCalibrated):
        net(x)


def small(widths: Sequence[float] = (0.25, 1.0)) -> ElasticNet:
    return make_elastic(MobileNetV1(num_classes=CLASSES), widths=widths, resolutions=(64, 48)).eval()


def test_statistics_survive_saving(tmp_path: Path) -> None:
    theirs, x = Slimmable((0.5, 1.0)), torch.randn(2, 3, 64, 64)
    wanted = answers(theirs, NETWORKS["MobileNetV1"][1], x)
    net = create_model("elastic_mobilenet_v1", num_classes=CLASSES, resolutions=[64, 48]).eval()
    fill(net, theirs.tensors, FORMATS["mutualnet"], source="f")
    save(net, tmp_path / "net")
    again = load(tmp_path / "net")
    assert isinstance(again, ElasticNet)
    with torch.no_grad(), again.at(width=0.5):
        torch.testing.assert_close(again(x), wanted[0.5], rtol=1e-5, atol=1e-5)


def test_widths_that_the_network_does_not_have_are_said() -> None:
    theirs = Slimmable((0.25, 0.5, 1.0))
    answers(theirs, NETWORKS["MobileNetV1"][1], torch.randn(1, 3, 64, 64))
    done = fill(small((0.4, 1.0)), theirs.tensors, FORMATS["mutualnet"], source="f")
    assert done.notes[0].startswith("statistics of the widths 0.5, 1 at 64 pixels")
    assert done.notes[1] == (
        "sets 0 of the statistics have the channels of no width of this network (0.4 to 1 in steps of 0.025): another "
        "range, or another divisor"
    )
    assert "features.0.1.bn.0.running_mean (statistics of another width)" in done.passed_over


def test_another_divisor_is_said() -> None:
    """An earlier release rounded to whole channels."""
    theirs = Slimmable((0.35, 1.0), divisor=1)
    answers(theirs, NETWORKS["MobileNetV1"][1], torch.randn(1, 3, 64, 64))
    done = fill(small(), theirs.tensors, FORMATS["mutualnet"], source="f")
    assert any("another divisor" in note for note in done.notes)
    whole = make_elastic(MobileNetV1(num_classes=CLASSES), resolutions=(64, 48), divisor=None).eval()
    assert len(fill(whole, theirs.tensors, FORMATS["mutualnet"], source="f").notes) == 1


def test_the_full_width_fills_an_ordinary_network() -> None:
    theirs, x = Slimmable((0.25, 1.0)), torch.randn(2, 3, 64, 64)
    wanted = answers(theirs, NETWORKS["MobileNetV1"][1], x)[1.0]
    net = create_model("mobilenet_v1", num_classes=CLASSES).eval()
    done = fill(net, theirs.tensors, FORMATS["mutualnet"], source="f")
    assert done.notes == ("statistics of other widths than the full one are for elastic networks",)
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_and_nothing_changed() -> None:
    theirs = Slimmable((0.25, 1.0))
    answers(theirs, NETWORKS["MobileNetV1"][1], torch.randn(1, 3, 64, 64))
    format, net = FORMATS["mutualnet"], small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    negative = {**theirs.tensors, "features.3.body.1.bn.0.running_var": torch.full((32,), -1.0)}
    with pytest.raises(CheckpointError, match=r"features.3.body.1.bn.0.running_var holds a negative variance \(-1\)"):
        fill(net, negative, format, source="f")
    lacking = {name: value for name, value in theirs.tensors.items() if name != "features.3.body.1.bn.0.running_var"}
    with pytest.raises(CheckpointError, match=r"1 missing: features.3.body.1.bn.0.running_var"):
        fill(net, lacking, format, source="f")
    narrow = {name: value for name, value in theirs.tensors.items() if ".bn.1." not in name}
    with pytest.raises(CheckpointError, match="f holds no statistics of the full width"):
        fill(net, narrow, format, source="f")
    with pytest.raises(CheckpointError, match=r"a classifier \(model.classifier\) of 7 classes, the network one of 9"):
        fill(create_model("elastic_mobilenet_v1", num_classes=9), theirs.tensors, format, source="f")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert list(net.state_dict()) == list(before)
    with pytest.raises(CheckpointError, match="has no counterpart in mutualnet files, which hold MobileNetV1"):
        key_map(format, create_model("igc_l4m8", depth=8).state_dict())
