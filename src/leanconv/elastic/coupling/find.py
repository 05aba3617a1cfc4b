"""Which channels belong together: one forward pass of any network without computing, watching operations and layers.

Layers with weights per channel are seen as modules (`modules`), calls that hold channel counts as functions
(`functions`), everything else as aten operations (`aten_ops`). No graph is made, so any Python in a forward is fine.

The network's input and outputs are never sliced. Parameters of other modules (a layer scale, a norm's gamma) follow the
channels that they meet. An operation without a rule is an error that names the module, unless the channels it meets are
fixed anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from leanconv.dryrun import DryRun, Size
from leanconv.dryrun.size import tensors_of
from leanconv.elastic.coupling import rows
from leanconv.elastic.coupling.aten_ops import Call, dims_after
from leanconv.elastic.coupling.functions import FUNCTION_RULES, FunctionRule
from leanconv.elastic.coupling.modules import MOVERS, is_layer, module_rule
from leanconv.elastic.coupling.rows import Axis, CannotFollow, Dims, Row, Segment
from leanconv.elastic.slices import Channels, Counts, Layer, OtherLayer, Place, Slice
from leanconv.elastic.width import channels_at
from leanconv.errors import RewriteError, unknown
from leanconv.ops.octave_map import OctaveMap, full_map, settled
from leanconv.ops.octave_mode import PartsMode


class Found(NamedTuple):
    """The elastic parts of a network by qualified name, and the layers that keep their width, with the reason.

    `training_only` are those that run in training and not in evaluation.
    """

    layers: dict[str, Layer[Channels]]
    others: dict[str, OtherLayer]
    kept: dict[str, str]
    training_only: frozenset[str] = frozenset()


def find(
    model: nn.Module,
    size: Size,
    *,
    divisor: int,
    keep: Sequence[str] = (),
    ratios: Mapping[str, float] | None = None,
    widest: float = 1.0,
) -> Found:
    """The layers of `model`, by qualified name, with the channels they read and make.

    A copy of it is run once in eval mode without computing, and once more in training mode if layers are left that did
    not run (a second head for training). For the arguments see `make_elastic`; `widest` is the width that there will be
    weights for. Raises `RewriteError` naming the module where channels cannot follow the width.
    """
    dry = DryRun(model, size, error=RewriteError)
    tracer = _Tracer(model, dry, keep, ratios or {})
    outputs = [dry.run(tracer, _Functions(tracer)).outputs]
    evaluated = frozenset(tracer.made)
    if not evaluated.issuperset(tracer.sliced):
        outputs += tracer.trained(dry)
    tracer.check(outputs)
    assign_ratios([(layer.inputs, layer.outputs) for layer in tracer.layers.values() if layer.mixes])
    return tracer.found(divisor, widest)._replace(training_only=frozenset(tracer.layers.keys() - evaluated))


class _Functions(PartsMode):
    """Hands the calls that hold channel counts to the tracer."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a function, on whatever it works."""
        rule = FUNCTION_RULES.get(func)
        return func(*args, **kwargs) if rule is None else self.tracer.function(rule, Call(func, args, kwargs))


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows rows of channels through one forward pass."""

    def __init__(self, model: nn.Module, dry: DryRun, keep: Sequence[str], ratios: Mapping[str, float]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack, self.keep, self.ratios, self.name = dry.stack, keep, ratios, type(model).__name__
        self.stack.on_enter.append(self._enter)
        self.stack.on_leave.append(self._leave)
        self.made: dict[str, Counter[Any]] = {}  # how often each module has called what may hold counts
        self.in_function = False  # the operations that make one up are not looked at
        self.entering: str | None = None  # a layer that is about to run, for which its input is merged
        self.seen: dict[int, tuple[Tensor, Dims]] = {}  # holds the tensors, so that no id is used twice
        self.layers: dict[str, Layer[Row]] = {}
        self.tied: dict[int, Any] = {}  # the axes of every parameter by its id
        self.calls: dict[str, dict[Place, tuple[Counts[Row], str]]] = {}  # by module; the attribute with the numbers
        self.obstacles: list[tuple[str, str, tuple[Row, ...]]] = []  # where, why, and the channels it concerns
        self.modules = dict(model.named_modules())  # the model's own: their buffers have values
        self.sliced = dict.fromkeys(name for name, module in self.modules.items() if is_layer(module))
        for pattern in (*keep, *ratios):
            if not any(fnmatchcase(name, pattern) for name in self.sliced):
                raise unknown("layer pattern", pattern, self.sliced)
        self.owned: dict[int, tuple[str, str]] = {}  # tensors of other modules: id to module and attribute
        inside = tuple(f"{name}." for name in self.sliced)
        for name, module in self.stack.modules.items():
            if name not in self.sliced and not name.startswith(inside):
                for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
                    if tensor is not None and tensor.is_floating_point() and tensor.ndim:
                        self.owned.setdefault(id(tensor), (name, attribute))

    @property
    def inside(self) -> bool:
        """Whether we are in a layer or a function: their own operations are not looked at."""
        return self.in_function or any(name in self.sliced for name in self.stack.running if name != self.entering)

    def dims_of(self, tensor: object) -> Dims | None:
        """What lies on the axes of a tensor; None for one that no layer has touched."""
        if isinstance(tensor, Tensor) and id(tensor) in self.owned and id(tensor) not in self.seen:
            passive = ((Segment(Axis(int(size), passive=True), 1),) if size > 1 else None for size in tensor.shape)
            self.seen[id(tensor)] = tensor, tuple(passive)
        found = self.seen.get(id(tensor))
        return None if found is None else found[1]

    def _enter(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.made[name] = Counter()
        if name in self.sliced:
            self.entering = name
            _read(args, kwargs)
            self.entering = None

    def _leave(self, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> None:
        if name not in self.sliced or any(outer in self.sliced for outer in self.stack.running[:-1]):
            return
        x, module = _read(args, kwargs), self.modules[name]
        try:
            layer, dims = module_rule(name, module, self.dims_of(x) or (None,) * x.ndim, x, y)
            if name in self.layers:  # a module that is used twice must be sliced the same way both times
                rows.unify(self.layers[name].inputs, layer.inputs)
                rows.unify(self.layers[name].outputs, layer.outputs)
            elif any(fnmatchcase(name, pattern) for pattern in self.keep):
                rows.fix(layer.outputs, "it was asked to keep its width")
            for pattern, ratio in self.ratios.items():
                for segment in rows.resolve(layer.outputs) if fnmatchcase(name, pattern) else ():
                    segment.axis.ratio = Fraction(ratio).limit_denominator(1000)
            self._tie(module, layer)
            self.layers.setdefault(name, layer)
        except CannotFollow as reason:
            self._obstacle(f"{type(module).__name__}: {reason}", [x])
            dims = (None,) * y.ndim
        self._set([y], [dims])

    def _tie(self, module: nn.Module, layer: Layer[Row]) -> None:
        """A weight that several layers share is sliced the same way in all of them."""
        for name, axes in layer.tensors.items():
            first = self.tied.setdefault(id(module._parameters[name]), axes)
            for one, other in zip(first, axes, strict=True):
                if (one is None) != (other is None):
                    raise CannotFollow("it shares a weight with a layer that reads or makes its channels another way")
                if one is not None and other is not None:
                    rows.unify(one, other)

    def trained(self, dry: DryRun) -> list[Any]:
        """What the network returns in training; nothing where it needs more than its inputs for that."""
        evaluated = dict(self.made)
        dry.model.train()
        try:
            return [dry.run(self, _Functions(self)).outputs]
        except RewriteError:
            if self.made.keys() == evaluated.keys():  # it failed before anything new came
                return []
            raise
        finally:
            self.made.update(evaluated)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        call = Call(func, args, kwargs or {}, result, self.dims_of)
        results = tensors_of(result)
        if results and not self._untouched(call):
            with self._following(call, results):
                self._set(results, dims_after(call))
        return result

    def function(self, rule: FunctionRule, call: Call) -> Any:
        """One call of a function that may hold channel counts."""
        # Inside an elastic chain other modules will move the channels.
        if rule.numbers is not None and not (self.inside and isinstance(self.modules[self.stack.path], MOVERS)):
            for name in self.stack.running:
                self.made[name][call.func] += 1
        numbers = None if self._untouched(call) else [] if rule.numbers is None else rule.numbers(call)
        if numbers is None:
            return call.func(*call.args, **call.kwargs)
        self.in_function = True
        try:
            result = call.func(*call.args, **call.kwargs)
        finally:
            self.in_function = False
        results = tensors_of(result)
        with self._following(call, results):
            dims, counts = rule.rule(Call(call.func, call.args, call.kwargs, result, self.dims_of), numbers)
            self._set(results, dims)
            if counts:
                self._note(call, Counts(tuple(numbers), counts))
        return result

    def _set(self, results: Sequence[Tensor], dims: Sequence[Dims]) -> None:
        for tensor, of in zip(results, dims, strict=True):
            self.seen[id(tensor)] = tensor, of

    def _untouched(self, call: Call) -> bool:
        """Whether there is nothing to follow: inside a layer, or no tensor that one has touched."""
        return self.inside or all(self.dims_of(tensor) is None for tensor in tensors_of((call.args, call.kwargs)))

    @contextmanager
    def _following(self, call: Call, results: Sequence[Tensor]) -> Iterator[None]:
        """Where channels cannot be followed the results hold none, and there is an obstacle."""
        try:
            yield
        except CannotFollow as reason:
            self._obstacle(str(reason), tensors_of((call.args, call.kwargs)))
            self._set(results, [(None,) * tensor.ndim for tensor in results])

    def _obstacle(self, reason: str, tensors: Sequence[Tensor]) -> None:
        concerned = tuple(row for tensor in tensors for row in self.dims_of(tensor) or () if row is not None)
        for row in concerned:
            rows.fix_passive(row, reason)
        self.obstacles.append((self.stack.path or self.name, reason, concerned))

    def _note(self, call: Call, counts: Counts[Row]) -> None:
        """Keep a call with counts; made a second time, it must count the same channels."""
        name = self.stack.path
        module = self.modules[name]
        held = {id(value): key for key, value in vars(module).items() if isinstance(value, (tuple, list)) and value}
        attribute = next((held[id(arg)] for arg in call.args if id(arg) in held), "")
        if isinstance(module, nn.GroupNorm) and call.name == "group_norm":
            attribute = "num_groups"
        place = call.func, self.made[name][call.func] - 1
        first, _ = self.calls.setdefault(name, {}).setdefault(place, (counts, attribute))
        if first.of.keys() != counts.of.keys():
            raise CannotFollow("its forward is called twice and does different things")
        for number, (row, _) in first.of.items():
            rows.unify(row, counts.of[number][0])

    def check(self, outputs: Sequence[Any]) -> None:
        """What the network returns is never sliced. Raise for the first obstacle, and where nothing is elastic."""
        for output in outputs:
            if not tensors_of(output):
                raise RewriteError(
                    f"{self.name} returns {type(output).__name__}: an elastic network must return tensors, "
                    "alone or in tuples, lists or dictionaries, because its outputs keep their channels at every width"
                )
        for row in (row for tensor in tensors_of(outputs) for row in self.dims_of(tensor) or () if row is not None):
            rows.fix(row, "it makes an output of the network")
        for where, reason, concerned in self.obstacles:
            names = list(dict.fromkeys(name for row in concerned for name in rows.makers(row, sliceable=True)))
            if names:
                shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
                raise RewriteError(
                    f"{where}: {reason}, so these channels cannot follow the width; they are made by "
                    f"{len(names)} layers: pass keep=[{shown}] to leave those at full width"
                )
        if not any(rows.is_sliceable(layer.outputs) for layer in self.layers.values()):
            why = "".join(f"; {where}: {reason}" for where, reason, _ in self.obstacles[:3])
            others = " or next to a layer that cannot follow" if why else ""
            raise RewriteError(
                f"{self.name}: no layer's width can be changed; every channel is an input or an output "
                f"of the network or was asked to be kept{others}, so there is nothing to make elastic{why}"
            )

    def found(self, divisor: int, widest: float) -> Found:
        """The channels of everything, which will change no more."""
        known: dict[Row, Channels] = {}

        def done(row: Row) -> Channels:
            row = rows.resolve(row)
            return known.setdefault(row, Channels(_slice(*segment, divisor, widest) for segment in row))

        kept = {
            name: rows.resolve(layer.outputs)[0].axis.fixed or ""
            for name, layer in self.layers.items()
            if layer.outputs is not layer.inputs and not rows.is_sliceable(layer.outputs)
        }
        tensors: dict[str, dict[str, Any]] = {}
        for key, (name, attribute) in self.owned.items():
            axes = tuple(None if row is None else done(row) for row in self.seen[key][1]) if key in self.seen else ()
            if any(channels is not None and _moves(channels) for channels in axes):
                tensors.setdefault(name, {})[attribute] = axes
        others = {}
        for name in dict.fromkeys((*tensors, *self.calls)):
            attributes, calls = {}, {}
            for place, (given, attribute) in self.calls.get(name, {}).items():
                of = {number: count for number, count in given.map(done).of.items() if _moves(count[0])}
                if of and attribute:
                    attributes[attribute] = Counts(given.numbers, of)
                elif of:
                    calls[place] = Counts(given.numbers, of)
            if attributes or calls or name in tensors:
                others[name] = OtherLayer(tensors.get(name, {}), attributes, calls, self.made.get(name, {}))
        return Found({name: layer.map(done) for name, layer in self.layers.items()}, others, kept)


def _moves(channels: Channels) -> bool:
    """Whether any width has other channels than another."""
    return any(one.law is not None for one in channels.slices)


def _read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer reads; one that reads a map at two resolutions reads the merged one."""
    x = settled(next(iter((*args, *kwargs.values()))))
    return full_map(x) if isinstance(x, OctaveMap) else x


