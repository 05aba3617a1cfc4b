"""Properties that hold for any network, tried on random ones (`random_nets`): what goes in comes out, or is refused.

`LEANCONV_NETWORKS=20000 pytest tests/test_random_nets.py` tries as many a property, `LEANCONV_SEED=1` others. A network
that fails is made smaller by hypothesis and printed; it then becomes a test of its own where it belongs.
"""

from __future__ import annotations

import copy
import json
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import event, given
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import leanconv as lc
from leanconv.deploy.densify import densify
from leanconv.deploy.fold import fold
from leanconv.errors import LeanconvError
from random_nets import Spec, inputs, network, sizes, specs
from random_trials import tried

IN_CI = 50
"""Networks a property; there are six, and one that is slow."""


Property = Callable[[Spec, nn.Module, tuple[Tensor, ...]], None]


def networks(strategy: Any, share: float = 1.0) -> Callable[[Property], Any]:
    """Run a test on random networks that run themselves: always the same few, or as many as asked for.

    It is given the description, the network and inputs.
    """

    def decorate(test: Property) -> Any:
        def on_usable(spec: Spec) -> None:
            net, xs = network(spec), inputs(spec)
            if runs(net, xs):
                test(spec, net, xs)

        on_usable.__name__, on_usable.__doc__ = test.__name__, test.__doc__
        on_usable.__module__, on_usable.__qualname__ = test.__module__, test.__qualname__
        return tried(IN_CI, "LEANCONV_NETWORKS", share)(given(strategy)(on_usable))

    return decorate


def draw_the_same(seed: int = 0) -> None:
    """Whatever is drawn from now on is what was drawn after the last call."""
    torch.manual_seed(seed)
    random.seed(seed)


