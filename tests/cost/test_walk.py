"""MACs of the field's networks are what torch's own counter sees: attention written out, and half, as it counts two.

`python -m pytest -m slow tests/cost/test_walk.py` walks all of torchvision's networks for classification,
segmentation, video, optical flow and detection, and one of every model file of timm.
"""

from __future__ import annotations

import pytest
import torch
from networks import TIMM, detector_parts, torch_counts, torchvision_names
from torch import nn

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
    """Up to the choice of boxes, which reads values: a whole detector is refused."""
    side = 320 if "320" in name else 300 if "300" in name else 800
    net = detector_parts(name)
    agree(net, (3, side, side))
    with pytest.raises(LeanconvError, match=r"reads tensor values .*pass a part of the network"):
        measure(net.net, (3, side, side))  # type: ignore[arg-type]
