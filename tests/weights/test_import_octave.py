"""Octave networks of other projects: the same values, all names accounted for. The containers are the projects' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import Drawn
from foreign_octave import (
    dli14_mobilenet,
    dli14_resnet,
    gluon,
    gluon_mobilenet_v1,
    gluon_mobilenet_v2,
    gluon_resnet,
    symbol,
    symbol_densenet,
    symbol_resnet,
)
from torch import Tensor, nn
from torchvision.models import DenseNet
from writers import params, symbol_params, tar

from leanconv.build import create_model
from leanconv.errors import CheckpointError
from leanconv.nets.resnet import ResNet
from leanconv.rewrites import Octave, rewrite
from leanconv.weights import FORMATS, fill, find_format, key_map, read_tensors

CLASSES = 7
TINY = (1, 2, 1, 1)
SIZE = (3, 64, 64)
Forward = Callable[[Drawn, Tensor], Tensor]


def octave(net: nn.Module, alpha: float, where: str = "") -> nn.Module:
    """As the zoo makes its own, at less depth."""
    return rewrite(net, Octave(alpha=alpha, where=where, full_stride="pool"), size=SIZE).model


def resnet(alpha: float, where: str = "", **options: Any) -> nn.Module:
    net = ResNet(TINY, num_classes=CLASSES, **options)
    return octave(net, alpha, where) if alpha else net


def zoo(name: str, **options: Any) -> nn.Module:
    return create_model(name, num_classes=CLASSES, **options)


Row = tuple[str, Callable[[], Drawn], Forward, Callable[[], nn.Module]]

NETWORKS: dict[str, Row] = {
    "d-li14 ResNet": ("octconv-pytorch", Drawn, lambda n, x: dli14_resnet(n, x, TINY, CLASSES), lambda: resnet(0.5)),
    "d-li14 MobileNetV1": (
        "octconv-pytorch", Drawn, lambda n, x: dli14_mobilenet(n, x, CLASSES), lambda: zoo("oct_mobilenet_v1"),
    ),
    "Symbol ResNet": (
        "octconv-symbol", symbol, lambda n, x: symbol_resnet(n, x, TINY, 0.25, CLASSES),
        lambda: resnet(0.25, pre_activation=True),
    ),
    "Symbol ResNet without octaves": (
        "octconv-symbol", symbol, lambda n, x: symbol_resnet(n, x, TINY, None, CLASSES),
        lambda: resnet(0, pre_activation=True),
    ),
    "Symbol SE-ResNet": (
        "octconv-symbol", symbol, lambda n, x: symbol_resnet(n, x, TINY, 0.125, CLASSES, gate=True),
        lambda: resnet(0.125, pre_activation=True, se=True),
    ),
    "Symbol SE-ResNet without octaves": (
        "octconv-symbol", symbol, lambda n, x: symbol_resnet(n, x, TINY, None, CLASSES, gate=True),
        lambda: resnet(0, pre_activation=True, se=True),
    ),
    "Symbol ResNeXt": (
        "octconv-symbol", symbol, lambda n, x: symbol_resnet(n, x, TINY, 0.25, CLASSES, groups=32, widen=2),
        lambda: resnet(0.25, pre_activation=True, groups=32, width_per_group=4),
    ),
    "Symbol DenseNet": (
        "octconv-symbol", symbol, lambda n, x: symbol_densenet(n, x, (2, 2, 2, 2), 0.25, CLASSES),
        lambda: octave(DenseNet(block_config=(2, 2, 2, 2), num_classes=CLASSES), 0.25),
    ),
    "Gluon ResNet": ("octconv-gluon", gluon, lambda n, x: gluon_resnet(n, x, TINY, 0.5, CLASSES), lambda: resnet(0.5)),
    "Gluon ResNet v1f": (
        "octconv-gluon", gluon, lambda n, x: gluon_resnet(n, x, TINY, 0.125, CLASSES, version="v1f"),
        lambda: resnet(0.125, "!stem.*", stem="deep_residual", stride_at="conv3"),
    ),
    "Gluon SE-ResNet v1e": (
        "octconv-gluon", gluon, lambda n, x: gluon_resnet(n, x, TINY, 0.125, CLASSES, version="v1e", se=True),
        lambda: resnet(0.125, "!stem.*", stem="deep", stride_at="conv3", se=True, input_norm=True),
    ),
    "Gluon MobileNetV1": (
        "octconv-gluon", gluon, lambda n, x: gluon_mobilenet_v1(n, x, 0.375, CLASSES, 0.75),
        lambda: zoo("oct_mobilenet_v1", alpha=0.375, multiplier=0.75),
    ),
    "Gluon MobileNetV2": (
        "octconv-gluon", gluon, lambda n, x: gluon_mobilenet_v2(n, x, 0.5, CLASSES, 1.125),
        lambda: zoo("oct_mobilenet_v2", alpha=0.5, multiplier=1.125),
    ),
}  # fmt: skip

R50, R152 = (3, 4, 6, 3), (3, 8, 36, 3)

DEEP: dict[str, Row] = {
    "d-li14 ResNet-50": (
        "octconv-pytorch", Drawn, lambda n, x: dli14_resnet(n, x, R50, CLASSES), lambda: zoo("oct_resnet50"),
    ),
    "Symbol SE-ResNet-50": (
        "octconv-symbol", symbol, lambda n, x: symbol_resnet(n, x, R50, 0.125, CLASSES, gate=True),
        lambda: zoo("oct_se_resnet50", alpha=0.125, pre_activation=True),
    ),
    "Symbol ResNeXt-50": (
        "octconv-symbol", symbol, lambda n, x: symbol_resnet(n, x, R50, 0.25, CLASSES, groups=32, widen=2),
        lambda: zoo("oct_resnext50", alpha=0.25, pre_activation=True),
    ),
    "Symbol DenseNet-121": (
        "octconv-symbol", symbol, lambda n, x: symbol_densenet(n, x, (6, 12, 24, 16), 0.25, CLASSES),
        lambda: zoo("oct_densenet121"),
    ),
    "Gluon ResNet-152 v1f": (
        "octconv-gluon", gluon, lambda n, x: gluon_resnet(n, x, R152, 0.125, CLASSES, version="v1f"),
        lambda: zoo("oct_resnet152_deep"),
    ),
    "Gluon SE-ResNet-152 v1e": (
        "octconv-gluon", gluon, lambda n, x: gluon_resnet(n, x, R152, 0.125, CLASSES, version="v1e", se=True),
        lambda: zoo("oct_se_resnet152_deep"),
    ),
}  # fmt: skip


def written(tensors: dict[str, Tensor], format: str, folder: Path) -> Path:
    """In the container that the project uses."""
    if format == "octconv-pytorch":
        torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}}, folder / "w.pth.tar")
        return folder / "w.pth.tar"
    if format == "octconv-symbol":
        return tar(folder / "a02.tar", net_dot_params=symbol_params(tensors), net_dot_json=b"{}")
    (folder / "w.params").write_bytes(params(tensors))
    return folder / "w.params"


def same_function(label: str, folder: Path) -> None:
    format, start, forward, make = {**NETWORKS, **DEEP}[label]
    drawn, x = start(), torch.randn(2, *SIZE, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        wanted = forward(drawn, x)
    net = make().double().eval()
    read = read_tensors(written(drawn.tensors, format, folder))
    done = fill(net, read, find_format(read, own=net.state_dict()), source=label)
    assert (done.format, done.tensors + len(done.passed_over)) == (format, len(drawn.tensors))
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("label", NETWORKS)
def test_the_imported_network_computes_what_theirs_does(label: str, tmp_path: Path) -> None:
    same_function(label, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("label", DEEP)
def test_the_deep_networks_too(label: str, tmp_path: Path) -> None:
    same_function(label, tmp_path)


def test_half_precision_files_are_read() -> None:
    """The authors' released Gluon arrays are probably of float16."""
    drawn, x = gluon(), torch.randn(1, 3, 64, 64)
    gluon_mobilenet_v1(drawn, x, 0.5, CLASSES)
    halves = {name: value.half() for name, value in drawn.tensors.items()}
    net = create_model("oct_mobilenet_v1", num_classes=CLASSES).eval()
    fill(net, halves, FORMATS["octconv-gluon"], source="f")
    assert net.features[1][3].conv_hl.weight.dtype == torch.float32
    assert torch.equal(net.features[1][3].conv_hl.weight, halves["L1_B1.conv2.conv_h2l.weight"].float())


