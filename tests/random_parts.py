"""What random networks are made of: small modules, one per thing that people's networks do.

A network is described by plain data that JSON can hold: a list of `[kind, options]`, options may hold such lists again.
`build(items, channels)` makes it; how many channels a part is given is known only then, so that any description with
any part taken out is a description again, and a failing one can be made smaller.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.utils.checkpoint import checkpoint

Items = list[list[Any]]
PARTS: dict[str, Callable[..., tuple[nn.Module, int]]] = {}
"""Kind -> a function of the channels that come in and the options; returns the module and the channels that go out."""


def part(builder: Callable[..., tuple[nn.Module, int]]) -> Callable[..., tuple[nn.Module, int]]:
    PARTS[builder.__name__.rstrip("_")] = builder
    return builder


def build(items: Items, channels: int) -> tuple[nn.Sequential, int]:
    body = nn.Sequential()
    for kind, options in items:
        module, channels = PARTS[kind](channels, **options)
        body.append(module)
    return body, channels


def matched(body: nn.Module, given: int, wanted: int) -> nn.Module:
    """`body`, with a 1x1 convolution behind it where it does not end with the wanted channels."""
    return body if given == wanted else nn.Sequential(body, nn.Conv2d(given, wanted, 1))


# ------------------------------------------------------------------------------------------------------ the leaves


class OwnConv(nn.Conv2d):
    """A subclass that adds nothing."""


class ScaledConv(nn.Conv2d):
    """A subclass that computes something else: its weight is standardized when it runs."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-3).sqrt()
        return self._conv_forward(x, w, self.bias)


