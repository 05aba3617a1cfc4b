"""The zoo: every entry builds, has the options the table promises, and is what its name says."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import nn

from leanconv.build import create_model
from leanconv.cost import measure
from leanconv.elastic import ElasticNet
from leanconv.nets.resnet_cifar import BasicBlock, Subsample
from leanconv.ops import ConvChain
from leanconv.zoo import ZOO, list_models

PREFIXES = ("", "dw_", "d_", "s_", "o_", "so_")
OCTAVE = {name for name in ZOO if name.startswith(("oct_", "c2d", "i3d"))}
CSN = {name for name in ZOO if name.startswith(("resnet3d", "r2plus1d", "ir_csn", "ip_csn"))}
VIDEO = {name for name in ZOO if any(part in name for part in ("slow", "x3d"))}
SMALL = {name for name in ZOO if not any(depth in name for depth in ("32", "56", "110"))} - OCTAVE - CSN - VIDEO
SMALL |= {"oct_resnet26", "oct_mobilenet_v1", "oct_mobilenet_v2"}
SMALL -= {"elastic_vgg16", "elastic_wideresnet28_10", "wideresnet", "preact_resnet", "resnext_cifar"}


def test_every_name_of_the_paper_is_there() -> None:
    nets = {f"{p}resnet{d}{s}" for p in PREFIXES for d in (20, 32, 56, 110) for s in ("", "_imagenet40")}
    mobile = {"mobilenet_v1", "o_mobilenet_v1"}
    mobile |= {f"elastic_{n}" for n in ("mobilenet_v1", "mobilenet_v2", "resnet50", "vgg16", "wideresnet28_10")}
    octave = {f"oct_{n}" for n in ("se_resnet50", "densenet121", "mobilenet_v1", "mobilenet_v2")}
    octave |= {f"oct_resnet{d}" for d in (26, 50, 101, 152, 200)} | {"oct_resnext50", "oct_resnext101"}
    octave |= {"oct_resnet152_deep", "oct_se_resnet152_deep", "c2d_resnet50", "i3d_resnet50"}
    octave |= {"oct_c2d_resnet50", "oct_i3d_resnet50"}
    csn = {f"resnet3d_{depth}" for depth in (18, 26, 34, 50, 101, 152)}
    csn |= {"r2plus1d_34", "r2plus1d_152"}
    csn |= {
        f"{e}{n}" for e in ("", "elastic_") for n in ("slow_only_50", "slowfast_50_4x16", "slowfast_50_8x8", "x3d_m")
    }
    csn |= {f"{kind}_csn_{depth}" for kind in ("ir", "ip") for depth in (26, 50, 101, 152)}
    assert nets | mobile | octave | csn <= set(ZOO)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_builds_with_its_class_count_and_runs_forward_and_backward(name: str) -> None:
    net = create_model(name, num_classes=6)
    channels, height, width = ZOO[name].size
    x = torch.randn(2, channels, max(32, height // 4), max(32, width // 4))
    scores = net(x)
    assert scores.shape == (2, 6)
    scores.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def deep() -> Iterator[Any]:
    """The others; the deepest octave networks take seconds to build, and `tests/papers` builds and counts them."""
    for name in sorted(set(ZOO) - SMALL):
        heavy = name in OCTAVE and any(part in name for part in ("101", "152", "200", "densenet"))
        yield pytest.param(name, marks=pytest.mark.slow) if heavy else name


@pytest.mark.parametrize("name", [*deep()])
def test_deep_ones_build(name: str) -> None:
    with torch.device("meta"):
        assert isinstance(create_model(name), nn.Module)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_options(name: str) -> None:
    options = inspect.signature(ZOO[name].builder).parameters
    assert all(option.kind is option.KEYWORD_ONLY and option.default is not option.empty for option in options.values())
    assert "num_classes" in options
    if name in OCTAVE:
        assert ("multiplier" in options) == ("mobilenet" in name)
    assert ("alpha" in options) == name.startswith("oct_")
    assert ("pre_activation" in options) == (
        name in OCTAVE and "resne" in name and "3d" not in name and "2d" not in name and "deep" not in name
    )
    assert ("nonlocal_blocks" in options) == (name in OCTAVE and ("2d" in name or "3d_" in name))
    assert ("relu_between" in options) == name.startswith("ip_csn")
    assert ("space_time" in options) == name.startswith("ir_csn")
    assert ("overlap" in options) == name.startswith(("o_", "so_"))
    assert ({"widths", "resolutions"} <= set(options)) == name.startswith("elastic_")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", ["", "_imagenet40"])
def test_the_operator_is_in_the_blocks_only(prefix: str, suffix: str) -> None:
    with torch.device("meta"):
        net = create_model(f"{prefix}resnet20{suffix}")
    blocks = [m for m in net.modules() if isinstance(m, BasicBlock)]
    assert len(blocks) == 9
    kinds = {type(conv) for block in blocks for conv in (block.conv1, block.conv2)}
    assert all(issubclass(kind, ConvChain) for kind in kinds) if prefix else kinds == {nn.Conv2d}
    assert type(net.conv1) is nn.Conv2d
    option_b = bool(suffix) or prefix in ("o_", "so_")
    changes = [block.shortcut for block in blocks if not isinstance(block.shortcut, nn.Identity)]
    assert [type(change) for change in changes] == [nn.Conv2d if option_b else Subsample] * 2


def test_prefixes_differ_as_they_say() -> None:
    with torch.device("meta"):
        convs = {p: create_model(f"{p}resnet20").layer1[0].conv1 for p in PREFIXES}
    kernels = {p: [leaf.kernel_size for leaf in convs[p].convs] for p in PREFIXES if p}
    assert kernels == {
        "dw_": [(3, 3)],
        "d_": [(3, 3), (1, 1)],
        "s_": [(3, 1), (1, 3)],
        "o_": [(3, 3), (1, 1)],
        "so_": [(3, 1), (1, 3)],
    }
    assert {p: sum(isinstance(m, nn.BatchNorm2d) for m in convs[p].modules()) for p in PREFIXES if p} == {
        "dw_": 0, "d_": 1, "s_": 0, "o_": 0, "so_": 0,
    }  # fmt: skip


def test_overlap_passes_through() -> None:
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in create_model("o_resnet20", multiplier=2, overlap=g).parameters())
            for g in (0.25, 1, 4)
        ]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("name", "width", "resolution", "millions"),
    [
        ("elastic_mobilenet_v1", 0.95, 224, 518),
        ("elastic_mobilenet_v1", 0.25, 128, 13),
        ("elastic_mobilenet_v2", 0.85, 192, 187),
        ("elastic_mobilenet_v2", 0.7, 128, 57),
    ],
)
def test_elastic_mobilenets_cost_what_mutualnet_prints(name: str, width: float, resolution: int, millions: int) -> None:
    """Soft: the printed figures also count the pooling and are rounded or cut off, so they hold within one million."""
    static = cast(ElasticNet, create_model(name)).extract(width, resolution, calibrated=False)
    assert measure(static, (3, resolution, resolution)).macs / 1e6 == pytest.approx(millions, abs=1)


def test_listing_is_sorted_by_number_and_needs_no_other_library() -> None:
    assert list_models("o_resnet*")[-4:] == [f"o_resnet{d}" for d in ("56", "56_imagenet40", "110", "110_imagenet40")]
    assert set(list_models()) == set(ZOO)
    assert list_models("nothing*") == []
    code = (
        "import sys, leanconv; assert leanconv.list_models('o_*')\n"
        "bad = {'timm', 'torchvision', 'lightning'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_listing_other_libraries() -> None:
    assert "timm/resnet50" in list_models("timm/resnet*")
    assert list_models("torchvision/r3d*") == ["torchvision/r3d_18"]