def run(net: nn.Module, xs: tuple[Tensor, ...], seed: int = 0) -> list[Tensor]:
    """All tensors that come out, drawn numbers being the same; `net` stays as it is."""
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    draw_the_same(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = [x.detach().clone() for x in pytree.tree_leaves(net(*xs))]
    net.load_state_dict(kept)
    return result


def runs(net: nn.Module, xs: tuple[Tensor, ...]) -> bool:
    """Whether the network itself takes these inputs and gives finite numbers, in both modes."""
    try:
        return all(bool(x.isfinite().all()) for mode in (True, False) for x in run(copy.deepcopy(net).train(mode), xs))
    except (RuntimeError, ValueError):
        return False


def is_steady(net: nn.Module, xs: tuple[Tensor, ...]) -> bool:
    """Whether rounding errors stay small: a map that is constant minus its mean is nothing but them, and a norm of that
    makes numbers of them."""
    wanted = run(net, xs)
    for factor in (1 - 1e-13, 1 + 1e-13, 1 + 3e-13):
        for a, b in zip(run(net, tuple(x * factor for x in xs)), wanted, strict=True):
            if a.numel() and float((a - b).abs().max()) > 1e-10 * max(1.0, float(b.abs().max())):
                return False
    return True


def draws_numbers(net: nn.Module, xs: tuple[Tensor, ...]) -> bool:
    """Whether outputs hang on drawn numbers. torch deals them out in the order of memory, so that the same numbers fall
    on other values where a layer leaves its output in channels-last order and an equal one does not."""
    wanted = run(net, xs)
    return any(not torch.equal(a, b) for a, b in zip(run(net, xs, seed=1), wanted, strict=True))


def trained(net: nn.Module, xs: tuple[Tensor, ...]) -> bool | None:
    """Whether a training step gives every parameter that asks for it a gradient; None where autograd refuses."""
    net = copy.deepcopy(net).train()
    draw_the_same()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sum(x.float().pow(2).sum() for x in pytree.tree_leaves(net(*xs))).backward()
        except (RuntimeError, ValueError):
            return None
    return all(p.grad is not None for p in net.parameters() if p.requires_grad)


def assert_same(given: list[Tensor], wanted: list[Tensor], tolerance: float = 0.0, what: str = "") -> None:
    assert len(given) == len(wanted), what
    for a, b in zip(given, wanted, strict=True):
        assert a.shape == b.shape, what
        worst = float((a - b).abs().max()) if a.numel() else 0.0
        assert worst <= tolerance * max(1.0, float(b.abs().max())), f"{what}: differs by {worst:.2e}"


class State:
    """All that a call must leave as it was: the network and torch's and Python's random numbers."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.before = self.take()

    def take(self) -> dict[str, Any]:
        modules = {name: (type(m), m.training, len(m._forward_hooks)) for name, m in self.net.named_modules()}
        tensors = {n: t.detach().clone() for n, t in (*self.net.named_parameters(), *self.net.named_buffers())}
        flags = {n: (p.requires_grad, p.grad is None) for n, p in self.net.named_parameters()}
        return {
            "modules": modules,
            "tensors": tensors,
            "flags": flags,
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
        }

    def assert_kept(self, *, draws: bool = False) -> None:
        """Nothing has changed; `draws`: new layers were initialized."""
        after = self.take()
        assert after["modules"] == self.before["modules"]
        assert after["flags"] == self.before["flags"]
        assert after["python"] == self.before["python"]
        assert draws or torch.equal(after["torch"], self.before["torch"])
        assert after["tensors"].keys() == self.before["tensors"].keys()
        assert all(torch.equal(t, self.before["tensors"][n]) for n, t in after["tensors"].items())


@contextmanager
def refusing(verb: str) -> Iterator[None]:
    """A clear refusal is an answer; it is counted. Any other error is a fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        event(f"{verb}: done")
    except LeanconvError as error:
        message = str(error)
        assert len(message) > 20, message
        assert "Traceback" not in message
        event(f"{verb}: refused: {type(error).__name__}")


@networks(specs())
def test_counts_are_torchs_own(spec: Spec, net: nn.Module, xs: tuple[Tensor, ...]) -> None:
    state = State(net)
    with refusing("measure"):
        cost = lc.measure(net, sizes(spec))
        state.assert_kept()
        net.eval()
        counter, countable = FlopCounterMode(display=False), SDPBackend.MATH  # of attention, the only form on a CPU
        with counter, sdpa_kernel(countable), torch.no_grad():
            net(*(x[:1] for x in xs))
        assert 2 * (cost.macs + cost.attention_macs) == counter.get_total_flops()
        assert cost.params == sum(p.numel() for p in net.parameters())


@networks(specs())
def test_what_is_saved_comes_back(spec: Spec, net: nn.Module, xs: tuple[Tensor, ...]) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.9)  # not as it was built
    with refusing("save"), tempfile.TemporaryDirectory() as folder:
        lc.save(
            net,
            f"{folder}/net",
            source="random_nets:network",
            source_options={"spec": json.dumps(spec)},
            size=sizes(spec),
        )
        back = lc.load(f"{folder}/net", trust_code=True)
        assert {n: m.training for n, m in back.named_modules()} == {n: m.training for n, m in net.named_modules()}
        assert [p.requires_grad for p in back.parameters()] == [p.requires_grad for p in net.parameters()]
        for (name, a), (other, b) in zip(net.named_buffers(), back.named_buffers(), strict=True):
            assert name == other
            assert torch.equal(a, b), name
        for mode in (False, True):
            assert_same(run(back.train(mode), xs), run(net.train(mode), xs), what=f"training {mode}")


@networks(specs(circular=True))
def test_octave_keeps_the_outputs_for_constant_images(spec: Spec, net: nn.Module, xs: tuple[Tensor, ...]) -> None:
    # In double precision: a norm of a constant map makes large numbers of its rounding errors.
    net, xs = net.double().eval(), tuple(x.double() for x in inputs(spec, constant=True))
    state = State(net)
    with refusing("octave"):
        new = lc.rewrite(net, lc.Octave(alpha=0.5, first=True, last=True), size=sizes(spec)).model
        state.assert_kept(draws=True)
        if is_steady(net, xs):
            assert_same(run(new, xs), run(net, xs), 1e-9, "a constant image")
        xs = tuple(x.double() for x in inputs(spec))
        assert [x.shape for x in run(new, xs)] == [x.shape for x in run(net, xs)]
        reached = trained(net, xs)
        if reached is not None:  # autograd takes the network itself
            assert trained(new, xs) == reached


