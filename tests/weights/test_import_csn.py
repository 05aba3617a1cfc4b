"""Other projects' channel-separated networks and R(2+1)D: complete both ways, the same function, all else refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_caffe2 import caffe2, csn, r2plus1d
from foreign_csn import EPS, NETWORKS, PAIRS, Affine, build
from safetensors.torch import save_file
from torch import Tensor, nn
from writers import blobs

from leanconv.build import create_model
from leanconv.errors import CheckpointError, UnknownName
from leanconv.nets.r2plus1d import Decomposed3d
from leanconv.nets.resnet3d import LAYERS_3D, resnet3d
from leanconv.ops import conv_maker
from leanconv.ops.csn import ChannelSeparated
from leanconv.weights import FORMATS, fill, find_format, import_weights, key_map, read_tensors
from leanconv.weights.csn import CsnFormat

TINY = (1, 2, 1, 1)


def ours(kind: str, layers: tuple[int, ...] = TINY, **options: Any) -> nn.Module:
    conv = conv_maker(ChannelSeparated(mode=kind), 3)  # type: ignore[arg-type]
    return resnet3d(layers=layers, conv=conv, **{"num_classes": 5, **options}).eval()


@cache
def theirs(project: str, kind: str, layers: tuple[int, ...] = TINY, classes: int = 5) -> nn.Module:
    torch.manual_seed(1)
    return build(project, kind, layers, classes)


def test_every_format_has_a_network_to_be_compared_with() -> None:
    of_csn = {name: one for name, one in FORMATS.items() if isinstance(one, CsnFormat) and name != "vmz-caffe2"}
    assert set(of_csn) == set(NETWORKS) == {project for project, _ in PAIRS}
    assert [(name, kind) for name, naming in of_csn.items() for kind in naming.middle] == [
        ("mmaction2", "ip"), ("mmaction2", "ir"), ("vmz", "ip"), ("vmz", "ir"), ("vmz", "r2plus1d"),
        ("vmz", "r2plus1d_simple"), ("pytorchvideo", "ir"), ("gluoncv", "ir"),
    ]  # fmt: skip


@pytest.mark.parametrize(("project", "kind"), PAIRS)
@pytest.mark.parametrize("depth", [50, 101, 152])
def test_map_is_complete_in_both_directions(project: str, kind: str, depth: int) -> None:
    """Every tensor of ours has exactly one of theirs, of the same shape, and none of theirs is left over."""
    with torch.device("meta"):
        mine = create_model(f"{kind}_csn_{depth}").state_dict()
        foreign = build(project, kind, LAYERS_3D[depth]).state_dict()
    names = key_map(FORMATS[project], mine)
    assert list(names) == list(mine)
    assert sorted(names.values()) == sorted(foreign)
    assert {name: mine[name].shape for name in mine} == {name: foreign[names[name]].shape for name in mine}


@pytest.mark.parametrize(
    ("project", "kind", "pairs"),
    [
        ("mmaction2", "ip", {
            "stem.0.bn.bias": "backbone.conv1.bn.bias",
            "layer2.1.conv2.conv.conv2.weight": "backbone.layer2.1.conv2.1.conv.weight",
            "layer1.0.conv2.conv.bn1.running_var": "backbone.layer1.0.conv2.0.bn.running_var",
            "layer4.0.shortcut.conv.weight": "backbone.layer4.0.downsample.conv.weight",
            "fc.bias": "cls_head.fc_cls.bias",
        }),
        ("vmz", "ir", {
            "stem.0.conv.weight": "stem.0.weight",
            "layer3.0.conv2.conv.conv1.weight": "layer3.0.conv2.0.weight",
            "layer3.0.conv2.bn.num_batches_tracked": "layer3.0.conv2.1.num_batches_tracked",
            "fc.weight": "fc.weight",
        }),
        ("vmz", "ip", {"layer1.0.conv2.conv.conv2.weight": "layer1.0.conv2.0.2.weight"}),
        ("pytorchvideo", "ir", {
            "layer2.1.conv2.bn.running_mean": "blocks.2.res_blocks.1.branch2.norm_b.running_mean",
            "layer1.0.shortcut.bn.weight": "blocks.1.res_blocks.0.branch1_norm.weight",
            "fc.weight": "blocks.5.proj.weight",
        }),
    ],
)  # fmt: skip
def test_names_letter_by_letter(project: str, kind: str, pairs: dict[str, str]) -> None:
    names = key_map(FORMATS[project], ours(kind).state_dict())
    assert {name: names[name] for name in pairs} == pairs


@pytest.mark.parametrize(("project", "kind"), PAIRS)
def test_the_imported_network_computes_what_theirs_does(project: str, kind: str, tmp_path: Path) -> None:
    foreign = theirs(project, kind)
    wrapper = {"mmaction2": "state_dict", "pytorchvideo": "model_state"}.get(project)
    state = foreign.state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "weights.pth")
    net = ours(kind, norm_eps=EPS[project])
    done = import_weights(net, tmp_path / "weights.pth", find_format(read_tensors(tmp_path / "weights.pth")))
    assert (done.format, done.tensors, done.classifier) == (project, len(state), True)
    assert done.network == f"{kind} with 1, 2, 1, 1 bottlenecks (17 layers)"
    assert done.classifier_layers == ("fc",)
    assert done.entry == (wrapper or "")
    assert done.notes == ("no file says whether the stem ends in a max pool (pool1); the network was built with it",)
    x = torch.randn(2, 3, 8, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(net(x), foreign(x), rtol=1e-4, atol=1e-5)
    assert all(int(m.num_batches_tracked) == 7 for m in net.modules() if isinstance(m, nn.BatchNorm3d))


@pytest.mark.parametrize("kind", ["ir", "ip"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_caffe2_pickles_compute_what_their_network_does(kind: str, protocol: int, tmp_path: Path) -> None:
    """Blocks are counted through there, and what is not of the network (a learning rate) is no reason to refuse."""
    drawn, clip = caffe2(), torch.randn(2, 3, 8, 48, 48)
    wanted = csn(drawn, clip, kind, TINY, 5)
    (tmp_path / "w.pkl").write_bytes(blobs({**drawn.tensors, "lr": torch.tensor(0.1)}, protocol))
    read = read_tensors(tmp_path / "w.pkl")
    assert (read.entry, read.passed_over) == ("blobs", ("lr (no tensor)",))
    net = ours(kind)
    done = fill(net, read, find_format(read), source="w.pkl")
    assert (done.format, done.tensors) == ("vmz-caffe2", len(drawn.tensors))
    assert done.network == f"{kind} with 1, 2, 1, 1 bottlenecks (17 layers)"
    with torch.no_grad():
        torch.testing.assert_close(net(clip), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_caffe2_names_of_the_deep_networks() -> None:
    names = key_map(FORMATS["vmz-caffe2"], create_model("ir_csn_152", num_classes=359).state_dict())
    assert len(set(names.values())) == len(names)
    assert {name: names[name] for name in (
        "stem.0.bn.running_var", "layer1.0.shortcut.bn.weight", "layer2.0.conv2.conv.conv1.weight",
        "layer3.35.conv3.bn.bias",
        "layer4.0.shortcut.conv.weight", "layer4.2.conv1.conv.weight", "fc.weight",
    )} == {
        "stem.0.bn.running_var": "conv1_spatbn_relu_riv",
        "layer1.0.shortcut.bn.weight": "shortcut_projection_0_spatbn_s",
        "layer2.0.conv2.conv.conv1.weight": "comp_3_conv_3_w",
        "layer3.35.conv3.bn.bias": "comp_46_spatbn_4_b",
        "layer4.0.shortcut.conv.weight": "shortcut_projection_47_w",
        "layer4.2.conv1.conv.weight": "comp_49_conv_1_w",
        "fc.weight": "last_out_L400_w",
    }  # fmt: skip


def test_caffe2_files_of_another_network_or_class_count_are_refused() -> None:
    drawn = caffe2()
    csn(drawn, torch.randn(1, 3, 8, 48, 48), "ir", TINY, 5)
    caffe = FORMATS["vmz-caffe2"]
    with pytest.raises(
        CheckpointError, match=r"f is ir with 1, 2, 1, 1 .* but the network to fill is ip with 1, 2, 1, 1"
    ):
        fill(ours("ip"), drawn.tensors, caffe, source="f")
    with pytest.raises(CheckpointError, match=r"a classifier \(fc\) of 5 classes, the network one of 9"):
        fill(ours("ir", num_classes=9), drawn.tensors, caffe, source="f")
    net = ours("ir", num_classes=9)
    assert not fill(net, drawn.tensors, caffe, source="f", new_classifier=True).classifier
    with pytest.raises(CheckpointError, match="1 missing: comp_1_conv_3_w"):
        fill(ours("ir"), {k: v for k, v in drawn.tensors.items() if k != "comp_1_conv_3_w"}, caffe, source="f")


def test_frozen_norms_of_gluoncv_become_norms_that_do_the_same() -> None:
    torch.manual_seed(1)
    foreign = build("gluoncv", "ir", TINY, 5, norm=Affine)
    state = foreign.state_dict()
    net = ours("ir")
    assert fill(net, state, find_format(state), source="f").tensors == len(state)
    clip = torch.randn(2, 3, 8, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(net(clip), foreign(clip), rtol=1e-4, atol=1e-5)
    assert int(net.stem[0].bn.running_mean.count_nonzero()) == 0


def test_safetensors_half_precision_and_data_parallel_prefix(tmp_path: Path) -> None:
    state = {
        f"module.{k}": v.half() if v.is_floating_point() else v for k, v in theirs("vmz", "ir").state_dict().items()
    }
    save_file(state, tmp_path / "weights.safetensors")
    net = ours("ir")
    import_weights(net, tmp_path / "weights.safetensors", FORMATS["vmz"])
    assert net.fc.weight.dtype == torch.float32
    assert torch.equal(net.fc.weight, state["module.fc.weight"].float())


# ------------------------------------------------------------------------------------------------------------- R(2+1)D

SHORT = (1, 1, 1, 1)
TOLD = {True: "r2plus1d with 1, 1, 1, 1 blocks (10 layers)", False: "r2plus1d with 1, 1, 1, 1 bottlenecks (14 layers)"}


def our_r2plus1d(simple: bool, **options: Any) -> nn.Module:
    stem = partial(Decomposed3d, middle=45)
    given = {"layers": SHORT, "num_classes": 5, "pool1": False, **options}
    return resnet3d(block="simple" if simple else "bottleneck", conv=Decomposed3d, stem=stem, **given).eval()


@pytest.mark.parametrize("simple", [True, False])
def test_r2plus1d_of_caffe2_computes_what_its_network_does(simple: bool, tmp_path: Path) -> None:
    drawn, clip = caffe2(), torch.randn(2, 3, 8, 32, 32)
    wanted = r2plus1d(drawn, clip, simple, SHORT, 5)
    (tmp_path / "w.pkl").write_bytes(blobs(drawn.tensors))
    net, read = our_r2plus1d(simple), read_tensors(tmp_path / "w.pkl")
    done = fill(net, read, find_format(read), source="w.pkl")
    assert (done.format, done.tensors, done.network) == ("vmz-caffe2", len(drawn.tensors), TOLD[simple])
    with torch.no_grad():
        torch.testing.assert_close(net(clip), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("simple", [True, False])
def test_r2plus1d_of_pytorch_computes_what_its_network_does(simple: bool) -> None:
    foreign = theirs("vmz", "r2plus1d_simple" if simple else "r2plus1d", SHORT)
    state, net = foreign.state_dict(), our_r2plus1d(simple)
    done = fill(net, state, find_format(state), source="f")
    assert (done.format, done.tensors, done.network) == ("vmz", len(state), TOLD[simple])
    assert done.notes[0].endswith("the network was built without it")
    clip = torch.randn(2, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(clip), foreign(clip), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "block"), [("r2plus1d_34", "comp_12_conv_2_middle_w"), ("r2plus1d_152", "")])
def test_r2plus1d_maps_are_complete(name: str, block: str) -> None:
    """As deep as they were released, in both projects' names."""
    simple, depth = name.endswith("34"), int(name.rpartition("_")[2])
    with torch.device("meta"):
        mine = create_model(name).state_dict()
        foreign = build("vmz", "r2plus1d_simple" if simple else "r2plus1d", LAYERS_3D[depth]).state_dict()
    names = key_map(FORMATS["vmz"], mine)
    assert sorted(map(str, names.values())) == sorted(foreign)
    assert {name: mine[name].shape for name in mine} == {name: foreign[str(names[name])].shape for name in mine}
    caffe = key_map(FORMATS["vmz-caffe2"], mine)
    assert len(set(caffe.values())) == len(caffe)
    wanted = {
        "stem.0.conv.spatial.weight": "conv1_middle_w",
        "stem.0.conv.bn.running_var": "conv1_middle_spatbn_relu_riv",
        "stem.0.conv.temporal.weight": "conv1_w",
        "stem.0.bn.bias": "conv1_spatbn_relu_b",
        "layer2.0.conv2.conv.bn.weight": "comp_3_spatbn_2_middle_s",
        "layer2.0.shortcut.bn.running_mean": "shortcut_projection_3_spatbn_rm",
    }
    wanted |= (
        {"layer3.5.conv2.conv.spatial.weight": block, "layer4.0.conv1.conv.temporal.weight": "comp_13_conv_1_w"}
        if simple
        else {"layer4.2.conv3.bn.running_var": "comp_49_spatbn_3_riv", "layer1.0.conv1.conv.weight": "comp_0_conv_1_w"}
    )
    assert {name: caffe[name] for name in wanted} == wanted


