"""Inflation: a 2D network as one for clips."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from leanconv.build import create_model
from leanconv.errors import LeanconvError, NothingToRewrite, RewriteError
from leanconv.nets import ResNet, add_nonlocal
from leanconv.nets.nonlocal_block import NonLocal3d
from leanconv.ops.octave import OctConv3d
from leanconv.rewrites import Inflate, Octave, from_json, rewrite, to_json


def still(images: torch.Tensor, frames: int) -> torch.Tensor:
    return images.unsqueeze(2).expand(-1, -1, frames, -1, -1)


def trained(net: nn.Module) -> nn.Module:
    """With BatchNorm statistics that are not zero and one."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.8, 1.2)
    return net.eval()


TEMPORAL = (("stem.0.conv", 5), ("layer*.0.conv1.conv", 3))


@pytest.mark.parametrize("pool_after", [(), ("layer1",)])
@pytest.mark.parametrize("alpha", [0, 0.5])
def test_a_still_clip_gives_the_output_of_the_2d_network(alpha: float, pool_after: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    net = trained(ResNet((1, 1, 1, 1), num_classes=5))
    inflate = Inflate(temporal=TEMPORAL, pool_after=pool_after, frames=4)
    size = (3, 64, 64)
    flat = rewrite(net, Octave(alpha=alpha), size=size).model if alpha else net
    steps = (inflate, Octave(alpha=alpha)) if alpha else (inflate,)
    clip_net = rewrite(net, *steps, size=size).model
    x = torch.randn(2, 3, 70, 65)
    torch.testing.assert_close(clip_net(still(x, 4)), flat(x), rtol=0, atol=1e-4)
    assert clip_net.get_submodule("stem.0.bn").running_mean.abs().max() > 0


def test_an_octave_network_is_inflated_path_by_path() -> None:
    torch.manual_seed(0)
    flat = rewrite(trained(ResNet((1, 1, 1, 1), num_classes=5)), Octave(), size=(3, 64, 64)).model
    done = rewrite(flat, Inflate(temporal=TEMPORAL))
    assert any(isinstance(module, OctConv3d) for module in done.model.modules())
    assert {change.weights for change in done.changes} == {"inflated"}
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(done.model(still(x, 4)), flat(x), rtol=0, atol=1e-4)


def test_mean_is_the_2d_response_away_from_the_ends() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 4, 3))
    clip = rewrite(conv, Inflate(temporal=(("0", 3),), mode="mean")).model
    x = torch.randn(1, 3, 8, 8)
    out = clip(still(x, 5))
    torch.testing.assert_close(out[:, :, 2], conv(x))
    assert not torch.allclose(out[:, :, 0], conv(x))


def test_motion_matters_only_where_kernels_reach_over_time() -> None:
    net = create_model("c2d_resnet50", num_classes=4).eval()
    assert net.layer1[2].conv1.conv.kernel_size == (1, 1, 1)
    assert isinstance(net.layer1.pool_time, nn.MaxPool3d)
    assert create_model("i3d_resnet50").layer3[4].conv1.conv.kernel_size == (3, 1, 1)


def test_nonlocal_block_changes_nothing_at_first() -> None:
    block = NonLocal3d(8).eval()
    x = torch.randn(2, 8, 3, 6, 6)
    assert torch.equal(block(x), x)
    nn.init.ones_(block.bn.weight)
    assert not torch.equal(block(x), x)
    with pytest.raises(LeanconvError, match="no place for a non-local block"):
        add_nonlocal(ResNet((1, 1, 1, 1)), ["layer1.0"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["oct_c2d_resnet50", "oct_i3d_resnet50"])
@pytest.mark.parametrize("nonlocal_blocks", [False, True])
def test_video_networks_run_forward_and_backward(name: str, nonlocal_blocks: bool) -> None:
    net = create_model(name, num_classes=4, nonlocal_blocks=nonlocal_blocks)
    net(torch.randn(2, 3, 4, 65, 64)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_step_round_trip_and_bad_input() -> None:
    step = Inflate(temporal={"conv1": 5}, pool_after=("layer1",))  # type: ignore[arg-type]
    assert from_json(to_json(step)) == step
    net = ResNet((1, 1, 1, 1))
    with pytest.raises(LeanconvError, match="must be odd"):
        Inflate(temporal=(("conv1", 2),))
    with pytest.raises(RewriteError, match="no convolution is called 'conv9'"):
        rewrite(net, Inflate(temporal=(("conv9", 3),)))
    with pytest.raises(RewriteError, match="there is no module called 'layer9'"):
        rewrite(net, Inflate(pool_after=("layer9",)))
    with pytest.raises(RewriteError, match=r"only an nn\.Sequential"):
        rewrite(net, Inflate(pool_after=("fc",)))
    with pytest.raises(NothingToRewrite, match="no 2D convolution"):
        rewrite(nn.Sequential(nn.Linear(3, 3)), Inflate())
    with pytest.raises(RewriteError, match="3D already"):
        rewrite(rewrite(net, Inflate()).model, Inflate())
