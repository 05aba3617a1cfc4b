"""Slow-only, SlowFast and X3D: the counts that their papers print, and what they compute against plain references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.build import create_model
from leanconv.cost import measure
from leanconv.elastic.inputs import resized, sampled
from leanconv.errors import LeanconvError
from leanconv.nets.slowfast import SlowFast, SlowOnly
from leanconv.nets.x3d import X3D

# Network, clip, G multiply-adds as printed, M parameters as released; the sizes that no row of the manifest has.
PRINTED = [
    ("x3d_m", (3, 16, 256, 256), "6.2", "3.79"),
    ("x3d_m", (3, 13, 160, 160), "1.96", "3.79"),
]


@pytest.mark.parametrize(("name", "size", "macs", "params"), PRINTED)
def test_counts_as_printed(name: str, size: tuple[int, ...], macs: str, params: str) -> None:
    with torch.device("meta"):
        cost = measure(create_model(name), size)
    assert f"{cost.macs / 1e9:.{len(macs.partition('.')[2])}f}" == macs
    assert f"{cost.params / 1e6:.2f}" == params


def named(net: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics, off neutral."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm3d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.uniform_(-0.1, 0.1)
    return net.eval().state_dict()


def unit(x: Tensor, w: dict[str, Tensor], name: str, *, relu: bool = True, **conv: Any) -> Tensor:
    """Convolution, norm and ReLU."""
    x = norm(F.conv3d(x, w[f"{name}.conv.weight"], **conv), w, f"{name}.bn")
    return F.relu(x) if relu else x


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return F.batch_norm(x, *(w[f"{name}.{what}"] for what in ("running_mean", "running_var", "weight", "bias")))


def bottleneck(x: Tensor, w: dict[str, Tensor], name: str, time: int, stride: int) -> Tensor:
    y = unit(x, w, f"{name}.conv1", padding=(time // 2, 0, 0))
    y = unit(y, w, f"{name}.conv2", padding=(0, 1, 1), stride=(1, stride, stride))
    y = unit(y, w, f"{name}.conv3", relu=False)
    return F.relu(y + unit(x, w, f"{name}.shortcut", relu=False, stride=(1, stride, stride)))


def stem(x: Tensor, w: dict[str, Tensor], name: str, time: int) -> Tensor:
    x = unit(x, w, f"{name}.stem.0", stride=(1, 2, 2), padding=(time, 3, 3))
    return F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))


@pytest.mark.parametrize("alpha", [None, 2, 4])
def test_pathways_against_a_plain_reference(alpha: int | None) -> None:
    """Strides and kernels over time where the papers' table 1 has them; the lateral joins before each stage."""
    single = (1, 1, 1, 1)
    net = SlowOnly(single, num_classes=5) if alpha is None else SlowFast(single, num_classes=5, alpha=alpha, lateral=5)
    w, clip = named(net), torch.randn(1, 3, 6, 32, 32)
    slow = stem(clip if alpha is None else clip[:, :, ::alpha], w, "slow", 0)
    fast = None if alpha is None else stem(clip, w, "fast", 2)
    for stage, time in enumerate((1, 1, 3, 3), 1):
        stride = 1 if stage == 1 else 2
        if fast is not None:
            join = unit(fast, w, f"lateral.{stage - 1}", stride=(alpha, 1, 1), padding=(2, 0, 0))
            slow = torch.cat([slow, join], 1)
            fast = bottleneck(fast, w, f"fast.layer{stage}.0", 3, stride)
        slow = bottleneck(slow, w, f"slow.layer{stage}.0", time, stride)
    seen = [x.mean((2, 3, 4)) for x in (slow, fast) if x is not None]
    wanted = F.linear(torch.cat(seen, 1), w["fc.weight"], w["fc.bias"])
    with torch.no_grad():
        torch.testing.assert_close(net(clip), wanted)


