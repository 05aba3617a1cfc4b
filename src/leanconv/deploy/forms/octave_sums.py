"""One output of an octave convolution in ordinary convolutions, with the sum and the clip behind it: the equal ways.

    y = relu(main(x) + up(other(z)) + residual)        x at the resolution of y, z at 1 / up of it, up 1 or 2

    apart     relu(main(x) + (up(other(z)) + residual))      the paper's order of convolution and up-sampling
    raised    relu(main(x) + (other(up(z)) + residual))      1 x 1 alone: four times other's products, but z is
                                                             up-sampled where it is narrow, and each sum has its
                                                             convolution
    joined    relu([main other](cat(x, up(z))) + residual)   one convolution; with up = 2 again 1 x 1 alone

Runtimes for CPUs add one map to a convolution on its way out and clip it there, at no cost. So the sums stand in the
order in which each has a convolution to hide in: summed the other way, main(x) + up(other(z)) first, the residual and
the ReLU are two more passes over the widest maps of a network.
"""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.ops.octave_parts import double

__all__ = ["SUM_FORMS", "OctaveSum", "SumForm"]

SumForm = Literal["apart", "raised", "joined"]
SUM_FORMS: tuple[str, ...] = get_args(SumForm)


class OctaveSum(nn.Module):
    """See the head of this file: (B, C, h, w), (B, C', h / up, w / up) rounded up, perhaps a residual -> (B, N, h, w).

    One of the two convolutions may be missing; `forms` are the ways that exist, `form` the one that is in use.
    """

    def __init__(self, main: nn.Conv2d | None, other: nn.Conv2d | None, up: int, relu: bool) -> None:
        super().__init__()
        self.main, self.other, self.up, self.relu = main, other, up, relu
        self.form: SumForm = "apart"
        both = main is not None and other is not None
        pointwise = both and cast(nn.Conv2d, main).kernel_size == (1, 1)
        self.forms: tuple[SumForm, ...] = ("apart",)
        if both and (pointwise or up == 1):
            self.forms += ("raised", "joined") if up > 1 else ("joined",)

    def run_as(self, form: SumForm) -> OctaveSum:
        """This layer, in `form` from now on; "joined" gives up the two convolutions for one."""
        if form == "joined" and self.form != "joined":
            main, other = cast(nn.Conv2d, self.main), cast(nn.Conv2d, self.other)
            self.main, self.other = _joined(main, other), None
            self.forms = ("joined",)
        self.form = form
        return self

    def forward(self, x: Tensor | None, z: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """See the class."""
        main, other = self.main, self.other
        if self.form == "joined":
            risen = cast(Tensor, z) if self.up == 1 else double(cast(Tensor, z), x)
            y = _plus(cast(nn.Conv2d, main)(torch.cat([cast(Tensor, x), risen], dim=1)), residual)
        elif main is None or other is None:
            y = _plus(main(x) if main is not None else cast(nn.Conv2d, other)(z), residual)
        else:
            z = cast(Tensor, z)
            risen = other(double(z, x)) if self.form == "raised" else other(z)
            if self.up > 1 and self.form == "apart":
                risen = double(risen, x)
            y = main(x) + _plus(risen, residual)
        return functional.relu(y) if self.relu else y

    def extra_repr(self) -> str:
        return f"form={self.form}, up={self.up}, relu={self.relu}"


def _plus(x: Tensor, residual: Tensor | None) -> Tensor:
    return x if residual is None else x + residual


def _joined(main: nn.Conv2d, other: nn.Conv2d) -> nn.Conv2d:
    """One convolution of the inputs of both, those of `main` first."""
    biases = [conv.bias.detach() for conv in (main, other) if conv.bias is not None]
    new = nn.Conv2d(
        main.in_channels + other.in_channels,
        main.out_channels,
        main.kernel_size,  # type: ignore[arg-type]
        padding=main.padding,  # type: ignore[arg-type]
        bias=bool(biases),
    )
    with torch.no_grad():
        new.weight.copy_(torch.cat([main.weight, other.weight], dim=1))
        if new.bias is not None:
            new.bias.copy_(sum(biases[1:], biases[0]))
    return new.to(main.weight.device, main.weight.dtype)