def test_r2plus1d_and_csn_are_not_taken_for_each_other() -> None:
    """Blocks of both have parts of the same names."""
    drawn, caffe = caffe2(), FORMATS["vmz-caffe2"]
    r2plus1d(drawn, torch.randn(1, 3, 8, 32, 32), False, SHORT, 5)
    with pytest.raises(CheckpointError, match=r"f is r2plus1d with 1, 1, 1, 1 .* but the network to fill is ip with"):
        fill(ours("ip", SHORT), drawn.tensors, caffe, source="f")
    with pytest.raises(CheckpointError, match=r"f is ip with .* but the network to fill is r2plus1d with 1, 1, 1, 1"):
        fill(our_r2plus1d(False), theirs("vmz", "ip").state_dict(), FORMATS["vmz"], source="f")
    with pytest.raises(CheckpointError, match="pytorchvideo has ir networks only, and this one is r2plus1d with"):
        key_map(FORMATS["pytorchvideo"], our_r2plus1d(False).state_dict())


def test_torchvisions_own_middle_channels_are_refused_by_shape() -> None:
    from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

    torch.manual_seed(1)
    state = VideoResNet(BasicBlock, [Conv2Plus1D] * 4, list(SHORT), R2Plus1dStem, num_classes=5).state_dict()
    with pytest.raises(CheckpointError, match=r"layer2.0.conv2.0.0.weight \(file \(230, 128, 1, 3, 3\), network \(288"):
        fill(our_r2plus1d(True), state, find_format(state), source="f")


