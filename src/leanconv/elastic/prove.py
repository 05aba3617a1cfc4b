"""The proof of a network that was just made elastic: what it is to do, done once on random inputs and real weights.

At width 1 it is the network that it was, in evaluation and in training, with the same random numbers for dropout; the
narrowest width and one in the middle run forward and backward in training; the narrowest is calibrated, and what is
extracted from it answers as it does. Copies are run (they share the weights, which are only read), on inputs as small
as the network takes them, and the random generators are put back: nothing that was given is changed.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain, zip_longest
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from leanconv.dryrun import ModuleStack, Sizes, duplicate, each_shape, one_line, shapes_of
from leanconv.dryrun.size import arguments, tensors_of
from leanconv.elastic.calibrate import Statistics
from leanconv.elastic.net import ElasticNet
from leanconv.errors import LeanconvError, NotCalibrated, RewriteError
from leanconv.seeds import generator, isolated

__all__ = ["prove"]

SIDES = (32, 64)
"""About the shortest sides that are tried before the native input."""


def prove(original: nn.Module, net: ElasticNet) -> None:
    """Raise `RewriteError`, naming the module, unless `net` does what it was made for; see the head of this file.

    A network without values (on the meta device) proves nothing. One that `original` cannot train on its inputs alone,
    such as a detector that wants targets, is proven in evaluation only.
    """
    if any(t.is_meta or isinstance(t, FakeTensor) for t in chain(original.parameters(), original.buffers())):
        return
    *smaller, native = _sizes(net.default_input_size)
    for size in smaller:
        try:
            with _apart(original):
                _Proof(original, net, size).run()
            return
        except Exception:  # whatever it is: small inputs decide nothing but that all is well
            continue
    with _apart(original):
        _Proof(original, net, native).run()


def _sizes(size: Sizes) -> list[Sizes]:
    """The sizes to try, from small to native."""
    shortest = min(min(shape[-min(len(shape) - 1, 2) :], default=1) for shape in shapes_of(size))

    def shrunk(shape: tuple[int, ...], times: int) -> tuple[int, ...]:
        spatial = min(len(shape) - 1, 2)
        return (*shape[: len(shape) - spatial], *(side // times for side in shape[len(shape) - spatial :]))

    times = dict.fromkeys([*(max(1, shortest // side) for side in SIDES), 1])
    return [each_shape(size, partial(shrunk, times=by)) for by in times]


@contextmanager
def _apart(model: nn.Module) -> Iterator[None]:
    """A scope with gradients, without compilers, and with random generators of its own."""
    devices = {t.device.index for t in chain(model.parameters(), model.buffers()) if t.device.type == "cuda"}
    with ExitStack() as scope:
        scope.enter_context(isolated("make_elastic"))
        scope.enter_context(torch.random.fork_rng(devices=sorted(devices)))
        scope.enter_context(torch.inference_mode(False))
        scope.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:
            scope.enter_context(torch.compiler.set_stance("force_eager"))
        yield


class _Proof:
    """One proof, on inputs of one size."""

    def __init__(self, original: nn.Module, net: ElasticNet, size: Sizes) -> None:
        self.net = cast("ElasticNet", duplicate(net, share_parameters=True))
        self.was = duplicate(original, share_parameters=True)
        self.size, self.name = size, type(original).__name__
        self.stack = ModuleStack(self.net)
        self.modes = [(module.training, name) for name, module in original.named_modules()]
        tensors = chain(original.parameters(), original.buffers())
        like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
        draw = generator("make_elastic")
        self.inputs = arguments(
            original, size, lambda shape: torch.randn((2, *shape), generator=draw, device="cpu").to(like)
        )
        # At width 1 nothing is computed in another way, unless it is a part of a wider network.
        eps = torch.finfo(like.dtype).eps
        self.tolerance = 10 * eps**0.5 if net.widths[1] > 1 else 256 * eps

    def run(self) -> None:
        """All of it."""
        low, high = self.net.widths
        middle = 0.4 * low + 0.6 * high
        self._set_modes(training=False)
        answer = self._original("in evaluation")
        with torch.no_grad():
            self._equal(answer, self._elastic(1.0, "in evaluation"), "in evaluation")
        self._calibrates(low, answer)
        self._set_modes(training=True)
        try:
            answer = self._original("in training")
        except RewriteError:
            return
        self._equal(answer, self._elastic(1.0, "in training"), "in training")
        for width in dict.fromkeys((low, middle)):
            found = self._elastic(width, "in training")
            self._same_shapes(answer, found, f"at width {width:g} in training")
            self._backward(found, width)

    def _set_modes(self, *, training: bool) -> None:
        """The mode of both; norms and dropouts that the network keeps in evaluation while it trains stay there."""
        self.was.train(training)
        self.net.train(training)
        if training and self.modes[0][0]:
            for mode, name in self.modes:
                self.was.get_submodule(name).training = self.net.model.get_submodule(name).training = mode

    def _original(self, when: str) -> Any:
        with torch.no_grad():
            self._seed()
            try:
                return self.was(*self._given())
            except Exception as error:
                raise RewriteError(
                    f"{self.name} does not run {when} on inputs of {self._shapes()} ({one_line(error)}), so nothing of "
                    "an elastic form of it can be shown"
                ) from error

    def _elastic(self, width: float, when: str) -> Any:
        self._seed()
        with self._told(f"at width {width:g} {when}"), self.net.at(width), self.stack:
            return self.net(*self._given())

    def _calibrates(self, width: float, answer: Any) -> None:
        """It runs and is measured as in a calibration; with that, what is extracted from it answers as it does."""
        when, config = f"at width {width:g} in evaluation", self.net.checked(width)
        statistics = Statistics(config)
        with torch.no_grad(), self._told(when):
            with self.net.at(width), self.stack:
                with statistics.collected(self.net, len(tensors_of(self.inputs)[0])):
                    self.net(*self._given())
                for norm, measured in statistics.of.items():
                    norm.store(config, *measured)
                self._seed()
                found = self.net(*self._given())
            static = self.net.extract(width).eval()
            self._seed()
            alone = static(*self._given())
        self._same_shapes(answer, found, when)
        if not self._close(alone, found, 0.01):
            raise RewriteError(
                f"{self.name}: {when} the elastic network and what is extracted from it differ: its forward reads "
                "weights of layers instead of calling them, or answers differently each time"
            )

    def _backward(self, outputs: Any, width: float) -> None:
        """After the scope of the forward has been left, as a training step does it."""
        losses = [y.float().square().mean() for y in tensors_of(outputs) if y.requires_grad]
        try:
            if losses:
                with self._told(f"at width {width:g} in backward"):
                    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        finally:
            self.net.zero_grad(set_to_none=True)  # the weights are those of the network that is returned

    def _given(self) -> tuple[Any, ...]:
        """The inputs, copied: a forward may work in place."""
        return pytree.tree_map(Tensor.clone, self.inputs)  # type: ignore[no-any-return]

    @staticmethod
    def _seed() -> None:
        """The same random numbers for the next run as for all others (`_apart` puts the generators back)."""
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    def _shapes(self) -> str:
        return " and ".join(map(str, shapes_of(self.size)))

    @contextmanager
    def _told(self, when: str) -> Iterator[None]:
        """A failure inside is told as one of the elastic network, with the module in which it arose."""
        try:
            yield
        except NotCalibrated as error:
            raise RewriteError(f"{error}; before: make the network elastic with all its norms in training") from error
        except Exception as error:
            where = self.stack.path_of(error).removeprefix("model").lstrip(".") or self.name
            told = str(error) if isinstance(error, LeanconvError) else one_line(error)
            raise RewriteError(
                f"{where}: the network does not run {when} on inputs of {self._shapes()} ({told}): a forward holds "
                "channel counts as constants, or takes another path there than the one that was followed; read the "
                "counts from the tensors, or pass keep= with the layers that feed it"
            ) from error

    def _equal(self, wanted: Any, found: Any, when: str) -> None:
        self._same_shapes(wanted, found, f"at width 1 {when}")
        if not self._close(wanted, found, self.tolerance):
            raise RewriteError(
                f"{self.name}: at width 1 {when} the elastic network does not answer as the network did: its forward "
                "holds on to modules or tensors of the network that was given (a lambda, a list or a method bound to "
                "it), or answers differently each time; give those up first"
            )

    @staticmethod
    def _close(wanted: Any, found: Any, tolerance: float) -> bool:
        """Whether all outputs agree, relative to the largest number in each."""
        for one, other in zip(tensors_of(wanted), tensors_of(found), strict=True):
            one, other = one.detach().double(), other.detach().double()
            finite = one[one.isfinite()].abs()
            allowed = tolerance * float(finite.max() if finite.numel() else 0)
            if not torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True):
                return False
        return True

    def _same_shapes(self, wanted: Any, found: Any, when: str) -> None:
        shapes = [[tuple(tensor.shape) for tensor in tensors_of(outputs)] for outputs in (wanted, found)]
        for expected, got in zip_longest(*shapes):
            if expected != got:
                raise RewriteError(
                    f"{self.name}: {when} an output has the shape {got} and that of the network as it was {expected}: "
                    "outputs keep their channels at every width; read sizes in the forward from the tensors"
                )