def test_x3d_against_a_plain_reference() -> None:
    """Gates in every second block, a shortcut without norm in the first stage, Swish behind the gate."""
    net = X3D(num_classes=5, depth=0.8)
    w, clip = named(net), torch.randn(2, 3, 4, 32, 32)
    x = F.conv3d(clip, w["stem.0.weight"], stride=(1, 2, 2), padding=(0, 1, 1))
    x = F.relu(norm(F.conv3d(x, w["stem.1.weight"], padding=(2, 0, 0), groups=24), w, "stem.2"))
    assert [len(net.get_submodule(f"layer{stage}")) for stage in (1, 2, 3, 4)] == [1, 2, 4, 3]
    for stage, count in enumerate((1, 2, 4, 3), 1):
        for block in range(count):
            name, strides = f"layer{stage}.{block}", (1, 1, 1) if block else (1, 2, 2)
            y = F.relu(norm(F.conv3d(x, w[f"{name}.conv1.weight"]), w, f"{name}.bn1"))
            assert y.shape[1] == int(2.25 * 24 * 2 ** (stage - 1))
            y = F.conv3d(y, w[f"{name}.conv2.weight"], stride=strides, padding=1, groups=y.shape[1])
            y = norm(y, w, f"{name}.bn2")
            assert (f"{name}.gate.reduce.weight" in w) == (block % 2 == 0)
            if block % 2 == 0:
                gate = F.conv3d(y.mean((2, 3, 4), keepdim=True), *part(w, f"{name}.gate.reduce"))
                y = y * F.conv3d(F.relu(gate), *part(w, f"{name}.gate.expand")).sigmoid()
            y = norm(F.conv3d(F.silu(y), w[f"{name}.conv3.weight"]), w, f"{name}.bn3")
            if not block:
                x = F.conv3d(x, w[f"{name}.shortcut.conv.weight"], stride=strides)
                assert (f"{name}.shortcut.bn.weight" in w) == (stage > 1)
                x = norm(x, w, f"{name}.shortcut.bn") if stage > 1 else x
            x = F.relu(x + y)
    x = F.relu(norm(F.conv3d(x, w["conv5.0.weight"]), w, "conv5.1")).mean((2, 3, 4), keepdim=True)
    x = F.relu(F.conv3d(x, w["features.0.weight"])).flatten(1)
    with torch.no_grad():
        torch.testing.assert_close(net(clip), F.linear(x, *part(w, "fc")), rtol=1e-4, atol=1e-4)


def part(w: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return w[f"{name}.weight"], w[f"{name}.bias"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("elastic_slow_only_50", {"layers": [1, 1, 1, 1]}),
        ("elastic_slowfast_50_8x8", {"layers": [1, 1, 1, 1], "frames": [8, 6, 4]}),
        ("elastic_x3d_m", {"depth": 0.5, "frames": [8, 4]}),
    ],
)
@pytest.mark.slow
def test_elastic_in_width_resolution_and_frames(name: str, options: dict[str, Any]) -> None:
    """Each configuration is the network that is extracted for it, on the input that is made for it."""
    net = create_model(name, num_classes=5, resolutions=[32, 24], **options)
    clip, last = torch.randn(2, 3, 8, 32, 32), net.frames[-1]
    net.train()
    for config in ((0.5, 24, last), (0.75, 32, last), (1.0, 24, 8)):
        static = net.extract(*config, calibrated=False).train()
        for dropout in (net, static):
            for module in dropout.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        with torch.no_grad(), net.at(*config):
            answer = net(clip)
        with torch.no_grad():
            wanted = static(resized(sampled(clip, config[2]), config[1]))
        torch.testing.assert_close(answer, wanted, rtol=1e-4, atol=1e-4)
        full = measure(net.extract(1.0, 32, 8, calibrated=False), (3, 8, 32, 32)).macs
        assert measure(static, (3, config[2], config[1], config[1])).macs < 0.8 * full


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: SlowOnly((1, 1, 1)), "layers must be the number of blocks of four stages"),
        (lambda: SlowFast((1, 1, 0, 1)), r"layers\[2\] must be an integer of at least 1"),
        (lambda: SlowFast(lateral=4), "lateral must be odd, so that its kernel has a middle, got 4"),
        (lambda: SlowFast(part=3), "part must divide 64, the channels of the slow stem, got 3"),
        (lambda: SlowFast((1, 1, 1, 1), dropout=1.0), "dropout must be at least 0 and below 1, got 1.0"),
        (lambda: X3D(depth=0.0), "depth must be a number above 0"),
        (lambda: X3D(dropout=-0.1), "dropout must be at least 0 and below 1, got -0.1"),
    ],
)
def test_bad_options(make: Any, told: str) -> None:
    with pytest.raises(LeanconvError, match=told):
        make()