def test_files_without_counters_are_complete() -> None:
    state = {k: v for k, v in theirs("vmz", "ip").state_dict().items() if not k.endswith("num_batches_tracked")}
    net = ours("ip")
    assert fill(net, state, FORMATS["vmz"], source="f").tensors == len(state)
    assert int(net.stem[0].bn.num_batches_tracked) == 0


def test_backbone_alone_needs_a_new_classifier() -> None:
    state = {
        k.removeprefix("backbone."): v for k, v in theirs("mmaction2", "ip").state_dict().items() if "head" not in k
    }
    naming = find_format(state)
    assert naming.name == "mmaction2"
    net = ours("ip", num_classes=9)
    kept = net.fc.weight.clone()
    with pytest.raises(
        CheckpointError, match=r"holds no classifier \(cls_head.fc_cls.weight\): pass new_classifier=True"
    ):
        fill(net, state, naming, source="f")
    done = fill(net, state, naming, source="f", new_classifier=True)
    assert not done.classifier
    assert torch.equal(net.fc.weight, kept)
    assert torch.equal(net.stem[0].conv.weight, state["conv1.conv.weight"])


def test_new_classifier_leaves_theirs_out() -> None:
    net = ours("ir", num_classes=9)
    done = fill(net, theirs("vmz", "ir").state_dict(), FORMATS["vmz"], source="f", new_classifier=True)
    assert done.tensors == len(net.state_dict()) - 2


