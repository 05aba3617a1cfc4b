"""Random small networks, as plain data that hypothesis can make smaller, and the module that the data describe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from random_parts import FUNCTIONS, Items, build

Spec = dict[str, Any]


class RandomNet(nn.Module):
    """What a description says: one or two stems, a body, a head."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        torch.manual_seed(spec["seed"])
        self.head_kind = spec["head"]
        stems = [build([["conv", stem]], shape[0]) for stem, shape in zip(spec["stems"], spec["inputs"], strict=True)]
        self.stems = nn.ModuleList(stem for stem, _ in stems)
        self.body, channels = build(spec["body"], sum(out for _, out in stems))
        self.head = nn.Conv2d(channels, 3, 1) if self.head_kind in ("maps", "dict") else nn.Linear(channels, 3)

    def forward(self, *inputs: Tensor) -> Any:
        maps = self.features(*inputs)
        if self.head_kind in ("maps", "dict"):
            y = self.head(maps)
            return {"maps": y, "features": maps} if self.head_kind == "dict" else y
        if self.head_kind == "pooled":
            return self.head(F.adaptive_avg_pool2d(maps, 1).flatten(1))
        y = self.head(maps.mean((2, 3)))
        return (y, maps.amax((2, 3))) if self.head_kind == "tuple" else y

    def features(self, *inputs: Tensor) -> Tensor:
        maps = [stem(x) for stem, x in zip(self.stems, inputs, strict=True)]
        maps = [maps[0], *(F.interpolate(x, maps[0].shape[2:]) for x in maps[1:])]
        return self.body(torch.cat(maps, 1) if len(maps) > 1 else maps[0])


def network(spec: str | Spec) -> RandomNet:
    """The network of a description (also as JSON), in the mode and with the frozen parameters that it says."""
    spec = json.loads(spec) if isinstance(spec, str) else spec
    net = RandomNet(spec)
    net.train(spec["training"])
    if spec["frozen"]:
        net.stems.eval().requires_grad_(False)
    return net


def sizes(spec: Spec) -> Any:
    """What `size` is for it."""
    shapes = [tuple(shape) for shape in spec["inputs"]]
    return shapes[0] if len(shapes) == 1 else shapes


def inputs(spec: Spec, batch: int = 3, *, constant: bool = False, seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    made = [
        torch.randn(batch, shape[0], *([1, 1] if constant else shape[1:]), generator=generator)
        for shape in spec["inputs"]
    ]
    return tuple(x.expand(batch, *shape).contiguous() for x, shape in zip(made, spec["inputs"], strict=True))


# ------------------------------------------------------------------------------------------------------ strategies


def convs(*, plain: bool = False, circular: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    options: dict[str, st.SearchStrategy[Any]] = {
        "out": st.sampled_from((4, 6, 8, 12)),
        "kernel": st.sampled_from((1, 3, [1, 3], 5)),
        "stride": st.sampled_from((1, 1, 2)),
        "bias": st.booleans(),
        "groups": st.sampled_from(("one", "one", "two", "depthwise")),
    }
    if circular:
        options["padding_mode"] = st.just("circular")
    elif not plain:
        options["padding_mode"] = st.sampled_from(("zeros", "zeros", "zeros", "circular", "reflect", "replicate"))
    if not plain:
        options["dilation"] = st.sampled_from((1, 1, 1, 2))
        options["form"] = st.sampled_from(
            ("plain",) * 8 + ("own", "scaled", "weight_norm", "weight_norm_hook", "spectral_norm")
        )
    return st.fixed_dictionaries(options)


def _of(kind: str, **options: Sequence[Any] | st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    drawn = {
        name: values if isinstance(values, st.SearchStrategy) else st.sampled_from(values)
        for name, values in options.items()
    }
    return st.fixed_dictionaries(drawn).map(lambda made: [kind, made])


PLAIN_FUNCTIONS = ("relu", "module", "silu", "hardswish", "prelu")


def bodies(*, plain: bool = False, circular: bool = False, deep: int = 2) -> st.SearchStrategy[Items]:
    """Lists of parts; `plain` are the ones of ordinary networks, `circular` keeps a constant image constant."""
    functions = PLAIN_FUNCTIONS if plain else (*FUNCTIONS, "module", "prelu")
    conv = convs(plain=plain, circular=circular).map(lambda options: ["conv", options])
    norms = (
        ("batch", "group")
        if plain
        else ("batch", "batch", "batch", "batch", "bare", "untracked", "cma", "frozen", "group", "layer", "instance")
    )
    pools = ("max", "avg") if plain else ("max", "ceil", "avg", "functional", "adaptive", "strided")
    pools = tuple(form for form in pools if not (circular and form == "functional"))  # it averages over zeros outside
    unit = _of("unit", conv=convs(plain=plain, circular=circular), norm=norms, act=functions)
    leaves = [conv, unit, unit, _of("norm", form=norms), _of("act", name=functions), _of("pool", form=pools)]
    if not plain:
        leaves += [
            _of("drop", form=("module", "channels") if circular else ("module", "channels", "always")),
            _of("scaled", persistent=(True, False)),
            _of("gate", linear=(True, False)),
            _of("attention", fused=(True, False)),
            _of("resize", mode=("nearest", "bilinear")),
            _of(
                "pad",
                mode=("circular", "circular_module") if circular else ("constant", "module", "circular", "reflect"),
            ),
        ]
        leaves += [] if circular else [_of("up", out=(4, 8)), _of("tied")]
    body = st.lists(st.one_of(leaves), min_size=1, max_size=4)
    for _ in range(deep):
        nested = [_of("residual", body=body, how=("plus", "iadd", "add")), _of("gate", linear=(True, False))]
        nested.append(_of("beside", bodies=st.lists(body, min_size=1, max_size=2), keep=(True, False)))
        if not plain:
            hows = (
                "none",
                "no_grad",
                "no_autocast",
                "checkpoint",
                "checkpoint_reentrant",
                "depth",
                "training",
                "instance",
                "large",
            )
            nested += [
                _of("split", body=body, how=("slice", "narrow", "split", "shuffle")),
                _of("twice", body=body),
                _of("listed", bodies=st.lists(body, min_size=2, max_size=2), how=("list", "dict")),
                _of("under", body=body, how=hows),
            ]
        body = st.lists(st.one_of([*leaves, *nested]), min_size=1, max_size=4)
    return body


@st.composite
def specs(draw: st.DrawFn, *, plain: bool = False, circular: bool = False, clean: bool = False) -> Spec:
    """Descriptions of networks; `clean` ones have one input and give one plain output."""
    side = draw(st.sampled_from((12, 9, 15, 16)))
    several = not (plain or clean or circular) and draw(st.integers(0, 9)) == 0
    shapes = [[draw(st.sampled_from((3, 1, 4))), side, side]]
    if several:
        shapes.append([2, 8, 8])
    heads = ("mean", "pooled", "maps") if plain or clean else ("mean", "pooled", "maps", "tuple", "dict")
    return {
        "seed": draw(st.integers(0, 3)),
        "inputs": shapes,
        "stems": [draw(convs(plain=True, circular=circular)) | {"groups": "one"} for _ in shapes],
        "body": draw(bodies(plain=plain, circular=circular)),
        "head": draw(st.sampled_from(heads)),
        "training": draw(st.booleans()),
        "frozen": draw(st.integers(0, 4)) == 0,
    }
