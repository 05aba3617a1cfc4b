"""Networks of dense convolutions, at two resolutions too, in programs of the C library that are laid out in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kernels_library import library
from leanconv.deploy import accelerate
from leanconv.errors import NothingToRewrite
from leanconv.kernels.blocks import lies_in_blocks
from leanconv.kernels.merge import prepared
from leanconv.kernels.program import Conv, Repeat
from leanconv.ops.octave import OctConv2d


@pytest.fixture(autouse=True)
def _library() -> None:
    library()


class OctaveBlock(nn.Module):
    """A plain map to one at two resolutions, a residual sum of those, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.first = OctConv2d(3, 64, 3, padding=1, alpha_in=0)
        self.second = OctConv2d(64, 64, 3, padding=1)
        self.last = OctConv2d(64, 32, 1, alpha_out=0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        y: Tensor = self.last((self.second(x) + x).relu())
        return y


@pytest.mark.parametrize("size", [(3, 14, 28), (3, 15, 13)])
def test_octave_networks_are_one_program_in_blocks(size: tuple[int, int, int]) -> None:
    net = OctaveBlock().eval()
    found = accelerate(net, size)
    (program,) = found.programs
    assert (found.left, lies_in_blocks(program)) == ((), True)
    steps, halves = prepared(program)
    # From low to high twice, each added in a convolution; two convolutions into the low map as one.
    assert not any(isinstance(step, Repeat) for step in steps.steps)
    assert len(halves) == 2
    assert sum(isinstance(step, Conv) for step in steps.steps) == 2 + 3 + 2
    x = torch.randn(2, *size)
    with torch.inference_mode():
        torch.testing.assert_close(found.model(x), net(x), rtol=1e-5, atol=1e-5)


class Pyramid(nn.Module):
    """Maps at a fourth and an eighth of the resolution, up-sampled and added to one at the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.last = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
        self.fourth = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(32, 32, 3, padding=1))
        self.eighth = nn.Sequential(nn.MaxPool2d(8), nn.Conv2d(32, 32, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fine(x).relu()
        fourth = nn.functional.interpolate(self.fourth(x), scale_factor=4)
        eighth = nn.functional.interpolate(self.eighth(x), scale_factor=8, mode="nearest")
        y: Tensor = self.last((x + fourth + eighth).relu())
        return y


def test_up_sampling_by_four_and_eight_in_blocks() -> None:
    torch.manual_seed(0)
    net = Pyramid().eval()
    found = accelerate(net, (3, 16, 24))
    assert (found.left, [lies_in_blocks(program) for program in found.programs]) == ((), [True])
    x = torch.randn(2, 3, 16, 24)
    with torch.inference_mode():
        torch.testing.assert_close(found.model(x), net(x), rtol=1e-5, atol=1e-5)


def test_up_sampling_by_other_factors() -> None:
    """Three rows and two columns; a size that is no multiple is left to torch, with the convolution beside it."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Upsample(scale_factor=(3, 2)), nn.Conv2d(16, 16, 3, groups=4)).eval()
    found = accelerate(net, (3, 7, 9))
    assert (len(found.programs), found.left) == (1, ())
    other = nn.Sequential(
        nn.Conv2d(3, 16, 3, groups=1), nn.Upsample(size=(8, 8)), nn.Conv2d(16, 16, 3, groups=4)
    ).eval()
    found = accelerate(other, (3, 7, 9))
    assert [left.name for left in found.left] == ["0"]


class Encoder(nn.Module):
    """Down and up again by layers that are no steps, with a map that is joined across."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()
        )
        self.second = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)
        self.last = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        large = self.first(x)
        y: Tensor = self.last(torch.cat([self.up(self.second(large)), large], 1))
        return y


def test_parts_of_a_dense_network_that_the_library_cannot_run_whole() -> None:
    net = Encoder().eval()
    found = accelerate(net, (3, 32, 48))
    assert len(found.programs) == 2
    assert all(lies_in_blocks(program) for program in found.programs)
    assert [(left.name, left.reason) for left in found.left] == [("up", "aten.conv_transpose2d.input has no step")]
    x = torch.randn(2, 3, 32, 48)
    with torch.inference_mode():
        torch.testing.assert_close(found.model(x), net(x), rtol=1e-5, atol=1e-5)


def test_parts_of_a_dense_network_that_do_not_gain_are_left() -> None:
    """Pointwise convolutions run as well elsewhere, and maps of few pixels."""
    net = nn.Sequential(nn.Conv2d(16, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.ConvTranspose2d(64, 4, 2)).eval()
    with pytest.raises(NothingToRewrite, match="0: no grouped convolution is next to it, and dense ones run as well"):
        accelerate(net, (16, 32, 32))
    small = nn.Sequential(nn.Conv2d(16, 64, 3, padding=1), nn.ConvTranspose2d(64, 4, 2)).eval()
    with pytest.raises(NothingToRewrite, match="0: no grouped convolution is next to it, and dense ones run as well"):
        accelerate(small, (16, 7, 7))
