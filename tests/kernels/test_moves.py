"""How maps come into blocks of sixteen channels and out of them, by squares of four channels and four pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels_library import assert_near, run
from leanconv.kernels.blocks import lies_in_blocks
from leanconv.kernels.program import Buffer, Conv, Program, Stage, Wire
from random_programs import computed


@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [(48, 16, 32), (30, 32, 32), (32, 5, 7), (14, 4, 9), (46, 6, 4), (47, 3, 3), (45, 7, 1)],
)
@pytest.mark.parametrize("kernel", [1, 3])
def test_maps_that_go_into_blocks_and_out(channels: int, height: int, width: int, kernel: int) -> None:
    """All, some and none of the channels and pixels by fours; planes that share sets of the cache; any address."""
    rng = np.random.default_rng(0)
    into, out = (tuple(Wire(number, c) for c in range(channels)) for number in range(2))
    weight = rng.standard_normal((channels, channels, kernel, kernel)).astype(np.float32)
    stage = Stage(weight=weight, bias=np.zeros(channels, np.float32), padding=(kernel // 2, kernel // 2))
    step = Conv(reads=into, writes=1, order=tuple(range(channels)), stages=(stage,))
    maps = Buffer(channels, height, width)
    program = Program(buffers=(maps, maps), steps=(step,), inputs=(0,), outputs=(out,))
    assert lies_in_blocks(program)
    x = torch.randn(1 + 3 * channels * height * width)[1:].view(3, *maps)
    assert_near(run(program, [x]), computed(program, [x.double()]))
