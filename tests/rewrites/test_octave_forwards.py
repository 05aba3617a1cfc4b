"""What a forward may do: whatever it asks, draws, changes in place or sets for a while, its octave network does, too.

Convolutions pad round the border and the image is constant in space, so that an octave network equals the dense one.
That every operation in place is seen is shown for the map itself, in `tests/ops/test_octave_map.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.errors import RewriteError
from leanconv.ops.octave import OctConv
from leanconv.ops.octave_map import OctaveMap
from leanconv.rewrites import Octave, rewrite

SIZE = (3, 16, 16)


def round_conv(inputs: int, outputs: int = 8, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="circular", **options)


class Net(nn.Module):
    """A stem, some convolutions and a head around one forward."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = round_conv(3), round_conv(8), round_conv(8), round_conv(8)
        self.norm, self.head, self.body = nn.BatchNorm2d(8), nn.Linear(8, 4), body

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.body(self, self.stem(x), *args, **kwargs)

    def end(self, x: Tensor) -> Tensor:
        return self.head(self.c(x).mean((2, 3)))


def both(body: Callable[..., Any], seed: int = 0, kind: type[Net] = Net) -> tuple[Net, Any]:
    """A network, and its octave form."""
    torch.manual_seed(seed)
    net = kind(body).double()
    nn.init.uniform_(net.norm.weight, 0.5, 2)
    nn.init.normal_(net.norm.running_mean)
    new = rewrite(net.eval(), Octave(last=True), size=SIZE).model
    assert type(new) is kind
    assert sum(isinstance(module, OctConv) for module in new.modules()) >= 1
    return net, new


def image(batch: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 1, 1, generator=generator, dtype=torch.double).expand(batch, *SIZE).contiguous()


def written_through_a_name(m: Any, x: Tensor) -> Tensor:
    y = m.b(m.a(x))
    kept, before = y, torch.relu(y)
    y += m.c(y)
    return m.end(kept) + (before + y).mean((2, 3)) @ m.head.weight.T


def result_not_bound(m: Any, x: Tensor) -> Tensor:
    y = m.b(m.a(x))
    y.clamp_min_(0)
    y.masked_fill_(y > 0.5, 0.25)
    return m.end(y)


def written_into_a_full_map(m: Any, x: Tensor) -> Tensor:
    y = m.b(m.a(x))
    full = torch.sin(y)
    kept = full
    full += y
    return m.end(kept)


def without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.a(x)
        assert not y.requires_grad
    return m.end(m.b(y))


def with_gradients_again(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), torch.enable_grad():
        y = m.a(x)
    return m.end(m.b(y))