# ---------------------------------------------------------------------------------------------------- what is refused

State = dict[str, Tensor]


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: value for key, value in state.items() if key != name}


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {key.replace(old, new): value for key, value in state.items()}


REFUSED: list[tuple[str, str, dict[str, Any], Callable[[State], State], str]] = [
    ("vmz", "ir", {"num_classes": 400}, dict, r"a classifier \(fc\) of 5 classes, the network one of 400: "
     ".*num_classes=5"),
    ("vmz", "ir", {"layers": (1, 2, 2, 1)}, dict, r"f is ir with 1, 2, 1, 1 bottlenecks \(17 layers\), but .* is ir "
     r"with 1, 2, 2, 1 bottlenecks \(20 layers\): build the one of the file"),
    ("mmaction2", "ip", {"kind": "ir"}, dict, r"f is ip with 1, 2, 1, 1 .* but the network to fill is ir"),
    ("vmz", "ip", {"kind": "ir"}, dict, "f is ip with"),
    ("vmz", "ir", {"norm_eps": 1e-5}, dict, r"vmz networks have BatchNorm eps 0.001, this one 1e-05: .*norm_eps=0.001"),
    ("pytorchvideo", "ir", {}, dict, "pytorchvideo networks have BatchNorm eps 1e-05, this one 0.001"),
    ("vmz", "ir", {}, without("layer2.1.conv3.1.bias"), "1 missing: layer2.1.conv3.1.bias"),
    ("vmz", "ir", {}, without("layer2.0.downsample.0.weight"), "1 missing: layer2.0.downsample.0.weight"),
    ("vmz", "ir", {}, lambda s: {**s, "ema.decay": torch.ones(1)}, "1 unexpected: ema.decay"),
    ("mmaction2", "ir", {}, renamed("conv3", "conv9"), r"missing: backbone.layer1.0.conv3.conv.weight, .*; \d+ "
     "unexpected: backbone.layer1.0.conv9"),
    ("vmz", "ir", {}, lambda s: {**s, "stem.0.weight": torch.ones(64, 3, 5, 7, 7)}, "1 of another shape: "
     r"stem.0.weight \(file \(64, 3, 5, 7, 7\), network \(64, 3, 3, 7, 7\)\)"),
    ("vmz", "ir", {}, lambda s: {**s, "fc.bias": torch.full((5,), float("nan"))}, "fc.bias holds NaN or infinity"),
    ("vmz", "ir", {}, renamed("layer", "block"), "f holds no vmz network"),
]  # fmt: skip