def names(format: str, net: nn.Module) -> dict[str, Any]:
    found = key_map(FORMATS[format], net.state_dict())
    assert len(set(found.values())) == len(found)
    return found


def test_names_letter_by_letter() -> None:
    open_names = names("octconv-pytorch", resnet(0.5))
    assert {name: open_names[name] for name in (
        "stem.0.conv.weight", "stem.0.bn.running_var", "layer1.0.conv1.conv.conv_hl.weight",
        "layer1.0.conv1.bn.low.bias",
        "layer2.0.shortcut.conv.conv_lh.weight", "layer2.0.shortcut.bn.high.weight", "fc.bias",
    )} == {
        "stem.0.conv.weight": "conv1.weight",
        "stem.0.bn.running_var": "bn1.running_var",
        "layer1.0.conv1.conv.conv_hl.weight": "layer1.0.conv1.conv.conv_h2l.weight",
        "layer1.0.conv1.bn.low.bias": "layer1.0.conv1.bn_l.bias",
        "layer2.0.shortcut.conv.conv_lh.weight": "layer2.0.downsample.0.conv.conv_l2h.weight",
        "layer2.0.shortcut.bn.high.weight": "layer2.0.downsample.0.bn_h.weight",
        "fc.bias": "fc.bias",
    }  # fmt: skip
    symbol_names = names("octconv-symbol", resnet(0.5, pre_activation=True))
    assert symbol_names["layer1.0.conv1.bn.weight"] == "L2_B01_conv1_bn-h_gamma"
    assert symbol_names["layer2.1.conv2.conv.conv_lh.weight"] == "L3_B02_conv2_conv-l2h_weight"
    assert symbol_names["layer2.0.shortcut.bn.low.running_mean"] == "L3_B01_conv4_bn-l_moving_mean"
    assert symbol_names["tail.0.running_var"] == "tail_bn_moving_var"
    dense = names("octconv-symbol", NETWORKS["Symbol DenseNet"][3]())
    assert dense["features.transition1.conv.conv_hl.weight"] == "L3_Trans_conv_conv-h2l_weight"
    assert dense["features.denseblock2.denselayer2.norm2.low.bias"] == "L3_B02_conv2_bn-l_beta"
    mobile = names("octconv-gluon", zoo("oct_mobilenet_v1"))
    assert mobile["features.1.3.conv_hl.weight"] == "L1_B1.conv2.conv_h2l.weight"
    assert mobile["features.2.1.low.weight"] == "L2_B0.bn1.bn_l.gamma"
    assert mobile["features.13.3.weight"] == "L5_B1.conv2.conv_h2h.weight"
    assert mobile["classifier.bias"] == "classifer.bias"


