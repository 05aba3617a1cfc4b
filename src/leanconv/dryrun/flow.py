"""Which call reads what which other call made: a dry run written down as a graph of modules and torch functions.

    flow = record_flow(model, (3, 224, 224), is_leaf=lambda module: isinstance(module, nn.Conv2d))
    for call in flow.calls:
        call.module, call.function, call.reads, call.makes, call.writes

A call is a leaf module, a torch function called outside of one, or an ATen operator that neither of them called (from
TorchScript). What it reads and makes are values: a tensor at one moment. After an operation in place every tensor that
shares the memory, under whatever name, holds a new value, which that operation has made. So the makers of what a call
reads are all it depends on, also where a forward changes things in place or writes through a view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from leanconv.dryrun.failures import check_higher_order
from leanconv.dryrun.operators import bind, written
from leanconv.dryrun.run import DryRun
from leanconv.dryrun.size import Size, tensors_of
from leanconv.dryrun.stack import ModuleStack
from leanconv.errors import LeanconvError

__all__ = ["Call", "Flow", "Value", "is_torch_layer", "record_flow"]


class Value(NamedTuple):
    """What a tensor holds at one moment.

    `maker` is the number of the call that made it, None for the input, for parameters, buffers (then `name` says which)
    and constants. Values of one `memory` are views of each other, or one tensor at different moments. `from_input` says
    whether it depends on the network's input.
    """

    shape: tuple[int, ...]
    maker: int | None
    memory: int
    from_input: bool
    name: str = ""


class Call(NamedTuple):
    """One call, the `number`-th.

    `module` is the qualified name of the leaf module, or of the innermost module that was running; `function` the torch
    function or operator, None for a leaf module. `reads` are the values of its tensor arguments in their order, `makes`
    those of the tensors it returned, as far as it made them or changed them; `writes` the memories it changed in place.
    """

    number: int
    module: str
    function: Callable[..., Any] | None
    reads: tuple[Value, ...]
    makes: tuple[Value, ...]
    writes: frozenset[int]

    @property
    def adds(self) -> bool:
        """Whether it adds maps: a sum, or a difference, of two values that depend on the input."""
        name = getattr(self.function, "__name__", "").strip("_").removesuffix(".Tensor")
        return name in _SUMS and sum(value.from_input for value in self.reads) > 1


_SUMS = frozenset(("add", "radd", "iadd", "sub", "rsub", "isub", "subtract"))


@dataclass(frozen=True)
class Flow:
    """All calls of one run in their order, the network's inputs and the values of the tensors it returned."""

    calls: tuple[Call, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def input(self) -> Value:
        """The first input."""
        return self.inputs[0]

    def readers(self) -> dict[int, tuple[int, ...]]:
        """For every call, by number, the calls that read what it made, in order."""
        found: dict[int, list[int]] = {call.number: [] for call in self.calls}
        for call in self.calls:
            for maker in dict.fromkeys(value.maker for value in call.reads):
                if maker is not None:
                    found[maker].append(call.number)
        return {number: tuple(readers) for number, readers in found.items()}


def is_torch_layer(module: nn.Module) -> bool:
    """Whether `module` is a layer of torch's own, or of a class made from one, without parts of its own."""
    has_parts = any(child is not None for child in module._modules.values())
    bases = (base for base in type(module).__mro__ if base is not nn.Module)
    return not has_parts and any(base.__module__.startswith("torch.nn.modules.") for base in bases)


def record_flow(
    model: nn.Module,
    size: Size,
    *,
    is_leaf: Callable[[nn.Module], bool] = is_torch_layer,
    batch: int = 2,
    training: bool | None = False,
    error: type[LeanconvError] = LeanconvError,
) -> Flow:
    """Run `model` on an input of `size` without computing, and write down its calls; see `DryRun` for the options.

    Nothing inside a module for which `is_leaf` holds is looked at.
    Raises `error` where the model cannot be followed.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))
    >>> flow = record_flow(net, (3, 8, 8))
    >>> [(call.module, [value.maker for value in call.reads]) for call in flow.calls]
    [('0', [None]), ('1', [0]), ('2', [1])]
    """
    dry = DryRun(model, size, batch=batch, training=training, error=error)
    record = _Record(dry.stack, is_leaf)
    given = tuple(record.given(tensor, "input", from_input=True) for tensor in dry.inputs)
    for name, tensor in (*dry.model.named_parameters(), *dry.model.named_buffers()):
        record.given(tensor, name)
    ran = dry.run(_Operators(record), _Functions(record))
    return Flow(tuple(record.calls), given, record.values(ran.outputs))


@dataclass
class _Open:
    """A call at work: what it read, and the memories it has changed so far."""

    function: Callable[..., Any] | None
    depth: int
    reads: tuple[Value, ...]
    writes: set[int] = field(default_factory=set)


class _Record:
    """The calls so far, and the value of every tensor.

    All tensors are kept: they have no memory to speak of, and so neither they nor their storages are ever confused with
    later ones at the same address.
    """

    def __init__(self, stack: ModuleStack, is_leaf: Callable[[nn.Module], bool]) -> None:
        self.calls: list[Call] = []
        self.open: _Open | None = None
        self._stack = stack
        self._is_leaf = is_leaf
        self._known: dict[int, tuple[Tensor, Value]] = {}
        self._memories: dict[int, int] = {}
        self._changed: dict[int, Value] = {}  # by memory: the value of the last call that changed it
        stack.on_enter.append(self._enter)
        stack.on_leave.append(self._leave)

    def given(self, tensor: Tensor, name: str, *, from_input: bool = False) -> Value:
        """A tensor that no call makes."""
        value = Value(tuple(tensor.shape), None, self._memory(tensor), from_input, name)
        self._known[id(tensor)] = tensor, value
        return value

    def values(self, tree: Any) -> tuple[Value, ...]:
        """The present value of every tensor in nested tuples, lists and dictionaries."""
        return tuple(map(self._value, tensors_of(tree)))

    @property
    def busy(self) -> bool:
        """Whether a call is at work, whose own calls are not looked at; one that has raised is no longer."""
        if self.open is not None and self.open.function is None and len(self._stack.running) < self.open.depth:
            self.open = None
        return self.open is not None

    def call(self, function: Callable[..., Any], run: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        """Carry out a function as one call."""
        self.open = _Open(function, len(self._stack.running), self.values((args, kwargs)))
        try:
            result = run()
            self._close(self.open, result)
        finally:
            self.open = None
        return result

    def write(self, tensor: Tensor) -> None:
        """The call at work changes `tensor`."""
        memory = self._memories.get(_storage(tensor))
        if self.open is not None and memory is not None:
            self.open.writes.add(memory)

    def _enter(self, _name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.busy and self._is_leaf(module):
            self.open = _Open(None, len(self._stack.running), self.values((args, kwargs)))

    def _leave(self, _name: str, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        open_ = self.open
        if open_ is not None and open_.function is None and len(self._stack.running) == open_.depth:
            self.open = None
            self._close(open_, output)

    def _close(self, done: _Open, result: Any) -> None:
        """Write the call down, unless it neither made nor changed anything: one that returns a shape, or its input."""
        number = len(self.calls)
        from_input = any(value.from_input for value in done.reads)
        for memory in done.writes:
            before = self._changed.get(memory)
            depends = from_input or (before is not None and before.from_input)
            self._changed[memory] = Value((), number, memory, depends)
        made = []
        for tensor in tensors_of(result):
            if id(tensor) not in self._known:
                value = Value(tuple(tensor.shape), number, self._memory(tensor), from_input)
                self._known[id(tensor)] = tensor, value
                made.append(value)
            elif self._memory(tensor) in done.writes:
                made.append(self._value(tensor))
        if made or done.writes:
            self.calls.append(
                Call(number, self._stack.path, done.function, done.reads, tuple(made), frozenset(done.writes))
            )

    def _value(self, tensor: Tensor) -> Value:
        """What `tensor` holds now."""
        if id(tensor) not in self._known:  # made where nobody looks: a constant, or another name of a known memory
            self.given(tensor, "")
        value = self._known[id(tensor)][1]
        changed = self._changed.get(value.memory)
        if changed is None or changed.maker is None or (value.maker is not None and value.maker >= changed.maker):
            return value
        value = value._replace(maker=changed.maker, from_input=value.from_input or changed.from_input)
        self._known[id(tensor)] = tensor, value
        return value

    def _memory(self, tensor: Tensor) -> int:
        return self._memories.setdefault(_storage(tensor), len(self._memories))


def _storage(tensor: Tensor) -> int:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # within torch.vmap
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return int(tensor.untyped_storage()._cdata)


class _Functions(TorchFunctionMode):
    """Sees the calls of torch's functions, methods and operators in the forward's own code."""

    def __init__(self, record: _Record) -> None:
        super().__init__()
        self.record = record

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.record.busy:
            return func(*args, **kwargs)
        return self.record.call(func, lambda: func(*args, **kwargs), args, kwargs)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees ATen operators: what they change in place, and those that no function has called."""

    supports_higher_order_operators = True

    def __init__(self, record: _Record) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.record = record

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}

        if isinstance(func, HigherOrderOperator):
            check_higher_order(func)
            if self.record.busy:
                return func(*args, **kwargs)
            return self.record.call(func, lambda: func(*args, **kwargs), args, kwargs)

        def run() -> Any:
            given = bind(func, args, kwargs)
            for tensor in tensors_of([given[name] for name in written(func)]):
                self.record.write(tensor)
            return func(*args, **kwargs)

        return run() if self.record.busy else self.record.call(func, run, args, kwargs)
