"""Which channels belong together: one forward pass of any network without computing, watching operations and layers.

Layers with weights per channel (convolutions, BatchNorm, linear, PReLU, chains of convolutions) are seen as modules, by
hooks; calls that hold channel counts as functions (`calls.py`); everything else as aten operations (`rules.py`), by a
dispatch mode over fake tensors. No graph is made and nothing is rewritten, so any Python in a forward is fine.

The network's input and outputs are never sliced. Parameters beside the layers (a layer scale, a norm's gamma) follow
the channels that they meet. An operation that nobody knows is an obstacle: an error that names the module, unless the
channels it meets are fixed anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from leanconv.dryrun import duplicate, failure, quiet
from leanconv.elastic.coupling.aten_ops import Call, Dims, Unknown, dims_after
from leanconv.elastic.coupling.functions import FORMS, Count, Form
from leanconv.elastic.coupling.modules import MOVERS, Passed, is_layer, pass_layer
from leanconv.elastic.coupling.ratios import Edge, assign_ratios
from leanconv.elastic.coupling.rows import Axis, Misfit, Row, Segment, is_fixed, makers, pin, resolve, unify
from leanconv.elastic.patch_sizes import Place, Site
from leanconv.elastic.slices import Channels, finished
from leanconv.errors import LeanconvError, RewriteError, unknown

__all__ = ["Beside", "Layer", "Traced", "fake_input", "trace"]


class Layer(NamedTuple):
    """What an elastic layer reads and makes; the two are the same object where the layer changes no channels.

    `columns` is the input of one group where the groups of a convolution stay; `pieces` are those of a layer that
    reorders channels: for each, the channels before it and those in it.
    """

    inputs: Channels
    outputs: Channels
    columns: Channels | None = None
    pieces: tuple[tuple[Channels, Channels], ...] = ()


class Beside(NamedTuple):
    """What a module that is no layer has to slice: the axes of its own tensors, and the counts in its calls.

    `calls` says how often its forward calls each function that may hold counts.
    """

    tensors: dict[str, tuple[Channels | None, ...]]
    sites: dict[Place, Site]
    calls: dict[Any, int]


class Traced(NamedTuple):
    """The elastic parts of a network by qualified name, and the layers that keep their width, with the reason."""

    layers: dict[str, Layer]
    beside: dict[str, Beside]
    kept: dict[str, str]


@dataclass(frozen=True)
class _Obstacle:
    where: str
    reason: str
    rows: tuple[Row, ...]


@dataclass
class _Found:
    """A call that holds counts, while tracing."""

    numbers: list[int]
    counts: dict[int, Count]
    attribute: str | None


def fake_input(model: nn.Module, size: Sequence[int]) -> Tensor:
    """A batch of two inputs of `size` (without the batch axis), like the model's parameters; made in fake mode."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.empty((2, *size), device=like.device, dtype=like.dtype)


def trace(
    model: nn.Module,
    size: Sequence[int],
    *,
    divisor: int,
    keep: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    widest: float = 1.0,
) -> Traced:
    """The layers of `model`, by qualified name, with the channels they read and make.

    Args:
        model: any network; a copy of it that shares its tensors is run once in eval mode without computing.
        size: its input without the batch axis.
        divisor: of the rounding law.
        keep: name patterns of layers whose outputs are never sliced.
        ratios: name pattern -> the r of the rounding law, instead of what `assign_ratios` finds.
        widest: the largest width that there will be weights for.

    Raises `RewriteError` naming the module where channels cannot follow the width.
    """
    # A copy, because a forward may remember tensors (tables of positions), and these would be fake ones.
    scratch = duplicate(model, share_tensors=True).eval()
    tracer = _Tracer(scratch, tuple(keep), dict(ratios or {}))
    try:
        with torch.no_grad(), quiet(), FakeTensorMode(allow_non_fake_inputs=True), tracer.hooks():
            x = fake_input(scratch, size)
            with tracer, _Calls(tracer):
                tracer.finish(scratch(x))
    except LeanconvError:
        raise
    except Exception as error:
        raise failure(error, scratch, size, module=tracer.path, kind=RewriteError) from error
    tracer.check()
    assign_ratios(tracer.edges)
    return tracer.traced(divisor, widest)


