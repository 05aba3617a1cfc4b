"""Which channels belong together: one forward pass of any network without computing, watching operations and layers.

Layers with weights per channel (convolutions, BatchNorm, linear, PReLU) are seen as modules, by hooks; everything
between them as aten operations, by a dispatch mode over fake tensors (`rules.py`). No graph is made and nothing is
rewritten, so any Python in a forward is fine, as long as it reads channel counts from its tensors.

The network's input and outputs are never sliced. An operation that nobody knows is an obstacle: an error that names
the module, unless the channels it meets are fixed anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from fractions import Fraction
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from leanconv.elastic.channels import (
    Axis,
    Channels,
    Misfit,
    Row,
    Segment,
    Span,
    align,
    fixed_row,
    pin,
    resolve,
    unify,
)
from leanconv.elastic.ratios import Edge, assign_ratios
from leanconv.elastic.rules import Call, Dims, Unknown, dims_after
from leanconv.errors import LeanconvError, RewriteError, unknown

__all__ = ["Layer", "fake_input", "is_layer", "trace"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Layer(NamedTuple):
    """What an elastic layer reads and makes; the two are the same object where the layer changes no channels."""

    inputs: Channels
    outputs: Channels


@dataclass(frozen=True)
class _Obstacle:
    where: str
    reason: str
    rows: tuple[Row, ...]


def is_layer(module: nn.Module) -> bool:
    """Whether a module has weights per channel that we know how to slice."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters > 1
    return isinstance(module, (*CONVOLUTIONS, nn.Linear, _BatchNorm))


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
) -> dict[str, Layer]:
    """The layers of `model`, by qualified name, with the channels they read and make.

    Args:
        model: any network; it is run once in eval mode without computing, and left as it was.
        size: its input without the batch axis.
        divisor: of the rounding law.
        keep: name patterns of layers whose outputs are never sliced.
        ratios: name pattern -> the r of the rounding law, instead of what `assign_ratios` finds.

    Raises `RewriteError` naming the module where channels cannot follow the width.
    """
    tracer = _Tracer(model, tuple(keep), dict(ratios or {}))
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), tracer.hooks():
            x = fake_input(model, size)
            with tracer:
                tracer.finish(model(x))
    except LeanconvError:
        raise
    except Exception as error:
        raise RewriteError(
            f"{tracer.where}: the forward pass fails on an input of size {tuple(size)} ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); pass example_size= the size of one input"
        ) from error
    finally:
        for module, mode in training:
            module.training = mode
    tracer.check()
    assign_ratios(tracer.edges)
    return tracer.layers(divisor)