def test_what_does_not_fit_is_refused() -> None:
    drawn, x = gluon(), torch.randn(1, 3, 64, 64)
    gluon_mobilenet_v1(drawn, x, 0.5, CLASSES)
    format = FORMATS["octconv-gluon"]
    with pytest.raises(CheckpointError, match=r"a classifier \(classifier\) of 7 classes, the network one of 9"):
        fill(create_model("oct_mobilenet_v1", num_classes=9), drawn.tensors, format, source="f")
    with pytest.raises(CheckpointError, match=r"of another shape: conv1.0.weight \(file \(32, 3, 3, 3\), network \(24"):
        fill(create_model("oct_mobilenet_v1", num_classes=7, multiplier=0.75), drawn.tensors, format, source="f")
    with pytest.raises(CheckpointError, match=r"features.1.body.0.conv_hh.weight .* octconv-pytorch files, which hold"):
        key_map(FORMATS["octconv-pytorch"], create_model("oct_mobilenet_v2").state_dict())
    deep = ResNet(TINY, stem="deep")
    with pytest.raises(CheckpointError, match=r"stem.1.conv.weight of this network has no counterpart"):
        key_map(FORMATS["octconv-symbol"], deep.state_dict())
    tensors = {**drawn.tensors, "L9_B9.bn1a.bn_h.gamma": torch.ones(1)}
    net = create_model("oct_mobilenet_v1", num_classes=CLASSES)
    assert fill(net, tensors, format, source="f").passed_over == (
        "L9_B9.bn1a.bn_h.gamma (of a norm that does not use it)",
    )
    with pytest.raises(CheckpointError, match=r"1 unexpected: L9_B9.bn1a.bn_h.beta"):
        fill(net, {**drawn.tensors, "L9_B9.bn1a.bn_h.beta": torch.ones(1)}, format, source="f")


def test_another_eps_is_made_up_for_or_refused() -> None:
    drawn = symbol()
    symbol_resnet(drawn, torch.randn(1, *SIZE), TINY, None, CLASSES)
    net = resnet(0, pre_activation=True).eval()
    done = fill(net, drawn.tensors, FORMATS["octconv-symbol"], source="f")
    assert any(note.startswith("BatchNorm's eps is 0.0001 in octconv-symbol networks and 1e-05") for note in done.notes)
    assert torch.equal(net.stem[0].bn.running_var, (drawn.tensors["conv1_bn_moving_var"].double() + 9e-5).float())
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-2
    tiny = {**drawn.tensors, "conv1_bn_moving_var": torch.full((64,), 1e-3)}
    with pytest.raises(CheckpointError, match=r"running_var is too small to make up for BatchNorm's eps, 0.0001"):
        fill(net, tiny, FORMATS["octconv-symbol"], source="f")