def asks_whether_there_are_gradients(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.end(m.b(y * 2) if torch.is_grad_enabled() else y)


def asks_types(m: Any, x: Any) -> Tensor:
    y = m.a(x)
    assert isinstance(y, Tensor)
    assert torch.is_tensor(y)
    if isinstance(y, (list, tuple)) or y is None or y.dtype != torch.double or y.shape[1] != 8:
        return m.end(-y)
    return m.end(m.b(y))


def asks_the_mode(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.end(m.b(y) if m.training else m.b(m.norm(y)))


def several_outputs(m: Any, x: Tensor) -> Any:
    y = m.a(x)
    return {"features": [y, m.b(y)], "scores": m.end(y)}


def a_generator(m: Any, x: Tensor) -> Tensor:
    return m.end(sum(layer(x) for layer in (m.a, m.b)))


def shared_module(m: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.relu(m.norm(m.a(x)))
    return m.end(x)


def a_hook_on_a_map(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    if y.requires_grad:
        y.register_hook(lambda gradient: gradient * 3)
    return m.end(m.b(y))


def detaches(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.end(m.b(y.detach()) + y)


def catches(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    try:
        y.reshape(7)
    except RuntimeError:
        y = m.b(y)
    return m.end(y)


def keeps_what_it_saw(m: Any, x: Tensor) -> Tensor:
    m.seen = m.a(x)
    return m.end(m.b(m.seen)) + m.seen.mean((2, 3))[:, :4]


FORWARDS = {
    function.__name__.replace("_", " "): function
    for function in (
        *(written_through_a_name, result_not_bound, written_into_a_full_map, without_gradients, with_gradients_again),
        *(asks_whether_there_are_gradients, asks_types, asks_the_mode, several_outputs, a_generator, shared_module),
        *(a_hook_on_a_map, detaches, catches, keeps_what_it_saw),
    )
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_does_what_it_did(name: str, training: bool) -> None:
    """Outputs, and what each parameter learns; what the dense one does not learn, the octave one does not either."""
    net, new = both(FORWARDS[name])
    x = image()
    outs = []
    for one in (net, new):
        out = one.train(training)(x)
        leaves = torch.utils._pytree.tree_leaves(out)
        outs.append(leaves)
        sum(leaf.square().sum() for leaf in leaves).backward()
    for wanted, got in zip(*outs, strict=True):
        assert type(got) is Tensor
        torch.testing.assert_close(got, wanted)
    learnt = {name for name, p in net.named_parameters() if p.grad is not None}
    for path in (".conv_hh", ".conv_hl", ".conv_lh", ".conv_ll", ".high", ".low"):
        assert {
            one.replace(path, "") for one, p in new.named_parameters() if path in one and p.grad is not None
        } <= learnt
    for layer in ("stem", "head"):
        for parameter in ("weight", "bias"):
            wanted, got = (getattr(getattr(one, layer), parameter).grad for one in (net, new))
            assert (wanted is None) == (got is None)
            if wanted is not None:
                torch.testing.assert_close(got, wanted)
    with torch.no_grad():
        for wanted, got in zip(*(torch.utils._pytree.tree_leaves(one.eval()(x)) for one in (net, new)), strict=True):
            torch.testing.assert_close(got, wanted)


ARGUMENTS: dict[str, tuple[Callable[..., Any], list[tuple[tuple[Any, ...], dict[str, Any]]]]] = {
    "is one given": (
        lambda m, x, gain=None: m.end(m.b(m.a(x)) if gain is None else m.a(x) * gain),
        [((), {}), ((2.0,), {}), ((), {"gain": torch.full((8, 1, 1), 2.0)})],
    ),
    "a number of steps": (
        lambda m, x, steps=2: m.end([x := m.a(x) for _ in range(steps)][-1]),
        [((), {}), ((1,), {}), ((4,), {})],
    ),
    "a name": (
        lambda m, x, layer="a": m.end(getattr(m, layer)(x)),
        [((), {}), (("b",), {})],
    ),
    "a mask": (
        lambda m, x, mask=None: m.end(m.a(x) if mask is None else m.a(x) * mask),
        [((), {}), ((torch.tensor([1.0, 0, 1, 0]).reshape(4, 1, 1, 1),), {})],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_branches_on_arguments_are_taken_at_every_call(name: str) -> None:
    body, calls = ARGUMENTS[name]
    net, new = both(body)
    found = []
    for args, kwargs in calls:
        wanted = net(image(), *args, **kwargs)
        torch.testing.assert_close(new(image(), *args, **kwargs), wanted)
        found.append(wanted)
    assert not any(torch.equal(found[0], other) for other in found[1:])


DRAWS: dict[str, Callable[..., Any]] = {
    "dropout that is always on": lambda m, x: m.end(functional.dropout(m.b(m.a(x)), 0.5, True)),
    "dropout of the head": lambda m, x: functional.dropout(m.end(m.a(x)), 0.5, training=True),
    "a number": lambda m, x: m.end(m.a(x) if random.random() < 0.5 else m.b(m.a(x))),
    "a number of torch's": lambda m, x: m.end(m.b(m.a(x)) * torch.rand(()).item()),
    "noise": lambda m, x: m.end(m.a(x) + torch.randn_like(m.a(x))),
    "a permutation": lambda m, x: m.end(m.a(x)[torch.randperm(len(x))]),
    "drop path": lambda m, x: m.end(x + m.b(m.a(x)) * (torch.rand(len(x), 1, 1, 1) < 0.5)),
    "bernoulli in place": lambda m, x: m.end(m.b(m.a(x)) * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.5)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_is_drawn_at_every_call(name: str) -> None:
    if name == "a number of torch's":  # it asks for a value
        with pytest.raises(RewriteError, match="reads tensor values"):
            both(DRAWS[name])
        return
    layers = set()
    for seed in range(4):  # of Python's draw while it is rewritten
        random.seed(seed)
        net, new = both(DRAWS[name])
        layers.add(sum(isinstance(module, OctConv) for module in new.modules()))
    assert name == "a number" or len(layers) == 1
    with torch.no_grad():
        counts = [len({round(float(one(image())[0, 0]), 9) for _ in range(24)}) for one in (net, new)]
    assert counts[1] >= counts[0] // 2 > 0
    assert counts[1] > 1


class Blocks(Net):
    """Stochastic depth by a number that is drawn while training."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in (self.a, self.b):
            if not self.training or random.random() > 0.4:
                x = torch.relu(x + layer(x))
        return self.end(x)


def test_depth_is_drawn_while_training_and_the_rewrite_is_not_by_chance() -> None:
    found = set()
    for seed in range(5):
        random.seed(seed)
        net, new = both(lambda m, x: x, kind=Blocks)
        found.add(sum(isinstance(module, OctConv) for module in new.modules()))
        torch.testing.assert_close(new(image()), net(image()))
    assert found == {3}
    new.train()
    assert len({round(float(new(image()).detach().sum()), 9) for _ in range(40)}) == 4


def test_autocast_inside_a_forward_is_one() -> None:
    seen: list[Any] = []

    def body(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = m.b(m.a(x))
            seen.append((y.dtype, type(y)))
        return m.end(y.float())

    torch.manual_seed(0)
    net = Net(body)
    new = rewrite(net.eval(), Octave(last=True), size=SIZE).model
    seen.clear()
    torch.testing.assert_close(new(image().float()), net(image().float()), atol=0.05, rtol=0.05)
    assert seen == [(torch.bfloat16, OctaveMap), (torch.bfloat16, Tensor)]


def test_a_mode_inside_a_forward_and_one_around_it() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = m.a(x)
            assert y.is_inference()
        return m.end(m.b(y.clone()))

    net, new = both(body)
    with torch.no_grad():
        torch.testing.assert_close(new(image()), net(image()))
    with torch.inference_mode():
        assert new(image()).is_inference()


class Methods(Net):
    """Other ways in than its forward, a property, a class attribute."""

    scale = 2.0

    def features(self, x: Tensor) -> Tensor:
        return self.b(self.a(self.stem(x)))

    @property
    def width(self) -> int:
        return self.head.in_features

    @torch.no_grad()
    def embed(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3)) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.features(x))


def test_its_methods_and_attributes_are_there() -> None:
    net, new = both(lambda m, x: x, kind=Methods)
    torch.testing.assert_close(new.embed(image()), net.embed(image()))
    assert (new.width, new.scale) == (8, 2.0)
    features = new.features(image())
    assert isinstance(features, OctaveMap)
    torch.testing.assert_close(features.numpy(force=True), net.features(image()).numpy(force=True))
    torch.testing.assert_close(new.end(features), new(image()))


def test_a_convolution_used_twice_stays_and_is_named() -> None:
    torch.manual_seed(0)
    net = Net(shared_module).eval()
    done = rewrite(net, Octave(last=True), size=SIZE)
    reasons = {skip.name: skip.reason for skip in done.skipped}
    assert reasons["a"] == "it is used at several places, which would have to agree on what is low"
    assert reasons["b"] == "the forward pass does not call it as a module"
    assert type(done.model.a) is nn.Conv2d