@dataclass
class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    model: nn.Module
    keep: tuple[str, ...]
    ratios: dict[str, float]
    edges: list[Edge] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[str] = []
        self.inside = 0  # how many layers we are in: their own operations are not looked at
        self.seen: dict[int, tuple[Tensor, Dims]] = {}  # holds the tensors, so that no id is used twice
        self.rows: dict[str, tuple[Row, Row]] = {}
        self.obstacles: list[_Obstacle] = []
        for pattern in (*self.keep, *self.ratios):
            layers = [name for name, module in self.model.named_modules() if is_layer(module)]
            if not any(fnmatchcase(name, pattern) for name in layers):
                raise unknown("layer pattern", pattern, layers)

    @property
    def where(self) -> str:
        """The innermost module at work."""
        return self.stack[-1] if self.stack and self.stack[-1] else type(self.model).__name__

    def lookup(self, tensor: object) -> Dims | None:
        """What lies on the axes of a tensor; None for one that no layer has touched."""
        found = self.seen.get(id(tensor))
        return None if found is None else found[1]

    def know(self, tensor: Tensor, dims: Dims) -> None:
        """Remember what lies on the axes of a tensor."""
        self.seen[id(tensor)] = (tensor, dims)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the modules."""
        handles = []
        for name, module in self.model.named_modules():
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
            self.inside += is_layer(module)

        return hook

    def _leave(self, name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            if is_layer(module):
                self.inside -= 1
                if not self.inside:
                    self._layer(name, module, next(iter((*args, *kwargs.values()))), result)
            self.stack.pop()

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.inside or all(self.lookup(tensor) is None for tensor in tensors):
            return result
        results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not results:
            return result
        try:
            dims = dims_after(Call(func, args, kwargs, result, self.lookup))
        except (Unknown, Misfit) as reason:
            self._obstacle(str(reason), [self.lookup(tensor) for tensor in tensors])
            dims = ()
        for tensor in results:
            self.know(tensor, dims if tensor.ndim == len(dims) else (None,) * tensor.ndim)
        return result

    def _obstacle(self, reason: str, known: Sequence[Dims | None]) -> None:
        rows = tuple(row for dims in known if dims is not None for row in dims if row is not None)
        self.obstacles.append(_Obstacle(self.where, reason, rows))

    def _layer(self, name: str, module: nn.Module, x: Any, y: Any) -> None:
        dims = self.lookup(x) or (None,) * x.ndim
        try:
            self.know(y, self._pass(name, module, dims, x, y))
        except (Unknown, Misfit) as reason:
            self._obstacle(f"{type(module).__name__}: {reason}", [dims])
            self.know(y, (None,) * y.ndim)

    def _pass(self, name: str, module: nn.Module, dims: Dims, x: Tensor, y: Tensor) -> Dims:
        """The dims behind a layer, whose rows are noted."""
        _refuse_oddities(module)
        axis = x.ndim - 1 if isinstance(module, nn.Linear) else 1
        row = dims[axis] or fixed_row(int(x.shape[axis]), "it is the network's input")
        out: Row | None
        if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            if isinstance(module, CONVOLUTIONS) and x.ndim != len(module.kernel_size) + 2:
                raise Unknown("its input has no batch axis")
            moved = [i for i, other in enumerate(dims) if other is not None and i != axis]
            if any(x.shape[i] != y.shape[i] for i in moved):
                raise Unknown("it runs along the channels and changes their number")
            row, out = self._convolve(name, module, row)
            behind = [dims[i] if i in moved else None for i in range(x.ndim)]
            behind[axis] = None if y.shape[axis] == 1 else out
        else:
            out, behind = row, list(dims)
        if name in self.rows:  # a module that is used twice must be sliced the same way both times
            unify(self.rows[name][0], row)
            unify(self.rows[name][1], out)
        else:
            self.rows[name] = (row, out)
        return tuple(behind)

    def _convolve(self, name: str, module: nn.Module, row: Row) -> tuple[Row, Row]:
        if isinstance(module, nn.Linear):
            ins, outs, groups = module.in_features, module.out_features, 1
        else:
            assert isinstance(module, CONVOLUTIONS)
            ins, outs, groups = module.in_channels, module.out_channels, module.groups
        if groups == 1:
            out: Row = (Segment(Axis(outs, makers=(name,)), 1),)
            if outs == 1:
                pin(out, "it makes a single channel")
            self.edges.append(Edge(row, out))
        else:
            row = align(row, ins // groups)
            out = tuple(Segment(axis, unit * outs // ins) for axis, unit in row)
            for axis, _ in row:
                axis.depthwise |= ins == groups
        if any(fnmatchcase(name, pattern) for pattern in self.keep):
            pin(out, "it was asked to keep its width")
        for pattern, ratio in self.ratios.items():
            if fnmatchcase(name, pattern):
                for segment in resolve(out):
                    segment.axis.ratio = Fraction(ratio).limit_denominator(1000)
        return row, out

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
        for where, reason, rows in ((o.where, o.reason, o.rows) for o in self.obstacles):
            loose = {
                maker: None
                for row in rows
                for segment in resolve(row)
                if segment.axis.fixed is None
                for maker in segment.axis.makers
            }
            if loose:
                names = ", ".join(repr(maker) for maker in list(loose)[:8]) + (", ..." if len(loose) > 8 else "")
                raise RewriteError(
                    f"{where}: {reason}, so these channels cannot follow the width; they are made by "
                    f"{len(loose)} layers: pass keep=[{names}] to leave those at full width"
                )
        if all(segment.axis.fixed for _, out in self.rows.values() for segment in resolve(out)):
            raise RewriteError(
                f"{type(self.model).__name__}: no layer's width can be changed; every channel is an input or an output "
                "of the network or was asked to be kept, so there is nothing to make elastic"
            )

    def layers(self, divisor: int) -> dict[str, Layer]:
        """The finished channels of every layer."""

        def finished(row: Row) -> Channels:
            return Channels(
                Span(
                    axis.units,
                    unit,
                    None if axis.fixed else (axis.size, divisor, axis.ratio or Fraction(1)),
                )
                for axis, unit in resolve(row)
            )

        layers = {}
        for name, (row, out) in self.rows.items():
            inputs = finished(row)
            layers[name] = Layer(inputs, inputs if out is row else finished(out))
        return layers


def _refuse_oddities(module: nn.Module) -> None:
    """Layers whose weights are not what they seem."""
    if parametrize.is_parametrized(module) or "forward" in vars(module):
        raise Unknown("its weights are parametrized or its forward was replaced on the instance")
    odd = [name for name, p in module._parameters.items() if p is not None and name not in ("weight", "bias")]
    if odd or (isinstance(module, (nn.Linear, *CONVOLUTIONS)) and module._parameters.get("weight") is None):
        raise Unknown(f"it has weights beside weight and bias ({', '.join(odd) or 'computed'})")
    if isinstance(module, CONVOLUTIONS) and prod(module.weight.shape) == 0:
        raise Unknown("it has no weights")
