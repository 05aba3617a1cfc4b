"""MACs of the field's networks are what torch's own counter sees: attention written out, and half, as it counts two.

`python -m pytest -m slow tests/cost/test_walk.py` walks all of torchvision's networks for classification,
segmentation, video, optical flow and detection, and one of every model file of timm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import TIMM, detector_parts, torch_counts, torchvision_names
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leanconv.cost import measure
from leanconv.errors import LeanconvError

timm = pytest.importorskip("timm")
pytest.importorskip("torchvision")

QUICK = {
    "timm/convnext_atto", "timm/mixer_s16_224", "timm/swinv2_tiny_window8_256", "timm/vit_tiny_patch16_224",
    "resnet18", "vit_b_32", "lraspp_mobilenet_v3_large", "r3d_18", "ssd300_vgg16",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
}  # fmt: skip
"""Those that every run walks."""

Shapes = tuple[tuple[int, ...], ...]


def agree(net: nn.Module, *shapes: tuple[int, ...]) -> None:
    cost = measure(net, list(shapes))
    assert cost.total_macs == torch_counts(net, *shapes) > 0
    assert cost.conv_params <= cost.params
    modules = cost.by_module()
    assert cost.macs == sum(module.own_macs for module in modules.values()) == sum(cost.by_operator().values())
    outside = sum(cost.params_not_counted.values())
    assert outside + cost.params_not_run <= cost.params - cost.conv_params
    assert outside < 0.05 * cost.params


def walk(names: list[str]) -> list[object]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", walk([f"timm/{name}" for name in TIMM.values()]))
def test_timm(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name.removeprefix("timm/"))
    agree(net, net.pretrained_cfg["input_size"])


def test_every_model_file_of_timm_is_walked() -> None:
    assert set(TIMM) == set(timm.list_modules())
    assert {f"timm/{name}" for name in TIMM.values()} & QUICK


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=() if name in QUICK else pytest.mark.slow)
        for kind in ("", "segmentation", "video")
        for name in torchvision_names(kind)
    ],
)
def test_torchvision(kind: str, name: str) -> None:
    from torchvision.models import get_model

    options = {"weights_backbone": None} if kind == "segmentation" else {}
    options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # which are planned with tensors
        net = get_model(name, weights=None, **options).to("meta")
    side = 299 if name == "inception_v3" else 224
    agree(net, (3, 16, side, side) if kind == "video" else (3, side, side))


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_names("optical_flow"))
def test_two_images(name: str) -> None:
    from torchvision.models import get_model

    with torch.device("meta"):
        net = get_model(name, weights=None)
    agree(net, (3, 128, 128), (3, 128, 128))


@pytest.mark.parametrize("name", walk(torchvision_names("detection")))
def test_detectors(name: str) -> None:
    """Up to the choice of boxes, which reads values; a whole detector is known by part, or refused."""
    side = 320 if "320" in name else 300 if "300" in name else 800
    net = detector_parts(name)
    agree(net, (3, side, side))
    if "rcnn" in name:
        found = measure(net.net, (3, side, side))  # type: ignore[arg-type]
        assert {"body", "neck", "proposals", "boxes"} <= {part.name for part in found.parts}
        assert found.macs == sum(part.macs for part in found.parts)
    else:
        with pytest.raises(LeanconvError, match=r"chooses boxes by values, .* pass its backbone"):
            measure(net.net, (3, side, side))  # type: ignore[arg-type]


class Known(nn.Module):
    """A layer, called in its own way."""

    def __init__(self, layer: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: torch.Tensor) -> Any:
        return self.call(self.layer, x)


def low_rank(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return x @ (layer.weight.T @ layer.weight)


# What ours and torch's counter say of a run on real tensors on a CPU, where they differ, and why ours is meant.
DIFFERENCES: dict[str, tuple[nn.Module, tuple[int, ...], int, int]] = {
    "attention that is one operator on a CPU has no formula": (
        Known(nn.Identity(), lambda _, x: nn.functional.scaled_dot_product_attention(x, x, x)),
        (2, 5, 8),
        2 * 2 * 5 * 5 * 8,
        0,
    ),
    "nor has the operator of the fast path in evaluation": (
        Known(nn.MultiheadAttention(8, 2, batch_first=True), lambda m, x: m(x, x, x)[0]),
        (5, 8),
        5 * 4 * 8 * 8 + 2 * 5 * 5 * 8,
        0,
    ),
    "nor has oneDNN's LSTM": (
        Known(nn.LSTM(4, 6, batch_first=True), lambda m, x: m(x)[0]),
        (5, 4),
        5 * 4 * 6 * (4 + 6),
        0,
    ),
    "nor has nn.Bilinear": (Known(nn.Bilinear(4, 4, 3), lambda m, x: m(x, x)), (5, 4), 5 * 4 * 4 * 3, 0),
    "nor has a matrix times a vector": (Known(nn.Linear(4, 1), lambda m, x: x @ m.weight[0]), (5, 4), 20, 0),
    "it counts a product that makes a kernel": (Known(nn.Linear(8, 2), low_rank), (5, 8), 5 * 64, 5 * 64 + 8 * 2 * 8),
}


@pytest.mark.parametrize("why", DIFFERENCES)
def test_where_torchs_counter_is_known_to_differ(why: str) -> None:
    """None of the networks above has any of these in the form that it is counted in."""
    net, size, ours, theirs = DIFFERENCES[why]
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net.eval()(torch.randn(1, *size))
    assert counter.get_total_flops() == 2 * theirs
    assert measure(net, size).total_macs == ours


def test_nor_have_deformable_convolutions() -> None:
    ops = pytest.importorskip("torchvision.ops")
    net = Known(ops.DeformConv2d(3, 4, 3), lambda m, x: m(x, x.new_zeros(1, 18, 6, 6)))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        net(torch.randn(1, 3, 8, 8))
    assert (counter.get_total_flops(), measure(net, (3, 8, 8)).total_macs) == (0, 36 * 4 * 27)