@pytest.mark.parametrize(("project", "kind", "net", "change", "match"), REFUSED)
def test_refused_and_nothing_changed(
    project: str, kind: str, net: dict[str, Any], change: Callable[[State], State], match: str
) -> None:
    model = ours(**{"kind": kind, **net})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match):
        fill(model, change(theirs(project, kind).state_dict()), FORMATS[project], source="f")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet20", "resnet3d_26", "ir_csn_26"])
def test_networks_of_other_kinds_are_refused(name: str) -> None:
    """An ordinary one, a dense 3D one, and a space-time decomposed one, which has other tensors of the same names."""
    with torch.device("meta"):
        model = create_model(name, **({"space_time": True} if "csn" in name else {}))
    with pytest.raises(
        CheckpointError, match=r"vmz files hold channel-separated networks and R\(2\+1\)D, and this is none"
    ):
        key_map(FORMATS["vmz"], model.state_dict())


def test_ip_networks_are_none_of_pytorchvideos() -> None:
    with pytest.raises(CheckpointError, match="pytorchvideo has ir networks only, and this one is ip with 1, 2, 1, 1"):
        key_map(FORMATS["pytorchvideo"], ours("ip").state_dict())


def test_a_rewritten_part_is_named() -> None:
    state = {**ours("ir").state_dict(), "layer1.0.se.weight": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"layer1.0.se.weight of this network has no counterpart in vmz files"):
        key_map(FORMATS["vmz"], state)


def test_formats_are_told_by_their_names() -> None:
    for project, kind in PAIRS:
        assert find_format(theirs(project, kind).state_dict()).name == project
    with pytest.raises(CheckpointError, match="f is no mmaction2 file: its names are those of vmz"):
        find_format(theirs("vmz", "ir").state_dict(), "mmaction2", source="f")
    with pytest.raises(UnknownName, match="unknown weight format 'mmaction': did you mean 'mmaction2'"):
        find_format({}, "mmaction")
    with pytest.raises(
        CheckpointError, match=r"as none of plain, mmaction2, vmz, pytorchvideo, .*: it starts with a, b"
    ):
        find_format({"a": torch.ones(1), "b": torch.ones(1)})