def is_global(chain: nn.Module) -> bool:
    """Whether the nearest weights of this chain are found for certain: two stages whose slots are wired one to one."""
    plan = chain.plan
    return len(plan.stages) <= 2 and len(set(plan.wiring(0))) == len(plan.wiring(0))


@networks(specs())
def test_chains_that_can_express_the_kernels_keep_the_outputs(
    spec: Spec, net: nn.Module, xs: tuple[Tensor, ...]
) -> None:
    """The dense network that a rewritten one equals, rewritten again, is it again."""
    state = State(net)
    with refusing("chains"):
        step = lc.OptimizedSeparable(init="fresh", where="groups=1")
        first = lc.rewrite(net, step, size=sizes(spec))
        state.assert_kept(draws=True)
        dense, comparable = densify(first).model.eval(), not draws_numbers(net, xs)
        if comparable:
            assert_same(run(dense, xs), run(first.model.eval(), xs), 1e-4, "densified")
        again = lc.rewrite(dense, lc.OptimizedSeparable(where="groups=1"), size=sizes(spec))
        back = densify(again).model
        for change in again.changes:
            kernel, wanted = (one.get_submodule(change.name).weight.detach().double() for one in (back, dense))
            error = float((kernel - wanted).norm() / wanted.norm())
            assert abs(error - (change.error or 0)) < 1e-4, f"{change}: it is {error:.1e}"
            if is_global(again.model.get_submodule(change.name)):
                assert error < 5e-3, f"{change}: a chain can express this kernel"
            else:  # a local optimum, and said so by its error
                event(f"chains: {'exact' if error < 5e-3 else 'a local optimum'}")
        if comparable and all(change.weights == "exact" for change in again.changes):
            assert_same(run(again.model, xs), run(dense, xs), 1e-3, "rewritten again")


@networks(specs(clean=True))
def test_elastic_is_the_network_and_extracts_itself(spec: Spec, net: nn.Module, xs: tuple[Tensor, ...]) -> None:
    side = spec["inputs"][0][1]
    state = State(net)
    with refusing("elastic"):
        elastic = lc.make_elastic(net, widths=(0.5, 1.0), resolutions=(side,), divisor=2, size=sizes(spec))
        state.assert_kept()
        for mode in (False, True):
            with elastic.at(width=1.0, resolution=side):
                full = run(elastic.train(mode), xs)
            assert_same(full, run(copy.deepcopy(net).train(mode), xs), 1e-5, f"full width, training {mode}")
        lc.calibrate(elastic, [inputs(spec, 16, seed=2)[0]], [(0.5, side)])
        elastic.eval()
        with elastic.at(width=0.5, resolution=side):
            narrow = run(elastic, xs)
        assert_same(run(elastic.extract(0.5, side), xs), narrow, 1e-5, "extracted")


@networks(specs(clean=True))
def test_folded_is_the_network(spec: Spec, net: nn.Module, xs: tuple[Tensor, ...]) -> None:
    state = State(net)
    with refusing("fold"):
        folded = fold(net, sizes(spec))
        state.assert_kept()
        event(f"folded {bool(folded.folded)}")
        assert_same(run(folded.model, xs), run(copy.deepcopy(net).eval(), xs), 1e-4)


@pytest.mark.slow
@pytest.mark.timeout(36000)
@networks(specs(clean=True), share=0.05)
def test_exported_is_the_network(spec: Spec, net: nn.Module, xs: tuple[Tensor, ...]) -> None:
    with refusing("export"), tempfile.TemporaryDirectory() as folder:
        lc.export(net, f"{folder}/net.onnx", size=sizes(spec))