class _Calls(TorchFunctionMode):
    """Hands the calls that hold channel counts to the tracer."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        form = FORMS.get(func)
        if form is None:
            return func(*args, **(kwargs or {}))
        return self.tracer.call(form, func, args, kwargs or {})


@dataclass
class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    model: nn.Module
    keep: tuple[str, ...]
    ratios: dict[str, float]
    edges: list[Edge] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[str] = []
        self.calls: list[dict[Any, int]] = []  # how often each module on the stack has called what may hold counts
        self.inside = 0  # how many layers we are in: their own operations are not looked at
        self.seen: dict[int, tuple[Tensor, Dims]] = {}  # holds the tensors, so that no id is used twice
        self.rows: dict[str, Passed] = {}
        self.found: dict[str, dict[Place, _Found]] = {}
        self.called: dict[str, dict[Any, int]] = {}
        self.obstacles: list[_Obstacle] = []
        self.modules = dict(self.model.named_modules())
        layers = [name for name, module in self.modules.items() if is_layer(module)]
        for pattern in (*self.keep, *self.ratios):
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise unknown("layer pattern", pattern, layers)
        self.owned: dict[int, tuple[str, str]] = {}  # tensors beside the layers: id to module and attribute
        inside = tuple(f"{name}." for name in layers)
        for name, module in self.modules.items():
            if not is_layer(module) and not name.startswith(inside):
                for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
                    if tensor is not None and tensor.is_floating_point() and tensor.ndim:
                        self.owned.setdefault(id(tensor), (name, attribute))

    @property
    def path(self) -> str:
        """The innermost module at work; "" is the network itself."""
        return self.stack[-1] if self.stack else ""

    @property
    def where(self) -> str:
        """The innermost module at work, for a message."""
        return self.path or type(self.model).__name__

    def lookup(self, tensor: object) -> Dims | None:
        """What lies on the axes of a tensor; None for one that no layer has touched."""
        found = self.seen.get(id(tensor))
        if found is None and isinstance(tensor, Tensor) and id(tensor) in self.owned:
            dims = tuple((Segment(Axis(int(size), passive=True), 1),) if size > 1 else None for size in tensor.shape)
            self.know(tensor, dims)
            return dims
        return None if found is None else found[1]

    def know(self, tensor: Tensor, dims: Dims) -> None:
        """Remember what lies on the axes of a tensor."""
        self.seen[id(tensor)] = (tensor, dims)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the modules."""
        handles = []
        for name, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(self._enter(name, module), prepend=True))
            handles.append(module.register_forward_hook(self._leave(name, module), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self.stack.append(name)
            self.calls.append({})
            self.inside += is_layer(module)

        return hook

    def _leave(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            if is_layer(module):
                self.inside -= 1
                if not self.inside:
                    self._layer(name, module, next(iter((*args, *kwargs.values()))), result)
            self.stack.pop()
            self.called[name] = self.calls.pop()

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._untouched(args, kwargs):
            return result
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not results:
            return result
        try:
            dims = dims_after(Call(func, args, kwargs, result, self.lookup))
        except (Unknown, Misfit) as reason:
            self._obstacle(str(reason), args, kwargs)
            dims = ()
        for tensor in results:
            self.know(tensor, dims if tensor.ndim == len(dims) else (None,) * tensor.ndim)
        return result

    def call(self, form: Form, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a function that may hold channel counts."""
        # Inside an elastic chain other modules will move the channels.
        if form.numbers is not None and not (self.inside and isinstance(self.modules[self.stack[-1]], MOVERS)):
            for calls in self.calls:
                calls[func] = calls.get(func, 0) + 1
        if self._untouched(args, kwargs):
            return func(*args, **kwargs)
        numbers = [] if form.numbers is None else form.numbers(args, kwargs)
        if numbers is None:
            return func(*args, **kwargs)
        self.inside += 1
        try:
            result = func(*args, **kwargs)
        finally:
            self.inside -= 1
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        try:
            answer = form.rule(Call(func, args, kwargs, result, self.lookup), numbers)
            for tensor, dims in zip(results, answer.dims, strict=True):
                self.know(tensor, dims)
            if answer.counts:
                self._note(func, _Found(numbers, answer.counts, self._attribute(args, func)))
        except (Unknown, Misfit) as reason:
            self._obstacle(str(reason), args, kwargs)
            for tensor in results:
                self.know(tensor, (None,) * tensor.ndim)
        return result

    def _untouched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether there is nothing to follow: inside a layer, or no tensor that one has touched."""
        tensors = (leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return bool(self.inside) or all(self.lookup(tensor) is None for tensor in tensors)

    def _note(self, func: Any, found: _Found) -> None:
        """Keep a call with counts; made a second time, it must count the same channels."""
        calls = self.found.setdefault(self.stack[-1], {})
        known = calls.setdefault((func, self.calls[-1][func] - 1), found)
        if known.counts.keys() != found.counts.keys():
            raise Unknown("its forward is called twice and does different things")
        for number, count in known.counts.items():
            unify(count.row, found.counts[number].row)

    def _attribute(self, args: tuple[Any, ...], func: Any) -> str | None:
        """The attribute of the module at work that holds the numbers of a call, if it is one object with them."""
        module = self.modules[self.stack[-1]]
        if isinstance(module, nn.GroupNorm) and func.__name__ == "group_norm":
            return "num_groups"
        held = {id(value): name for name, value in vars(module).items() if isinstance(value, (tuple, list)) and value}
        return next((held[id(arg)] for arg in args if id(arg) in held), None)

    def _obstacle(self, reason: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        rows = tuple(row for tensor in tensors for row in self.lookup(tensor) or () if row is not None)
        for row in rows:
            if all(segment.axis.passive for segment in resolve(row)):
                pin(row, reason)
        self.obstacles.append(_Obstacle(self.where, reason, rows))

    def _layer(self, name: str, module: nn.Module, x: Any, y: Any) -> None:
        dims = self.lookup(x) or (None,) * x.ndim
        try:
            passed = pass_layer(name, module, dims, x, y)
            if name in self.rows:  # a module that is used twice must be sliced the same way both times
                unify(self.rows[name].inputs, passed.inputs)
                unify(self.rows[name].outputs, passed.outputs)
            else:
                self.rows[name] = passed
                self._asked_for(name, passed.outputs)
            if passed.mixes:
                self.edges.append(Edge(passed.inputs, passed.outputs))
            self.know(y, passed.dims)
        except (Unknown, Misfit) as reason:
            self._obstacle(f"{type(module).__name__}: {reason}", (x,), {})
            self.know(y, (None,) * y.ndim)

    def _asked_for(self, name: str, out: Row) -> None:
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            pin(out, "it was asked to keep its width")
        for pattern, ratio in self.ratios.items():
            if fnmatchcase(name, pattern):
                for segment in resolve(out):
                    segment.axis.ratio = Fraction(ratio).limit_denominator(1000)

    def finish(self, output: Any) -> None:
        """The outputs of the network are never sliced."""
        tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
        if not tensors:
            raise RewriteError(
                f"{type(self.model).__name__} returns {type(output).__name__}: an elastic network must return tensors, "
                "alone or in tuples, lists or dictionaries, because its outputs keep their channels at every width"
            )
        for tensor in tensors:
            for row in self.lookup(tensor) or ():
                if row is not None:
                    pin(row, "it makes an output of the network")

    def check(self) -> None:
        """Raise for the first obstacle in the way of elastic channels, and where no channels are elastic at all."""
        for obstacle in self.obstacles:
            names = dict.fromkeys(name for row in obstacle.rows if not is_fixed(row) for name in _loose_makers(row))
            if names:
                shown = ", ".join(map(repr, list(names)[:8])) + (", ..." if len(names) > 8 else "")
                raise RewriteError(
                    f"{obstacle.where}: {obstacle.reason}, so these channels cannot follow the width; they are made by "
                    f"{len(names)} layers: pass keep=[{shown}] to leave those at full width"
                )
        if all(is_fixed(passed.outputs) for passed in self.rows.values()):
            raise RewriteError(
                f"{type(self.model).__name__}: no layer's width can be changed; every channel is an input or an output "
                "of the network or was asked to be kept, so there is nothing to make elastic"
            )

    def traced(self, divisor: int, widest: float) -> Traced:
        """The finished channels of everything."""

        def done(row: Row) -> Channels:
            return finished(row, divisor, widest)

        layers, kept = {}, {}
        for name, (row, out, _, _, columns, pieces) in self.rows.items():
            inputs = done(row)
            ends = tuple((done(before), done(part)) for before, part in pieces)
            layers[name] = Layer(
                inputs, inputs if out is row else done(out), None if columns is None else done(columns), ends
            )
            if out is not row and is_fixed(out):
                kept[name] = resolve(out)[0].axis.fixed or ""
        beside: dict[str, Beside] = {}

        def of(name: str) -> Beside:
            return beside.setdefault(name, Beside({}, {}, self.called.get(name, {})))

        for key, (name, attribute) in self.owned.items():
            axes = tuple(None if row is None else done(row) for row in self.seen[key][1]) if key in self.seen else ()
            if any(axis is not None and axis.moves for axis in axes):
                of(name).tensors[attribute] = axes
        for name, calls in self.found.items():
            for place, found in calls.items():
                counts = {i: (done(count.row), count.per) for i, count in found.counts.items()}
                counts = {i: count for i, count in counts.items() if count[0].moves}
                if counts:
                    of(name).sites[place] = Site(tuple(found.numbers), counts, found.attribute)
        return Traced(layers, beside, kept)


def _loose_makers(row: Row) -> tuple[str, ...]:
    return makers(tuple(segment for segment in resolve(row) if segment.axis.fixed is None))