def _slice(axis: Axis, unit: int, divisor: int, widest: float) -> Slice:
    """A segment that will change no more, with room for the width `widest`."""
    if axis.fixed or axis.passive:
        return Slice(axis.units, unit)
    ratio = (axis.ratio or Fraction(1)) * axis.share
    room = channels_at(axis.units * axis.size, widest, divisor=divisor, ratio=ratio, quantum=axis.size) // axis.size
    law = axis.size, divisor, ratio
    return Slice(axis.units, unit, law, room if widest > 1 else 0, axis.group.root.name)


def assign_ratios(edges: Sequence[tuple[Row, Row]]) -> None:
    """Give every elastic axis the ratio r of the rounding law, so that a block shrinks in step; those with one keep it.

    R -> T, T a residual stream (or in step with one) of k times R's channels      r(R) = r(T) / k      bottlenecks
    A -> R, R depthwise, k >= 2 times A's channels, and read by a narrower layer   r(R) = k * r(A)      expansions

    All else has r = 1. On ResNet-50 stem and middle layers have 1/4, on MobileNetV2 the expanded layers 6, on
    MobileNetV1 and VGG all have 1: the settings of MutualNet's own networks. `edges` are the channels that each dense
    convolution or linear layer reads and makes, in the order of execution.
    """
    pairs = [(rows.resolve(source), rows.resolve(target)) for source, target in edges]
    readers: dict[int, list[int]] = {}
    for source, target in pairs:
        for segment in source:
            readers.setdefault(id(segment.axis), []).append(sum(part.full for part in target))
    for source, target in pairs:
        wide, narrow = _single(target), _single(source)
        if wide is None or narrow is None or not wide.axis.depthwise or _settled(wide.axis):
            continue
        times, rest = divmod(wide.full, narrow.full)
        if rest == 0 and times >= 2 and min(readers.get(id(wide.axis), [wide.full])) < wide.full:
            wide.axis.ratio = times * (narrow.axis.ratio or Fraction(1))
    for source, target in reversed(pairs):
        part, whole = _single(source), _single(target)
        if part is None or whole is None or _settled(part.axis) or whole.full % part.full:
            continue
        if _settled(whole.axis):
            part.axis.ratio = (whole.axis.ratio or Fraction(1)) * Fraction(part.full, whole.full)


def _settled(axis: Axis) -> bool:
    return axis.stream or axis.ratio is not None


def _single(row: Row) -> Segment | None:
    """The only segment of the row where it has one and that is elastic; concatenations have no ratio."""
    return row[0] if len(row) == 1 and row[0].axis.fixed is None else None
