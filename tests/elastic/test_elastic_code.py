"""What a forward's own code does between the layers: replaced where it holds channel counts, refused where unknown."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from elastic_nets import NETS, SIDES, randomized, unit
from leanconv.elastic import make_elastic
from leanconv.errors import RewriteError


class Between(nn.Module):
    """Something between two convolutions that follow the width."""

    def __init__(self, middle):
        super().__init__()
        self.stem, self.head, self.middle = unit(3, 32), nn.Conv2d(32, 4, 1), middle

    def forward(self, x):
        return self.head(self.middle(self.stem(x)))


class Do(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


@pytest.mark.parametrize(
    ("middle", "message"),
    [
        (Do(lambda x: x * torch.ones(32, 1, 1)), "middle: mul meets a tensor of 32 channels that no layer makes"),
        (Do(lambda x: x.flip(1)), "middle: flip runs along the channels"),
        (Do(lambda x: x.cumsum(1)), "middle: cumsum runs along the channels"),
        (Do(lambda x: torch.fft.fft2(x).real), "middle: _fft_c2c has no rule"),
        (Do(lambda x: torch.einsum("bchw,bdhw->bcd", x, x).flatten(1)[:, :32, None, None]), "two axes that both hold"),
        (Do(lambda x: torch.cat([x, x, x], 1).view(2, 64, 384)[:, :32, :, None]), "view from .* divides or mixes"),
        (Do(lambda x: F.pad(x, (0, 0, 0, 0, 1, 0))[:, 1:]), "middle: constant_pad_nd shifts or crops"),
        (Do(lambda x: x * x[:, 3, None]), "middle: an index picks channel 3"),
        (Do(lambda x: x[:, ::2].repeat(1, 2, 1, 1)), "middle: a slice with steps picks fixed channels"),
        (Do(lambda x: x[:, torch.arange(31, -1, -1)]), "middle: an index of numbers picks fixed channels"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(32, 32, 1)), "middle: .* computed by a parametrization"),
        (nn.Sequential(nn.GroupNorm(2, 32), Do(lambda x: x[:, :8].repeat(1, 4, 1, 1))), "in units of 16 cannot be cut"),
    ],
)
def test_refuses_what_it_does_not_understand(middle, message):
    with pytest.raises(RewriteError, match=message) as caught:
        make_elastic(Between(middle), resolutions=SIDES)
    assert "pass keep=['stem.0']" in str(caught.value)


@pytest.mark.parametrize("norm", [lambda c: nn.GroupNorm(4, c), lambda c: nn.GroupNorm(1, c), nn.InstanceNorm2d])
def test_other_norms(norm):
    """Whole groups are dropped; a single group is a norm over whatever channels there are."""
    model = randomized(Between(norm(32)))
    net = make_elastic(model, resolutions=SIDES).eval()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.eval()(x), net(x))
    net.train()
    for width in (0.25, 0.6):
        with net.at(width):
            static = net.extract(width, calibrated=False)
            torch.testing.assert_close(net(x), static(x))
        groups = getattr(static.middle, "num_groups", 1)
        assert groups in (1, static.head.in_channels // 8)


def test_layer_norm_over_channels():
    class Norm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    net = make_elastic(randomized(Between(Norm(32))), resolutions=SIDES).train()
    x = torch.randn(2, 3, 16, 16)
    static = net.extract(0.5, calibrated=False)
    assert static.middle.normalized_shape == (16,)
    assert type(static.middle) is Norm
    with net.at(0.5):
        torch.testing.assert_close(net(x), static(x))


class Remembering(nn.Module):
    """A table that is made once, and a forward that is chosen when the module is made."""

    def __init__(self):
        super().__init__()
        self.table, self.half = {}, 16
        self.forward = self.swapped

    def made(self, x):
        return torch.ones(1, 1, 1, 1)

    def forward(self, x):
        raise AssertionError

    def swapped(self, x):
        if "signs" not in self.table:
            self.table["signs"] = self.made(x)
        return torch.cat([x[:, self.half :], x[..., : self.half, :, :]], 1) * self.table["signs"]


def test_constants_in_a_forward_are_replaced():
    model = randomized(Between(Remembering()))
    net = make_elastic(model, resolutions=(16,)).train()
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(x), net(x))
    static = net.extract(0.5, calibrated=False)
    assert type(static.middle).__name__ == "PatchedRemembering"
    assert "signs" not in static.middle.table or type(static.middle.table["signs"]) is torch.Tensor
    with net.at(0.5):
        expected = net(x)
    for twin in (static, copy.deepcopy(static), copy.deepcopy(net).extract(0.5, calibrated=False)):
        torch.testing.assert_close(twin(x), expected)
    assert expected.shape == (2, 4, 16, 16)


def test_a_forward_that_takes_another_path():
    class Slicing(Remembering):
        def made(self, x):
            return torch.ones(1, 1, 1, 40)[..., : x.shape[-1]]  # once, so that later slices are counted from another

    with pytest.raises(RewriteError, match="middle: its forward took another path"):
        make_elastic(Between(Slicing()), resolutions=(16,))


def test_a_forward_that_is_somebody_elses():
    model = Between(Remembering())
    model.middle.forward = lambda x: x[:, :16].repeat(1, 2, 1, 1)
    with pytest.raises(RewriteError, match="middle"):
        make_elastic(model, resolutions=SIDES)


def test_map_sizes_in_a_forward_show_up_in_the_probe():
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.Flatten(), nn.Linear(32 * 256, 5))
    with pytest.raises(RewriteError, match=r"^2: the network does not run at width 1 and resolution 12"):
        make_elastic(model, resolutions=SIDES)
    net = make_elastic(model, resolutions=(16,)).train()
    with net.at(0.5):
        assert net(torch.randn(2, 3, 16, 16)).shape == (2, 5)


@pytest.mark.parametrize("name", ["parted", "attentive", "octave", "chained"])
def test_extracted_networks_are_exported(name):
    net = make_elastic(randomized(NETS[name]()), (0.25, 1.0), SIDES).train()
    static = net.extract(0.5, calibrated=False).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(static, (x,)).module()(x), static(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parted", "attentive", "octave", "chained"])
def test_extracted_networks_are_compiled_whole(name):
    code = f"""
import sys, torch
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from elastic_nets import NETS, SIDES, randomized
from leanconv.elastic import make_elastic
static = make_elastic(randomized(NETS[{name!r}]()), (0.25, 1.0), SIDES).extract(0.5, calibrated=False).eval()
x = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(static, backend="eager", fullgraph=True)(x), static(x))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
