"""The interleaved-group authors' networks and baselines, from `.params` files of their time: the same values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import Drawn
from foreign_igc import cifar_residual, igc, imagenet, plain, plain_dense
from torch import Tensor
from writers import symbol_params

from leanconv.build import create_model
from leanconv.errors import CheckpointError
from leanconv.weights import FORMATS, fill, find_format, key_map, read_tensors

CLASSES = 7
L100 = (100, (200, 400, 800, 1600), (100, 200, 400, 800))

NETWORKS: dict[str, tuple[Callable[[Drawn, Tensor], Tensor], str, dict[str, Any], int]] = {
    "plain L4M8": (lambda n, x: plain(n, x, 4, 8, 2, CLASSES), "igc_l4m8", {"depth": 8}, 32),
    "plain L24M2": (lambda n, x: plain(n, x, 24, 2, 2, CLASSES), "igc_l24m2", {"depth": 8}, 32),
    "plain RegConv": (lambda n, x: plain_dense(n, x, 16, 2, CLASSES), "regconv_w16", {"depth": 8}, 32),
    "L24M2+Ident.": (
        lambda n, x: cifar_residual(n, x, 24, 2, 2, CLASSES), "igc_l24m2", {"depth": 14, "identity": True}, 32,
    ),
    "RegConv+Ident.": (
        lambda n, x: cifar_residual(n, x, 16, 1, 2, CLASSES, dense=True), "regconv_w16",
        {"depth": 14, "identity": True}, 32,
    ),
    "ImageNet L4M32": (
        lambda n, x: imagenet(n, x, 128, (128, 256, 512, 1024), (4,) * 4, CLASSES), "igc_resnet18_l4m32", {}, 64,
    ),
    "ImageNet L100M2": (lambda n, x: imagenet(n, x, *L100, CLASSES), "igc_resnet18_l100m2", {}, 64),
    "ImageNet L100M2, script": (
        lambda n, x: imagenet(n, x, *L100, CLASSES, unit="igc"), "igc_resnet18_l100m2", {}, 64,
    ),
    "ImageNet ResNet": (
        lambda n, x: imagenet(n, x, 64, (64, 128, 256, 512), (1,) * 4, CLASSES, dense=True), "regconv_resnet18_w64",
        {}, 64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("label", NETWORKS)
def test_the_imported_network_computes_what_theirs_does(label: str, tmp_path: Path) -> None:
    forward, name, options, side = NETWORKS[label]
    drawn, x = igc(), torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    wanted = forward(drawn, x)
    (tmp_path / "net-0095.params").write_bytes(symbol_params(drawn.tensors, "before 1.0"))
    net = create_model(name, num_classes=CLASSES, **options).eval()
    read = read_tensors(tmp_path / "net-0095.params")
    done = fill(net, read, find_format(read, own=net.state_dict()), source=label)
    assert (done.format, done.tensors, done.passed_over, done.notes) == ("igc", len(drawn.tensors), (), ())
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_names_letter_by_letter() -> None:
    names = key_map(FORMATS["igc"], create_model("igc_resnet18_l4m32").state_dict())
    assert {name: names[name] for name in (
        "stem.0.weight", "stem.1.running_mean", "stages.0.0.conv1.conv1.weight", "stages.0.0.conv1.conv2.weight",
        "stages.0.0.bn1.weight", "stages.1.0.shortcut.0.weight", "stages.1.0.shortcut.1.bias", "fc.weight",
    )} == {
        "stem.0.weight": "g0_conv_weight",
        "stem.1.running_mean": "g0_bn_moving_mean",
        "stages.0.0.conv1.conv1.weight": "g1_b1_conv1_conv1_weight",
        "stages.0.0.conv1.conv2.weight": "g1_b1_conv1_conv2_weight",
        "stages.0.0.bn1.weight": "g1_b1_conv1_bn_gamma",
        "stages.1.0.shortcut.0.weight": "g2_b1_proj_conv_weight",
        "stages.1.0.shortcut.1.bias": "g2_b1_proj_bn_beta",
        "fc.weight": "fc_score_weight",
    }  # fmt: skip
    dense = key_map(FORMATS["igc"], create_model("regconv_resnet18_w64").state_dict())
    assert dense["stem.0.weight"] == "g0_weight"
    assert dense["stages.0.0.conv1.weight"] == "g1_b1_conv1_weight"
    assert dense["stages.1.0.shortcut.0.weight"] == "g2_b1_proj_weight"


def test_another_network_is_refused() -> None:
    drawn = igc()
    plain(drawn, torch.randn(1, 3, 32, 32), 4, 8, 2, CLASSES)
    format = FORMATS["igc"]
    with pytest.raises(CheckpointError, match=r"\d+ missing: g1_b3_conv1_weight"):
        fill(create_model("igc_l4m8", depth=11, num_classes=7), drawn.tensors, format, source="f")
    with pytest.raises(CheckpointError, match=r"of another shape: g0_conv_weight \(file \(32, 3, 3, 3\), network \(48"):
        fill(create_model("igc_l24m2", depth=8, num_classes=7), drawn.tensors, format, source="f")
    with pytest.raises(CheckpointError, match=r"a classifier \(fc\) of 7 classes, the network one of 10"):
        fill(create_model("igc_l4m8", depth=8), drawn.tensors, format, source="f")
    with pytest.raises(CheckpointError, match="has no counterpart in igc files, which hold interleaved-group networks"):
        key_map(format, create_model("resnet20").state_dict())