@part
def conv(
    channels: int,
    out: int = 8,
    kernel: int | list[int] = 3,
    stride: int = 1,
    dilation: int = 1,
    groups: str = "one",
    bias: bool = True,
    padding_mode: str = "zeros",
    form: str = "plain",
) -> tuple[nn.Module, int]:
    count = {"one": 1, "two": math.gcd(2, math.gcd(channels, out)), "depthwise": channels}[groups]
    out = channels * max(1, out // channels) if groups == "depthwise" else out
    kernels = (kernel, kernel) if isinstance(kernel, int) else tuple(kernel)
    padding = tuple(dilation * (k // 2) for k in kernels)
    cls = {"own": OwnConv, "scaled": ScaledConv}.get(form, nn.Conv2d)
    made: nn.Module = cls(
        channels, out, kernels, stride, padding, dilation, count, bias=bias, padding_mode=padding_mode
    )
    if form == "weight_norm":
        made = parametrizations.weight_norm(made)
    elif form == "weight_norm_hook":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in many a saved network
            made = weight_norm(made)
    elif form == "spectral_norm":
        made = parametrizations.spectral_norm(made)
    return made, out


@part
def unit(channels: int, conv: dict[str, Any], norm: str = "batch", act: str = "relu") -> tuple[nn.Module, int]:
    """Convolution, norm, activation: what most networks are made of."""
    return build([["conv", conv], ["norm", {"form": norm}], ["act", {"name": act}]], channels)


@part
def up(channels: int, out: int = 8) -> tuple[nn.Module, int]:
    """A transposed convolution, and a pool that undoes its size."""
    return nn.Sequential(nn.ConvTranspose2d(channels, out, 2, stride=2), nn.MaxPool2d(2)), out


class Frozen(nn.BatchNorm2d):
    """Statistics that stay, whatever mode the network is in."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Norm2d(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W), as ConvNeXt's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@part
def norm(channels: int, form: str = "batch") -> tuple[nn.Module, int]:
    made: nn.Module
    if form == "group":
        made = nn.GroupNorm(math.gcd(channels, 2), channels)
    elif form == "layer":
        made = Norm2d(channels)
    elif form == "instance":
        made = nn.InstanceNorm2d(channels, affine=True)
    else:
        cls = Frozen if form == "frozen" else nn.BatchNorm2d
        made = cls(
            channels,
            affine=form != "bare",
            track_running_stats=form != "untracked",
            momentum=None if form == "cma" else 0.1,
        )
        with torch.no_grad():
            if made.affine:
                made.weight.uniform_(0.5, 1.5)
                made.bias.uniform_(-0.5, 0.5)
            if made.track_running_stats:
                made.running_mean.uniform_(-0.3, 0.3)
                made.running_var.uniform_(0.5, 1.5)
    return made, channels


class Call(nn.Module):
    """One function of the map."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _keeping(method: str, *args: Any, **kwargs: Any) -> Callable[[Tensor], Tensor]:
    """An operation in place whose result is read under the older name of the map."""

    def function(x: Tensor) -> Tensor:
        y = x + 0
        z = y
        getattr(y, method)(*args, **kwargs)
        return z

    return function


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu_": _keeping("relu_"),
    "clamp_min_": _keeping("clamp_min_", -0.2),
    "mul_": _keeping("mul_", 0.7),
    "masked_fill_": lambda x: (x + 0).masked_fill_(x < -0.5, 0.1),
    "iadd": lambda x: torch.add(x, 0.1).__iadd__(0.2),
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "tanh": torch.tanh,
    "norm": lambda x: F.normalize(x, dim=1),
    "softmax": lambda x: x.softmax(1),
    "glu_like": lambda x: x * x.sigmoid(),
    "max_with": lambda x: torch.maximum(x, -0.5 * x),
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "channels_last": lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2),
    "flattened": lambda x: x.flatten(2).relu().view(x.shape),
    "reversed": lambda x: x.flip(1),
    "rolled": lambda x: x.roll(1, 1),
    "centred": lambda x: x - x.mean((2, 3), keepdim=True),
    "over_std": lambda x: x / (x.var((-2, -1), keepdim=True, unbiased=False) + 1).sqrt(),
    "einsum": lambda x: torch.einsum("bchw,bchw->bc", x, x)[:, :, None, None] * 0.01 + x,
}


@part
def act(channels: int, name: str = "relu") -> tuple[nn.Module, int]:
    if name == "module":
        return nn.ReLU(inplace=True), channels
    if name == "prelu":
        return nn.PReLU(channels), channels
    return Call(FUNCTIONS[name]), channels


@part
def pool(channels: int, form: str = "max") -> tuple[nn.Module, int]:
    forms: dict[str, Callable[[], nn.Module]] = {
        "max": lambda: nn.MaxPool2d(3, 2, 1),
        "ceil": lambda: nn.MaxPool2d(2, 2, ceil_mode=True),
        "avg": lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
        "functional": lambda: Call(lambda x: F.avg_pool2d(x, 3, 1, 1)),
        "adaptive": lambda: nn.AdaptiveAvgPool2d(5),
        "strided": lambda: Call(lambda x: x[:, :, ::2, ::2]),
    }
    return forms[form](), channels


@part
def resize(channels: int, mode: str = "nearest") -> tuple[nn.Module, int]:
    align = None if mode == "nearest" else False
    return Call(lambda x: F.interpolate(x, (10, 14), mode=mode, align_corners=align)), channels


@part
def pad(channels: int, mode: str = "constant") -> tuple[nn.Module, int]:
    forms = {"module": nn.ZeroPad2d(1), "circular_module": nn.CircularPad2d(1)}
    return forms.get(mode, Call(lambda x: F.pad(x, (1, 0, 0, 1), mode=mode))), channels


@part
def drop(channels: int, form: str = "module") -> tuple[nn.Module, int]:
    forms: dict[str, Callable[[], nn.Module]] = {
        "module": lambda: nn.Dropout(0.2),
        "channels": lambda: nn.Dropout2d(0.2),
        "always": lambda: Call(lambda x: F.dropout(x, 0.2, training=True)),
    }
    return forms[form](), channels


class Scaled(nn.Module):
    """A learned factor a channel and a drawn constant, saved or not."""

    def __init__(self, channels: int, persistent: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.register_buffer("drawn", torch.rand(1), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma + self.drawn


@part
def scaled(channels: int, persistent: bool = True) -> tuple[nn.Module, int]:
    return Scaled(channels, persistent), channels


# ----------------------------------------------------------------------------------------- modules that hold others


class Residual(nn.Module):
    def __init__(self, body: nn.Module, short: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.short, self.how = body, short, how

    def forward(self, x: Tensor) -> Tensor:
        y, short = self.body(x), self.short(x)
        if short.shape[2:] != y.shape[2:]:
            short = F.adaptive_avg_pool2d(short, y.shape[2:])
        if self.how == "iadd":
            y = y + 0
            older = y
            y += short
            return older
        return torch.add(short, y, alpha=0.5) if self.how == "add" else y + short


@part
def residual(channels: int, body: Items, how: str = "plus") -> tuple[nn.Module, int]:
    made, out = build(body, channels)
    return Residual(made, nn.Identity() if out == channels else nn.Conv2d(channels, out, 1), how), out


class Beside(nn.Module):
    """Bodies read the same map; their channels are put side by side."""

    def __init__(self, bodies: list[nn.Module], keep: bool) -> None:
        super().__init__()
        self.bodies, self.keep = nn.ModuleList(bodies), keep

    def forward(self, x: Tensor) -> Tensor:
        maps = [body(x) for body in self.bodies]
        size = maps[0].shape[2:]
        return torch.cat([F.interpolate(y, size) if y.shape[2:] != size else y for y in [*maps, *[x] * self.keep]], 1)


@part
def beside(channels: int, bodies: list[Items], keep: bool = True) -> tuple[nn.Module, int]:
    made = [build(body, channels) for body in bodies]
    return Beside([body for body, _ in made], keep), sum(out for _, out in made) + channels * keep


class Gate(nn.Module):
    """Squeeze and excitation, by linear layers or 1x1 convolutions."""

    def __init__(self, channels: int, linear: bool) -> None:
        super().__init__()
        layer = nn.Linear if linear else (lambda ins, outs: nn.Conv2d(ins, outs, 1))
        self.squeeze, self.excite, self.linear = layer(channels, 4), layer(4, channels), linear

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=not self.linear)
        gate = self.excite(F.relu(self.squeeze(mean))).sigmoid()
        return x * (gate[:, :, None, None] if self.linear else gate)


@part
def gate(channels: int, linear: bool = True) -> tuple[nn.Module, int]:
    return Gate(channels, linear), channels


class Split(nn.Module):
    """One part of the channels goes through a body, the other passes; then they are shuffled."""

    def __init__(self, body: nn.Module, first: int, how: str) -> None:
        super().__init__()
        self.body, self.first, self.how = body, first, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "slice":
            a, b = x[:, : self.first], x[:, self.first :]
        elif self.how == "narrow":
            a, b = x.narrow(1, 0, self.first), x.narrow(1, self.first, x.shape[1] - self.first)
        else:
            a, b = x.split((self.first, x.shape[1] - self.first), dim=1)
        a = self.body(a)
        if a.shape[2:] != b.shape[2:]:
            b = F.adaptive_max_pool2d(b, a.shape[2:])
        y = torch.cat([b, a], 1)
        if self.how == "shuffle" and y.shape[1] % 2 == 0:
            batch, channels, h, w = y.shape
            y = y.view(batch, 2, channels // 2, h, w).transpose(1, 2).reshape(batch, channels, h, w)
        return y


@part
def split(channels: int, body: Items, how: str = "slice") -> tuple[nn.Module, int]:
    first = max(1, channels // 2)
    if first == channels:
        return build(body, channels)
    made, out = build(body, first)
    return Split(made, first, how), out + channels - first


class Twice(nn.Module):
    """One module, called twice."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x))


@part
def twice(channels: int, body: Items) -> tuple[nn.Module, int]:
    made, out = build(body, channels)
    return Twice(matched(made, out, channels)), channels


class Tied(nn.Module):
    """Two convolutions with one weight."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x)))


@part
def tied(channels: int) -> tuple[nn.Module, int]:
    return Tied(channels), channels


class Listed(nn.Module):
    """Layers that are held by their names, and run from a plain list, or a dictionary, of them."""

    def __init__(self, first: nn.Module, second: nn.Module, how: str) -> None:
        super().__init__()
        self.first, self.second, self.how = first, second, how
        self.order: Any = {"a": first, "b": second} if how == "dict" else [first, second]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order.values() if self.how == "dict" else self.order:
            x = layer(x)
        return x


@part
def listed(channels: int, bodies: list[Items], how: str = "list") -> tuple[nn.Module, int]:
    (first, middle), second = build(bodies[0], channels), bodies[-1]
    last, out = build(second, middle)
    return Listed(first, last, how), out


class Under(nn.Module):
    """A body under a context, or on a condition."""

    def __init__(self, body: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.body(x)
        if self.how == "no_autocast":
            with torch.autocast("cpu", enabled=False):
                return self.body(x)
        if self.how.startswith("checkpoint") and self.training:
            return checkpoint(self.body, x, use_reentrant=self.how == "checkpoint_reentrant")
        if self.how == "depth" and self.training and random.random() < 0.5:
            return x
        if self.how == "training" and self.training:
            return self.body(x) * 0.9
        if self.how == "none" and gain is None:
            return self.body(x)
        if self.how == "instance" and not isinstance(x, Tensor):
            return x
        return self.body(x) if self.how != "large" or x.shape[-1] > 3 else x


@part
def under(channels: int, body: Items, how: str = "none") -> tuple[nn.Module, int]:
    made, out = build(body, channels)
    return Under(matched(made, out, channels), how), channels


class Attention(nn.Module):
    """Every position looks at sixteen places."""

    def __init__(self, channels: int, fused: bool) -> None:
        super().__init__()
        self.query, self.pair = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 2 * channels, 1)
        self.out, self.fused = nn.Conv2d(channels, channels, 1), fused

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).flatten(2).transpose(1, 2)
        k, v = (y.flatten(2).transpose(1, 2) for y in self.pair(F.adaptive_avg_pool2d(x, 4)).chunk(2, 1))
        if self.fused:
            y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            y = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(x.shape))


@part
def attention(channels: int, fused: bool = False) -> tuple[nn.Module, int]:
    return Attention(channels, fused), channels
