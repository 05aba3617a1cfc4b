"""Triton kernels against torch's convolutions in double precision: prints one line of JSON, relative errors by name.

    TRITON_INTERPRET=1 python tests/kernels/triton_checks.py few      # on a CPU
    python tests/kernels/triton_checks.py all cuda                    # on a GPU, compiled

Every output is filled with NaN before, so that an element that is not written is seen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from leanconv.deploy.forms.chains import ChainUnit
from leanconv.deploy.forms.octaves import OctaveUnit as OctaveUnit  # registers the operator
from leanconv.kernels.triton import chained, channelwise, octave
from leanconv.ops.igc import InterleavedGroupConv2d
from leanconv.ops.osep import OptimizedSeparableConv2d
from leanconv.ops.separable import DepthSeparableConv2d

CHANNELWISE = [  # ndim, channels, size, kernel, stride, padding, type; the first few are enough for a quick look
    (3, 5, (3, 4, 5), (3, 3, 3), (1, 1, 1), (1, 1, 1), "float32"),
    (3, 4, (3, 4, 5), (3, 3, 3), (2, 2, 2), (1, 1, 1), "bfloat16"),
    (2, 6, (5, 7), (3, 3), (1, 1), (1, 1), "float32"),
    (3, 5, (1, 6, 7), (3, 3, 3), (1, 1, 1), (1, 1, 1), "float32"),
    (3, 4, (3, 5, 5), (3, 1, 1), (1, 1, 1), (1, 0, 0), "float32"),
    (3, 4, (3, 5, 5), (1, 3, 3), (1, 2, 2), (0, 1, 1), "float32"),
    (3, 70, (2, 5, 3), (3, 3, 3), (1, 2, 2), (1, 1, 1), "bfloat16"),
    (2, 6, (7, 9), (5, 5), (2, 2), (2, 2), "float32"),
    (2, 3, (6, 6), (2, 4), (1, 1), (0, 1), "float32"),
]
CHAINS = [  # inputs, outputs, kernel, stride, multiple, type
    ("osep", 12, 12, 3, 1, 8, "float32"),
    ("igc", 16, 24, 3, 2, 1, "float32"),
    ("osep", 58, 116, 3, 2, 8, "float32"),
    ("osep", 20, 20, 5, 1, 8, "bfloat16"),
    ("depth", 12, 16, 3, 2, 1, "float32"),
    ("depth", 88, 40, 3, 1, 8, "bfloat16"),
]


@torch.no_grad()
def apart(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||, NaN where an element was not written."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def of_channelwise(device: str, rows: list[tuple[object, ...]]) -> Iterator[tuple[str, str, float]]:
    """Forward with bias, with a clip at zero, and both gradients."""
    for ndim, channels, size, kernel, stride, padding, dtype in rows:
        kind = getattr(torch, str(dtype))
        layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
        conv = functional.conv2d if ndim == 2 else functional.conv3d
        x = torch.randn(2, channels, *size, device=device).to(kind).contiguous(memory_format=layout)  # type: ignore
        weight = torch.randn(channels, 1, *kernel, device=device).to(kind)  # type: ignore
        bias = torch.randn(channels, device=device).to(kind)  # type: ignore
        wide, filters = x.double().requires_grad_(), weight.double().requires_grad_()
        exact = conv(wide, filters, bias.double(), stride, padding, groups=channels)  # type: ignore
        name = f"channelwise {channels} {size} {kernel} {stride} {padding}"
        for relu in (False, True):
            made = torch.full_like(exact, torch.nan, dtype=kind).contiguous(memory_format=layout)
            channelwise.forward(x, weight, bias, made, stride, padding, relu)  # type: ignore
            yield f"{name} relu={relu}", str(dtype), apart(made, exact.relu() if relu else exact)
        g = torch.randn_like(exact).to(kind).contiguous(memory_format=layout)
        of_x, of_weight = torch.autograd.grad(exact, (wide, filters), g.double())
        made = torch.full_like(x, torch.nan)
        channelwise.input_gradient(g, weight, made, stride, padding)  # type: ignore
        yield f"{name} input gradient", str(dtype), apart(made, of_x)
        yield (
            f"{name} weight gradient",
            str(dtype),
            apart(
                channelwise.weight_gradient(g, x, kernel, stride, padding),  # type: ignore
                of_weight,
            ),
        )


def of_chains(device: str, rows: list[tuple[object, ...]]) -> Iterator[tuple[str, str, float]]:
    """With bias, residual and a clip at zero, against the dense convolution in double."""
    for kind, inputs, outputs, kernel, stride, multiple, dtype in rows:
        if device == "cpu" and dtype == "bfloat16":
            dtype = "float16"  # the interpreter multiplies matrices of bfloat16 by their bits
        makers = {
            "osep": OptimizedSeparableConv2d,
            "igc": InterleavedGroupConv2d,
            "depth": DepthSeparableConv2d,
        }
        make: object = makers[str(kind)]
        chain = make(inputs, outputs, kernel, stride=stride, padding=int(kernel) // 2)  # type: ignore
        unit = ChainUnit(chain, relu=True, multiple=int(multiple)).to(device, getattr(torch, str(dtype)))  # type: ignore
        like = {"device": device, "dtype": unit.first.dtype}
        x = torch.randn(2, unit.kernel.shape[1], 5, 6, **like).contiguous(memory_format=torch.channels_last)  # type: ignore
        dense = functional.conv2d(
            x.double(),
            unit.kernel.double(),
            unit.bias.double(),
            unit.stride,
            unit.padding,  # type: ignore
        )
        residual = torch.randn(dense.shape, **like).contiguous(memory_format=torch.channels_last)  # type: ignore
        made = torch.full_like(residual, torch.nan)
        chained.run(
            x, unit.first, unit.second, unit.bias, residual, made, unit.kernel_size, unit.stride, unit.padding,
            unit.step, True,
        )  # fmt: skip  # type: ignore
        yield (
            f"chain {kind} {inputs} {outputs} {kernel} {stride}",
            str(dtype),
            apart(made, (dense + residual.double()).relu()),
        )


def of_octaves(device: str, rows: list[tuple[int, ...]]) -> Iterator[tuple[str, str, float]]:
    """Both resolutions into one, against torch's convolutions in double."""
    for high, low, outputs, kernel, up, height, width in rows:
        kind = torch.float16 if device == "cpu" and up == 1 else torch.float32 if device == "cpu" else torch.bfloat16
        last = torch.channels_last
        a = torch.randn(2, high, height, width, device=device).to(kind).contiguous(memory_format=last)
        sides = -(-height // up), -(-width // up)
        b = torch.randn(2, low, *sides, device=device).to(kind).contiguous(memory_format=last)
        first, second = (torch.randn(kernel**2, n, outputs, device=device).to(kind) for n in (high, low))
        bias = torch.randn(outputs, device=device).to(kind)
        residual = torch.randn(2, outputs, height, width, device=device).to(kind).contiguous(memory_format=last)
        made = torch.full_like(residual, torch.nan)
        octave.run(a, b, first, second, bias, residual, made, kernel, kernel // 2, up, True)
        wide = [t.double() for t in (a, b, first, second, bias, residual)]
        exact = torch.ops.leanconv.octave_conv(
            *(t.cpu() for t in wide), kernel, kernel // 2, up, True, 0, 0
        )  # the operator on a CPU is torch's convolutions
        yield f"octave {high} {low} {outputs} {kernel} {up} {height}", str(kind)[6:], apart(made.cpu(), exact)


OCTAVES = [  # high, low, outputs, kernel, up, height, width
    (16, 16, 24, 1, 2, 5, 6),
    (16, 24, 16, 3, 1, 5, 4),
    (10, 6, 9, 3, 2, 5, 7),
    (72, 40, 200, 3, 2, 6, 6),
]


def main() -> None:
    few, device = sys.argv[1] == "few", sys.argv[2] if len(sys.argv) > 2 else "cpu"
    torch.manual_seed(0)
    found = [
        *of_channelwise(device, CHANNELWISE[:1] if few else CHANNELWISE),
        *of_chains(device, CHAINS[:1] if few else CHAINS),
        *of_octaves(device, OCTAVES[:1] if few else OCTAVES),
    ]
    print(json.dumps([{"name": name, "type": dtype, "error": error} for name, dtype, error in found]))


if __name__ == "__main__":
    main()
