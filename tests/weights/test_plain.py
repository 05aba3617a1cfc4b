"""One's own checkpoint into any network whose names fit: timm's, torchvision's, the zoo's, one's own function."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from leanconv.build import create_model
from leanconv.errors import CheckpointError
from leanconv.weights import FORMATS, fill, find_format, read_tensors
from leanconv.weights.plain import find_heads, share_of

PLAIN = FORMATS["plain"]


def trained(name: str, **options: Any) -> nn.Module:
    """A network whose every tensor is off its start."""
    torch.manual_seed(3)
    net = create_model(name, **options)
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1.5) if name.endswith("running_var") else value.add_(0.05 * torch.randn_like(value))
    return net.eval()


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))


MODELS = [
    ("timm/resnet18", {"num_classes": 10}),
    ("timm/efficientnet_b0", {"num_classes": 10}),
    ("timm/convnext_atto", {"num_classes": 10}),  # its stem.0.weight is VMZ's marker, too
    ("torchvision/mobilenet_v3_small", {"num_classes": 10}),
    ("oct_resnet26", {"num_classes": 10}),
    ("elastic_resnet20", {"num_classes": 10}),
    ("igc_l4m8", {"depth": 8}),
    ("test_plain:small", {}),
]


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_any_network_takes_what_its_own_training_saved(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """As timm's script leaves it: under state_dict, wrapped, beside an average, options, numbers and an optimizer."""
    source = trained(name, **options)
    state = source.state_dict()
    content = {
        "epoch": 7, "arch": name, "args": argparse.Namespace(lr=0.1), "metric": np.float64(81.25),
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "state_dict_ema": {key: torch.zeros_like(value) for key, value in state.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
    }  # fmt: skip
    torch.save(content, tmp_path / "last.pth.tar")
    net = create_model(name, **options).eval()
    read = read_tensors(tmp_path / "last.pth.tar")
    found = find_format(read, own=net.state_dict())
    done = fill(net, read, found, source="last.pth.tar")
    assert (done.format, done.tensors, done.entry) == ("plain", len(state), "state_dict")
    assert done.prefix == ("module.model." if name.startswith("elastic") else "module.")
    assert done.other_weights == ("state_dict_ema",)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("prefix", ["model.", "_orig_mod.", "module._orig_mod.", "learner.backbone.net.", "x."])
def test_any_common_prefix_comes_off_and_is_reported(prefix: str, tmp_path: Path) -> None:
    state = trained("timm/resnet18", num_classes=10).state_dict()
    save_file({f"{prefix}{key}": value for key, value in state.items()}, tmp_path / "w.safetensors")
    net = create_model("timm/resnet18", num_classes=10)
    read = read_tensors(tmp_path / "w.safetensors")
    done = fill(net, read, find_format(read, own=net.state_dict()), source="w")
    assert sorted(done.prefix.split(".")) == sorted(prefix.split("."))
    assert torch.equal(net.fc.weight, state["fc.weight"])


def test_a_prefix_that_is_not_common_is_refused_with_what_to_leave_out() -> None:
    state = trained("timm/resnet18", num_classes=10).state_dict()
    tensors = {f"model.{key}": value for key, value in state.items()} | {"criterion.weight": torch.ones(10)}
    told = r"122 of 123 names have the prefix 'model.', but not criterion.weight: leave out what belongs to no network "
    with pytest.raises(CheckpointError, match=told + r"with ignore=\['criterion.\*'\] \(--ignore\)"):
        fill(create_model("timm/resnet18", num_classes=10), tensors, PLAIN, source="f")


def test_an_elastic_network_takes_the_weights_of_the_plain_one() -> None:
    state = trained("resnet20").state_dict()
    net = create_model("elastic_resnet20")
    done = fill(net, state, find_format(state, own=net.state_dict()), source="f")
    assert (done.format, done.tensors) == ("plain", len(state))
    assert torch.equal(net.model.fc.weight, state["fc.weight"])


# ------------------------------------------------------------------------------------------------------ the classifier


def test_the_classifier_is_found_by_its_shapes_alone() -> None:
    state = trained("timm/resnet18", num_classes=10).state_dict()
    net = create_model("timm/resnet18")
    told = r"f has a classifier \(fc\) of 10 classes, the network one of 1000: build it with num_classes=10 \(--set "
    with pytest.raises(CheckpointError, match=told + r"num_classes=10\), or pass new_classifier=True"):
        fill(net, state, PLAIN, source="f")
    kept = net.fc.weight.clone()
    done = fill(net, state, PLAIN, source="f", new_classifier=True)
    assert (done.classifier, done.classifier_layers, done.tensors) == (False, ("fc",), 120)
    assert torch.equal(net.fc.weight, kept)
    assert torch.equal(net.conv1.weight, state["conv1.weight"])


def test_a_convolution_and_auxiliary_heads_are_classifiers_too() -> None:
    state = trained("torchvision/squeezenet1_1", num_classes=7).state_dict()
    with pytest.raises(CheckpointError, match=r"a classifier \(classifier.1\) of 7 classes, the network one of 1000"):
        fill(create_model("torchvision/squeezenet1_1"), state, PLAIN, source="f")
    with torch.device("meta"):
        own = create_model("torchvision/googlenet", num_classes=4, aux_logits=True, init_weights=False).state_dict()
        theirs = create_model("torchvision/googlenet", num_classes=9, aux_logits=True, init_weights=False).state_dict()
    assert find_heads(PLAIN.key_map(own, theirs), own, theirs) == ("aux1.fc2", "aux2.fc2", "fc")


def test_a_file_without_classifier_needs_a_new_one() -> None:
    state = trained("timm/resnet18").state_dict()
    backbone = {f"backbone.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    net = create_model("timm/resnet18", num_classes=3)
    with pytest.raises(CheckpointError, match=r"f holds no classifier \(fc.weight\): pass new_classifier=True"):
        fill(net, backbone, PLAIN, source="f")
    done = fill(net, backbone, PLAIN, source="f", new_classifier=True)
    assert (done.prefix, done.classifier, done.tensors) == ("backbone.", False, 120)


def test_what_is_no_classifier_is_not_taken_for_one() -> None:
    state = trained("timm/resnet18", num_classes=10).state_dict()
    net = create_model("timm/resnet18", num_classes=10)
    with pytest.raises(CheckpointError, match="which layer of this network is the classifier cannot be found"):
        fill(net, state, PLAIN, source="f", new_classifier=True)
    with pytest.raises(
        CheckpointError,
        match=r"f is no file of this network: 45 missing: layer1.0.conv3.weight, .*; 24 of another shape: layer1",
    ):
        fill(create_model("timm/resnet26", num_classes=10), state, PLAIN, source="f")
    odd = {**state, "conv1.weight": torch.ones(32, 3, 7, 7), "fc.weight": torch.ones(5, 512)}
    with pytest.raises(CheckpointError, match=r"2 of another shape: conv1.weight"):
        fill(net, odd, PLAIN, source="f")


# ---------------------------------------------------------------------------------------------------- what is refused


def changed(name: str, value: Tensor) -> dict[str, Tensor]:
    return {**trained("timm/resnet18", num_classes=10).state_dict(), name: value}


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (changed("layer1.0.bn1.running_var", torch.full((64,), -0.5)),
         r"layer1.0.bn1.running_var holds a negative variance \(-0.5\): the file is damaged"),
        (changed("bn1.bias", torch.full((64,), float("inf"))), "bn1.bias holds NaN or infinity"),
        (changed("conv1.weight", torch.ones(64, 3, 7, 7, dtype=torch.int8)),
         "conv1.weight holds int8 where the network has float32: a quantized file"),
        (changed("head.weight", torch.ones(3)),
         r"1 unexpected: head.weight; leave out what belongs to no network with ignore=\['head.\*'\] \(--ignore 'head"),
    ],
)  # fmt: skip
def test_values_and_names_that_cannot_be_right(tensors: dict[str, Tensor], told: str) -> None:
    net = create_model("timm/resnet18", num_classes=10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=told):
        fill(net, tensors, PLAIN, source="f")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Tied(nn.Module):
    """Two names of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_tied_weights_may_be_there_once_and_must_not_differ() -> None:
    state = {name: torch.randn_like(value) for name, value in Tied().state_dict().items()}
    with pytest.raises(CheckpointError, match=r"first.weight and second.weight are one tensor in this network and two"):
        fill(Tied(), state, PLAIN, source="f")
    del state["second.weight"]
    net = Tied()
    assert fill(net, state, PLAIN, source="f").tensors == 3
    assert torch.equal(net.second.weight, state["first.weight"])
    del state["first.weight"]
    with pytest.raises(CheckpointError, match=r"2 missing: first.weight, second.weight"):
        fill(net, {**state, "x.y": torch.ones(1)}, PLAIN, source="f")


def test_a_file_of_other_names_is_none() -> None:
    own = create_model("timm/resnet18").state_dict()
    with pytest.raises(
        CheckpointError, match=r"f is named as none of plain, .*, nor as the network does \(conv1.weight"
    ):
        find_format({"a.b": torch.ones(1)}, source="f", own=own)
    with pytest.raises(CheckpointError, match="f is no mmaction2 file: its names are those of plain"):
        find_format(own, "mmaction2", source="f", own=own)
    assert share_of(own, [f"net.{name}" for name in own]) == 1
