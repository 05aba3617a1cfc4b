"""Octave convolution: a feature map kept at two resolutions, high X^H (c_h, h, w) and low X^L (c_l, h/2, w/2).

    Y^H = f(X^H; W^{H->H}) + upsample(f(X^L; W^{L->H}), 2)                                   (eq. 2, 7)
    Y^L = f(X^L; W^{L->L}) + f(pool(X^H, 2); W^{H->L})                                      (eq. 3, 8)

The four kernels tile the dense one, so the parameters do not change and only the places where they are applied do.

Paper -> code:  alpha_in, alpha_out, c_l = floor(alpha c), W^{H->H} = conv_hh.weight, W^{H->L} = conv_hl.weight,
W^{L->H} = conv_lh.weight, W^{L->L} = conv_ll.weight; the map itself is an `OctaveMap` (`octave_map.py`).

Stride 2, as in the authors' code and not in the paper's text: pool first, then convolve at stride 1; the low map is
then already at the resolution of the high output, so L->H is not up-sampled. `stride_mode="strided"` gives the layer
its stride back (with alpha = 0 it is then the ordinary convolution).

Deviations: odd sizes work (the authors' code fails on them): pooling rounds up and counts only what is there, and
up-sampling ends at the size of the high map. Where a convolution is not centred (its padding is not half the kernel)
the paper defines nothing, because a border of one low pixel is two high ones: here the high output has the size of the
ordinary convolution's, the low one half of it, and a path that comes out smaller or larger is continued at its border
or cropped. In 3D only space is at two resolutions; a stride in time stays a stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

import leanconv.ops.octave_rules  # noqa: F401  # whoever makes a map has the rules for it
from leanconv.errors import LeanconvError, PlanError
from leanconv.ops.channels import Device
from leanconv.ops.octave_map import OctaveMap, full_map, settled, split
from leanconv.ops.octave_parts import Runs, double, halve, low_channels
from leanconv.ops.operator import CONVS, arguments_of

__all__ = ["Exchange", "OctConv", "OctConv2d", "OctConv3d", "StrideMode"]

StrideMode = Literal["pool", "strided"]
Exchange = Literal["both", "high_to_low", "low_to_high", "none"]
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def _fit(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`x` with its last two axes at `size`: cropped at both ends, or its border values repeated."""
    missing = [wanted - have for wanted, have in zip(size, x.shape[-2:], strict=True)]
    if missing == [0, 0]:
        return x
    rows, columns = ((lack // 2, lack - lack // 2) for lack in missing)
    pad = (*columns, *rows, 0, 0)[: 2 * (x.ndim - 2)]
    crop, grow = tuple(min(0, side) for side in pad), tuple(max(0, side) for side in pad)
    x = functional.pad(x, crop) if min(crop) < 0 else x
    return functional.pad(x, grow, mode="replicate") if max(grow) > 0 else x


def _run(conv: Conv, x: Tensor | None, size: tuple[int, int] | None) -> Tensor:
    """One path; with `size`, padded first if the map is smaller than the kernel, and fitted to `size` afterwards."""
    x = cast(Tensor, x)
    if size is None:
        return cast(Tensor, conv(x))
    if not isinstance(conv.padding, str):
        reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(conv.dilation, conv.kernel_size, conv.padding, strict=True)]
        height, width = (max(need, have) for need, have in zip(reach[-2:], x.shape[-2:], strict=True))
        x = _fit(x, (height, width))
    return _fit(conv(x), size)


class OctConv(nn.Module):
    """An octave convolution with the arguments of `nn.ConvNd`, made of up to four of them.

    Shapes: an `OctaveMap` in, unless all input channels are high (a plain map) or all low (a plain low map); an
    `OctaveMap` out, unless all output channels are high or all low. Every layer halves sizes by rounding up.

    Args:
        alpha_in: share of the input channels that are at low resolution, rounded down; `low_in` says how many.
        alpha_out: share of the output channels that are, rounded down; `low_out` says how many.
        stride_mode: "pool" (the authors' networks) or "strided"; see the head of this file.
        downsample: how X^H comes down on its way to Y^L: "pool", or "strided" (Table 3).
        exchange: which of the two paths between the resolutions exist (Table 3).
        runs_in: which input channels are low, see `octave_map.Runs`; by default the last of every group.
        out_groups: the last output channels of each of so many groups are low; by default of each of `groups`.
        strict: whether an input at other resolutions than expected is refused. Otherwise it is read as it is needed:
            a map merged where a plain one is expected, a plain one split.

    Raises:
        PlanError: for a stride other than 1 and 2 in space, for groups that cannot divide the parts.

    >>> conv = OctConv2d(64, 128, 3, padding=1, alpha_in=0.5, alpha_out=0.25)
    >>> y = conv(OctaveMap(torch.zeros(1, 32, 9, 9), torch.zeros(1, 32, 5, 5)))
    >>> y.high.shape, y.low.shape, y.shape
    (torch.Size([1, 96, 9, 9]), torch.Size([1, 32, 5, 5]), torch.Size([1, 128, 9, 9]))
    """

    ndim: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        alpha_in: float = 0.5,
        alpha_out: float = 0.5,
        low_in: int | None = None,
        low_out: int | None = None,
        stride_mode: StrideMode = "pool",
        downsample: StrideMode = "pool",
        exchange: Exchange = "both",
        runs_in: Runs | None = None,
        out_groups: int | None = None,
        strict: bool = True,
    ) -> None:
        super().__init__()
        for name, value, legal in (
            ("stride_mode", stride_mode, get_args(StrideMode)),
            ("downsample", downsample, get_args(StrideMode)),
            ("exchange", exchange, get_args(Exchange)),
        ):
            if value not in legal:
                raise PlanError(f"{name} must be one of {', '.join(legal)}, got {value!r}")
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = self._each(kernel_size), self._each(stride)
        self.padding = padding if isinstance(padding, str) else self._each(padding)
        self.dilation, self.padding_mode = self._each(dilation), padding_mode
        self.stride_mode, self.downsample, self.exchange, self.strict = stride_mode, downsample, exchange, strict
        self.low_in = low_channels(alpha_in, in_channels) if low_in is None else low_in
        self.low_out = low_channels(alpha_out, out_channels) if low_out is None else low_out
        self.high_in, self.high_out = in_channels - self.low_in, out_channels - self.low_out
        self.halves = max(self.stride[-2:]) == 2
        if self.stride[-2:] not in ((1, 1), (2, 2)):
            raise PlanError(f"an octave convolution has stride 1 or 2 in space, got {self.stride}")
        self.centred = self._is_centred()
        self.depthwise = groups > 1 and groups == in_channels
        if groups > 1:
            self._check_groups()
        together = groups if groups > 1 and not self.depthwise else 1
        self.runs_in = (self.high_in // together, self.low_in // together) * together if runs_in is None else runs_in
        self.out_groups = together if out_groups is None else out_groups
        # A path between the resolutions can be switched off only where another one feeds its end.
        inside = not self.depthwise
        to_low = inside and (self.exchange in ("both", "high_to_low") or not self.low_in)
        to_high = inside and (self.exchange in ("both", "low_to_high") or not self.high_in)
        self.conv_hh = self._path(self.high_in, self.high_out, bias, device, dtype)
        self.conv_hl = self._path(self.high_in, self.low_out if to_low else 0, bias, device, dtype, falls=True)
        self.conv_lh = self._path(
            self.low_in, self.high_out if to_high else 0, bias and self.conv_hh is None, device, dtype, rises=True
        )
        self.conv_ll = self._path(self.low_in, self.low_out, bias and self.conv_hl is None, device, dtype)

    @classmethod
    def _each(cls, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * cls.ndim if isinstance(value, int) else tuple(value)

    def _is_centred(self) -> bool:
        """Whether stride 1 keeps the size of the map, so that all four paths agree on sizes by themselves."""
        if isinstance(self.padding, str):
            return self.padding == "same"
        return all(
            2 * pad == dilation * (kernel - 1)
            for pad, dilation, kernel in zip(self.padding[-2:], self.dilation[-2:], self.kernel_size[-2:], strict=True)
        )

    def _out_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the high output for a high input of `size`, as the ordinary convolution has them."""
        padding = (0, 0) if isinstance(self.padding, str) else self.padding[-2:]
        height, width = (
            (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for length, pad, dilation, kernel, stride in zip(
                size, padding, self.dilation[-2:], self.kernel_size[-2:], self.stride[-2:], strict=True
            )
        )
        if min(height, width) < 1:
            raise LeanconvError(
                f"{type(self).__name__}: a map of {size[0]}x{size[1]} is smaller than the kernel "
                f"{'x'.join(map(str, self.kernel_size))} without padding: give a larger input"
            )
        return height, width

    def _check_groups(self) -> None:
        if self.depthwise:
            if self.low_out * self.in_channels != self.low_in * self.out_channels:
                raise PlanError(
                    f"a depthwise octave convolution keeps every channel at its resolution, but {self.low_in} of "
                    f"{self.in_channels} input and {self.low_out} of {self.out_channels} output channels are low: "
                    "make alpha_in and alpha_out equal"
                )
            return
        for part, channels in (
            ("high input", self.high_in),
            ("low input", self.low_in),
            ("high output", self.high_out),
            ("low output", self.low_out),
        ):
            if channels % self.groups:
                raise PlanError(
                    f"{channels} {part} channels are asked for, which {self.groups} groups cannot divide; choose an "
                    f"alpha whose share of the channels is a multiple of {self.groups}, or leave it out"
                )

    def _path(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        device: Device,
        dtype: torch.dtype | None,
        *,
        rises: bool = False,
        falls: bool = False,
    ) -> Conv | None:
        """One of the four convolutions, or None where an end is empty or the exchange is off.

        What is left of the stride: none in space where the map is pooled first, and none on the way up, whose low map
        is at the resolution of a strided output already.
        """
        if not inputs or not outputs:
            return None
        space = (1, 1) if rises or self.stride_mode == "pool" else self.stride[-2:]
        if falls and self.downsample == "strided":
            space = (2 * space[0], 2 * space[1])
        return CONVS[
            self.ndim
        ](
            inputs,
            outputs,
            self.kernel_size,  # type: ignore[arg-type]
            stride=(*self.stride[:-2], *space),  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=inputs if self.depthwise else self.groups,
            bias=bias,
            padding_mode=self.padding_mode,  # type: ignore[arg-type]
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        """A map at two resolutions or a plain one in, one or the other out, as the channel counts say."""
        high, low, runs = self._parts(x)
        half = full = None  # the sizes that outputs must be brought to
        if not self.centred:
            full = self._out_size([2 * n for n in cast(Tensor, low).shape[-2:]] if high is None else high.shape[-2:])
            half = (full[0] + 1) // 2, (full[1] + 1) // 2
        if self.halves and self.stride_mode == "pool":
            high = None if high is None else halve(high)
            rising, low = low, None if low is None or self.conv_ll is None else halve(low)
        else:
            rising = low

        out_high = None if self.conv_hh is None else _run(self.conv_hh, high, full)
        if self.conv_lh is not None:
            risen = _run(self.conv_lh, rising, full if self.halves else half)
            if not self.halves:
                like = high if out_high is None else out_high
                risen = double(risen, like if self.centred else None)
                risen = risen if full is None else _fit(risen, full)
            out_high = risen if out_high is None else out_high + risen
        out_low = None if self.conv_ll is None else _run(self.conv_ll, low, half)
        if self.conv_hl is not None:
            falling = high if self.downsample == "strided" else halve(cast(Tensor, high))
            fallen = _run(self.conv_hl, falling, half)
            out_low = fallen if out_low is None else out_low + fallen
        if out_low is None or out_high is None:
            return cast(Tensor, out_high if out_low is None else out_low)
        return OctaveMap(out_high, out_low, self._runs_out(out_high, out_low, runs))

    def _parts(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Runs]:
        """The high and the low part of the input, and which channels are which."""
        x = settled(x)
        has_both = bool(self.low_in and self.high_in)
        if not isinstance(x, OctaveMap):
            if not has_both:
                return (None, x, self.runs_in) if self.low_in else (x, None, self.runs_in)
            if self.strict:
                raise LeanconvError(
                    f"{type(self).__name__} expects a map of {self.high_in} high and {self.low_in} low channels, got "
                    f"a plain tensor {tuple(x.shape)}: split it, or set alpha_in=0"
                )
            x = split(x, self.runs_in)
        elif not has_both:
            if self.strict or not self.high_in:
                raise LeanconvError(
                    f"{type(self).__name__} expects one plain tensor, got a map of {x.high.shape[1]} high and "
                    f"{x.low.shape[1]} low channels: merge it first"
                )
            return full_map(x), None, self.runs_in
        elif not self.strict and not self._is_expected(x.runs):
            x = split(full_map(x), self.runs_in)
        return x.high, x.low, x.runs

    def _is_expected(self, runs: Runs) -> bool:
        """Whether the low channels are those that the kernel was cut for; at another width, by their pattern alone."""
        return runs == self.runs_in or (len(runs) == len(self.runs_in) and sum(runs) != self.in_channels)

    def _runs_out(self, high: Tensor, low: Tensor, runs: Runs) -> Runs:
        """Which output channels are low, in whatever width the layer runs."""
        if self.depthwise:
            per_input = self.out_channels // self.in_channels
            return tuple(count * per_input for count in runs)
        counts = (high.shape[1], low.shape[1])
        if self.out_groups == 1:
            return counts
        inner = (self.high_out // self.out_groups, self.low_out // self.out_groups)
        groups = self.out_groups
        if counts != (self.high_out, self.low_out) and all(n % i == 0 for n, i in zip(counts, inner, strict=True)):
            groups = counts[0] // inner[0]  # whole groups were dropped
        return (counts[0] // groups, counts[1] // groups) * groups

    @classmethod
    def from_conv(cls, conv: nn.Conv2d | nn.Conv3d, **options: Any) -> OctConv:
        """The octave convolution whose four kernels are cut from `conv`'s, the same number of parameters.

        With groups, every group's own channels are cut into high and low, so that the parts of a group stay together.
        """
        if conv.weight.ndim - 2 != cls.ndim:
            raise PlanError(f"{cls.__name__} takes {cls.ndim}D convolutions, got {type(conv).__name__}")
        new = cls(*arguments_of(conv), **options)
        with torch.no_grad():
            new.load_kernel(conv.weight, conv.bias)
        return new.train(conv.training)

    def _cuts(self) -> dict[str, tuple[slice, slice]]:
        """Which rows and columns of one group's dense kernel each path holds: high channels first, then low."""
        groups = self.groups
        rows = self.high_out // groups, self.out_channels // groups
        columns = (self.high_in // groups, self.in_channels // groups) if not self.depthwise else (1, 1)
        row = {"h": slice(0, rows[0]), "l": slice(rows[0], rows[1])}
        column = {"h": slice(0, columns[0]), "l": slice(columns[0], columns[1])}
        return {f"conv_{source}{end}": (row[end], column[source]) for source in "hl" for end in "hl"}

    @torch.no_grad()
    def load_kernel(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Cut the dense kernel (C_out, C_in / groups, *K) into the four; a path that is switched off drops its part."""
        if self.depthwise:
            per_input = self.out_channels // self.in_channels
            boundary = self.high_in * per_input
            for path, part in ((self.conv_hh, weight[:boundary]), (self.conv_ll, weight[boundary:])):
                if path is not None:
                    path.weight.copy_(part)
        else:
            grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
            for name, (rows, columns) in self._cuts().items():
                path = getattr(self, name)
                if path is not None:
                    path.weight.copy_(grouped[:, rows, columns].reshape(path.weight.shape))
        if bias is not None:
            grouped_bias = bias.reshape(1 if self.depthwise else self.groups, -1)
            high = self.high_out // grouped_bias.shape[0]
            for path, part in (
                (self.conv_hh or self.conv_lh, grouped_bias[:, :high]),
                (self.conv_hl or self.conv_ll, grouped_bias[:, high:]),
            ):
                if path is not None and path.bias is not None:
                    path.bias.copy_(part.reshape(-1))

    def dense_kernel(self) -> Tensor:
        """The dense kernel (C_out, C_in / groups, *K) that the four tile, with zeros where a path is switched off."""
        if self.depthwise:
            return torch.cat([path.weight for path in (self.conv_hh, self.conv_ll) if path is not None])
        some = next(path for path in (self.conv_hh, self.conv_hl, self.conv_lh, self.conv_ll) if path is not None)
        shape = (self.groups, self.out_channels // self.groups, self.in_channels // self.groups, *self.kernel_size)
        dense = some.weight.new_zeros(shape)
        for name, (rows, columns) in self._cuts().items():
            path = getattr(self, name)
            if path is not None:
                dense[:, rows, columns] = path.weight.reshape(dense[:, rows, columns].shape)
        return dense.flatten(0, 1)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"low_in={self.low_in}, low_out={self.low_out}"
        )


class OctConv2d(OctConv):
    """`OctConv` for images, with the signature of `nn.Conv2d`."""

    ndim = 2


class OctConv3d(OctConv):
    """`OctConv` for clips, with the signature of `nn.Conv3d`; height and width are at two resolutions, time is not."""

    ndim = 3
