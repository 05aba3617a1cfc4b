"""Networks at two resolutions in one program of the C library, laid out in blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kernels_library import library
from leanconv.deploy import accelerate
from leanconv.kernels.blocks import is_dense
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
    assert (found.left, is_dense(program)) == ((), True)
    steps, halves = prepared(program)
    # From low to high twice, each added in a convolution; two convolutions into the low map as one.
    assert not any(isinstance(step, Repeat) for step in steps.steps)
    assert len(halves) == 2
    assert sum(isinstance(step, Conv) for step in steps.steps) == 2 + 3 + 2
    x = torch.randn(2, *size)
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
