"""After a rewrite nothing holds a replaced layer, wherever a network keeps its layers; and the report says what ran."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict, deque
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import leanconv as lc
from leanconv.errors import RewriteError
from leanconv.rewrites import swap


class Both(NamedTuple):
    one: Any
    other: Any


class Net(nn.Module):
    """Three layers, which the forward takes from wherever `keep` puts them."""

    def __init__(self, keep: Any = lambda layers: layers, run: Any = iter) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)
        vars(self)["kept"] = keep([self.a, self.b, self.c])
        self.run = run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.run(self.kept):
            x = torch.relu(layer(x))
        return x


PLACES: dict[str, tuple[Any, Any]] = {
    "list": (list, iter),
    "tuple": (tuple, iter),
    "named tuple": (lambda layers: Both(layers[0], Both(*layers[1:])), lambda kept: (kept.one, *kept.other)),
    "deque": (deque, iter),
    "dict": (lambda layers: OrderedDict(zip("abc", layers, strict=True)), lambda kept: kept.values()),
    "keys": (lambda layers: dict.fromkeys(layers, 3), iter),
    "list of dicts": (lambda layers: [{"layer": layer} for layer in layers], lambda kept: (d["layer"] for d in kept)),
    "object": (
        lambda layers: SimpleNamespace(one=layers[0], rest=layers[1:]),
        lambda kept: (kept.one, *kept.rest),
    ),
    "forwards": (lambda layers: [layer.forward for layer in layers], iter),
    "partials": (lambda layers: [functools.partial(call, layer) for layer in layers], iter),
    "unregistered module": (lambda layers: [nn.Sequential(*layers)], iter),
    "set": (lambda layers: (set(layers[1:]), layers[0]), lambda kept: (kept[1], *kept[0])),
}


def call(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x)


@pytest.mark.parametrize("place", PLACES)
def test_the_network_calls_the_new_layers_wherever_it_keeps_them(place: str) -> None:
    torch.manual_seed(0)
    net, x = Net(*PLACES[place]), torch.randn(1, 3, 12, 12)
    before = net(x)
    done = lc.rewrite(net, lc.DepthSeparable(where="b", init="fresh"))
    assert not torch.equal(done.model(x), before)
    assert torch.equal(net(x), before)
    called: list[nn.Module] = []
    done.model.b.register_forward_hook(lambda *_: called.append(done.model.b))
    with_hook = done.model(x)
    assert called or place == "forwards"
    with torch.no_grad():
        for parameter in done.model.b.parameters():
            parameter.zero_()
    assert not torch.equal(done.model(x), with_hook)
    assert lc.rewrite(net, lc.DepthSeparable(where="b", init="fresh"), size=(3, 12, 12)).changes[0].ran


def test_an_alias_beside_the_tree_and_a_part_of_another_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
    vars(net)["alias"] = net[1][0]
    vars(net[1])["before"] = {"layers": [net[0]]}
    new = swap(net, lambda _, module: nn.Conv2d(8, 8, 1) if module is not None and name_of(module) else None).model
    assert vars(new)["alias"] is new[1][0]
    assert vars(new[1])["before"]["layers"][0] is new[0]


def name_of(module: nn.Module) -> str:
    return "conv" if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) else ""


def test_what_cannot_hold_the_new_layer_is_refused_by_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    vars(net)["show"] = [net[1].extra_repr]
    with pytest.raises(RewriteError, match=r"Sequential\.show\[0\], its method extra_repr holds 1, which is replaced"):
        lc.rewrite(net, lc.DepthSeparable(init="fresh"))
    block = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU())
    outer = nn.Sequential(block, nn.ReLU())
    vars(outer)["first"] = [block[0]]
    with pytest.raises(RewriteError, match=r"Sequential\.first\[0\] holds 0\.0, which is replaced, and cannot be made"):
        swap(outer, lambda name, _: nn.Identity() if name == "0" else None)


def test_a_function_that_has_captured_a_layer_is_refused() -> None:
    net = Net(lambda layers: [lambda x: layers[0](x), *layers[1:]])
    with pytest.raises(RewriteError, match=r"Net\.kept has captured the layer a \(function\): a copy"):
        lc.rewrite(net, lc.DepthSeparable(init="fresh"))
    net = Net(lambda layers: [weakref.ref(layer) for layer in layers], lambda kept: (ref() for ref in kept))
    with pytest.raises(RewriteError, match=r"Net\.kept has captured the layer a \(weakref\)|\(ReferenceType\)"):
        lc.rewrite(net, lc.DepthSeparable(init="fresh"))
    hooked = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    hooked[1].register_forward_hook(lambda _m, _i, y, first=hooked[0]: y + first.bias[:, None, None])
    with pytest.raises(RewriteError, match=r"1\._forward_hooks has captured the layer 0"):
        lc.rewrite(hooked, lc.DepthSeparable(init="fresh"))


def test_a_layer_that_does_not_run_is_said() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.b, self.aux = (nn.Conv2d(i, 16, 3, padding=1) for i in (3, 16, 16))

        def forward(self, x: torch.Tensor) -> Any:
            x = self.b(self.stem(x))
            return (x, self.aux(x)) if self.training else x

    done = lc.rewrite(Auxiliary(), lc.DepthSeparable(init="fresh"), size=(3, 8, 8))
    assert {change.name: change.ran for change in done.changes} == {"b": True, "aux": False}
    assert "1 of them do not run in evaluation, before and after: aux" in str(done)
    assert str(done.changes[1]).endswith("weights fresh, which does not run in evaluation)")
    assert {change.ran for change in lc.rewrite(Auxiliary(), lc.DepthSeparable(init="fresh")).changes} == {None}


def test_failures_after_a_rewrite_name_the_layer_the_cause_and_the_line() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.conv.weight.sum()

    net = nn.Sequential(nn.Conv2d(3, 8, 3), Fused())
    with pytest.raises(
        RewriteError,
        match=r"^1 no longer runs after 1\.conv was replaced: AttributeError.*weight.*, in `return x \* "
        r"self\.conv\.weight\.sum\(\)` at .*test_references\.py:\d+: leave it alone with",
    ):
        lc.rewrite(net, lc.DepthSeparable(init="fresh"), size=(3, 8, 8))
