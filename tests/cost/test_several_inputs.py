"""Networks of several inputs: a list of shapes, given as arguments or as the list that the forward takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leanconv.build import create_model, default_size, load, save
from leanconv.cost import measure
from leanconv.errors import LeanconvError
from leanconv.ops.separable import DepthSeparable
from leanconv.report import cost_table
from leanconv.rewrites import Inflate, rewrite


class Pathways(nn.Module):
    """A slow pathway of many channels and few frames, a fast one of few channels and many frames, joined twice."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = nn.Conv3d(3, 16, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(3, 4, 3, padding=1)
        self.lateral = nn.Conv3d(4, 8, (5, 1, 1), stride=(4, 1, 1), padding=(2, 0, 0))
        self.slow2, self.fast2 = nn.Conv3d(24, 16, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
        self.head = nn.Linear(20, 5)

    def join(self, fast: Tensor, slow: Tensor) -> Tensor:
        fast, slow = self.fast(fast), self.slow(slow)
        slow = torch.cat([slow, self.lateral(fast)], 1)
        pooled = [path.mean((2, 3, 4)) for path in (self.fast2(fast), self.slow2(slow))]
        return self.head(torch.cat(pooled, 1))  # type: ignore[no-any-return]


class TwoArguments(Pathways):
    def forward(self, fast: Tensor, slow: Tensor) -> Tensor:
        return self.join(fast, slow)


class OneList(Pathways):
    def forward(self, pathways: list[Tensor]) -> Tensor:
        assert isinstance(pathways, list)
        fast, slow = pathways
        return self.join(fast, slow)


class Optional(Pathways):
    """Has room for more, which it does not need."""

    def forward(self, fast: Tensor, slow: Tensor, *rest: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.join(fast, slow)


SIZES = [(3, 32, 8, 8), (3, 8, 8, 8)]
FAST, SLOW = 32 * 64, 8 * 64
MACS = (
    FAST * 4 * 3 * 27
    + SLOW * 16 * 3 * 9
    + SLOW * 8 * 4 * 5
    + SLOW * 16 * 24 * 27
    + FAST * 4 * 4 * 27
    + 20 * 5
)  # fmt: skip


@pytest.mark.parametrize("kind", [TwoArguments, OneList, Optional])
def test_two_pathways(kind: type[Pathways]) -> None:
    net = kind()
    for batch in (1, 3):
        cost = measure(net, SIZES, batch=batch)
        assert cost.macs == MACS
        assert cost.size == tuple(SIZES)
        assert cost.conv_params == sum(p.numel() for p in net.parameters() if p.ndim > 1)
    assert cost.to_json()["size"] == [list(shape) for shape in SIZES]
    assert cost_table("pathways", cost).title == "pathways, input 3x32x8x8 + 3x8x8x8"
    # both inputs are alive while both first maps are made
    assert measure(net, SIZES).peak_activation_bytes > 4 * (3 * FAST + 3 * SLOW + 4 * FAST)


def test_a_list_within_the_list_is_one_argument() -> None:
    class Nested(Pathways):
        def forward(self, pathways: list[Tensor], weight: Tensor | None = None) -> Tensor:
            assert isinstance(pathways, list)
            out = self.join(*pathways)
            return out if weight is None else out * weight.mean()

    assert measure(Nested(), [SIZES]).macs == MACS
    assert measure(Nested(), [SIZES, (3,)]).macs == MACS
    assert measure(OneList(), [SIZES]).macs == MACS
    assert measure(Nested(), [SIZES]).size == (tuple(SIZES),)


def test_a_list_of_one_shape_is_that_shape() -> None:
    net = nn.Conv2d(3, 4, 3)
    assert measure(net, [(3, 8, 8)]).macs == measure(net, (3, 8, 8)).macs

    class Images(nn.Module):
        """Takes a list of images, as detectors do."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images: list[Tensor]) -> Tensor:
            assert isinstance(images, list)
            return self.conv(torch.cat(images))  # type: ignore[no-any-return]

    assert measure(Images(), [[(3, 8, 8)]]).macs == measure(net, (3, 8, 8)).macs


def test_the_receptive_field_is_that_in_the_first_input() -> None:
    class Guided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 7, padding=3)

        def forward(self, image: Tensor, depth: Tensor) -> Tensor:
            return self.a(image) + self.b(depth)  # type: ignore[no-any-return]

    cost = measure(Guided(), [(3, 16, 16), (1, 16, 16)])
    assert cost.receptive_field == (3, 3)
    assert cost.receptive_field_note.endswith("; in the first input")
    assert "first input" not in measure(nn.Conv2d(3, 4, 3), (3, 16, 16)).receptive_field_note


@pytest.mark.parametrize(
    ("net", "size", "message"),
    [
        (TwoArguments(), (3, 32, 8, 8), "an input of shape .*; it takes 2 inputs: pass size as a list of 2 shapes$"),
        (nn.Bilinear(3, 3, 2), (3,), "it takes 2 inputs: pass size as a list of 2 shapes$"),
        (
            TwoArguments(),
            [*SIZES, (3,)],
            r"inputs of shapes .*\), \(3,\): .*; it takes 2 inputs, and size has 3 shapes$",
        ),
        (TwoArguments(), SIZES[::-1], "inputs of shapes .* in aten.cat.*; size must be what the network takes"),
        (TwoArguments(), [(3, 8), "3,8"], "without the batch axis.* got '3,8'"),
        (TwoArguments(), [(3, 8), 8], "without the batch axis.* got 8"),
        (TwoArguments(), [(3, 8), (0, 8)], "every entry of size must be a whole number of at least 1, got 0"),
        (TwoArguments(), [], "at least one entry"),
        (TwoArguments(), [[]], "at least one entry"),
    ],
)
def test_what_does_not_fit(net: nn.Module, size: Any, message: str) -> None:
    with pytest.raises(LeanconvError, match=message) as caught:
        measure(net, size)
    assert "\n" not in str(caught.value)


def test_a_network_of_several_inputs_is_rewritten() -> None:
    net = TwoArguments()
    done = rewrite(net, DepthSeparable(where="*2", init="fresh"), size=SIZES)
    assert [change.name for change in done.changes] == ["fast2", "slow2"]  # as they run
    before, after = measure(net, SIZES), measure(done, SIZES)
    assert before.macs - after.macs == SLOW * (24 * 16 * 27 - 24 * 27 - 24 * 16) + FAST * (4 * 4 * 27 - 4 * 27 - 4 * 4)
    fast, slow = (torch.randn(1, *shape) for shape in SIZES)
    assert done.model(fast, slow).shape == (1, 5)


def test_inflating_gives_every_input_frames() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.pool = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.pool(self.a(x) + self.b(y)).flatten(1)  # type: ignore[no-any-return]

    done = rewrite(Two(), Inflate(frames=4), size=[(3, 8, 8), (1, 8, 8)])
    assert measure(done, [(3, 4, 8, 8), (1, 4, 8, 8)]).macs == 4 * 36 * 4 * 4 * 9


NETWORK = """
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, stride=2)

    def forward(self, x, y):
        return self.c(self.a(x) + self.b(y))
"""


def test_a_rewrite_of_several_inputs_is_saved_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "network_of_two_inputs.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    name, size = "network_of_two_inputs:Two", [(3, 16, 16), (1, 16, 16)]
    done = rewrite(create_model(name), DepthSeparable(where="stage>=1", init="fresh"), size=size)
    assert [change.name for change in done.changes] == ["c"]
    save(done, tmp_path / "saved", size=size)
    again = load(tmp_path / "saved", trust_code=True)
    inputs = [torch.randn(1, *shape) for shape in size]
    assert torch.equal(again.eval()(*inputs), done.model.eval()(*inputs))
    assert measure(again, default_size(str(tmp_path / "saved"))) == measure(done, size)
