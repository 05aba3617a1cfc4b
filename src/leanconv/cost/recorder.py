"""What a network does to one input: a single dry run, written down operator by operator.

A dispatch mode sees every ATen operator, whoever called it (a module, a functional call, a sliced weight), which is why
nothing here names a layer or an operator of ours. It also follows two things that operators do not say: whether numbers
come from the image, from weights or from constants, which separates linear layers from attention and finds the weights
behind a slice or a standardisation; and how long memory lives, by weak references to storages.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from leanconv.cost.records import ModuleRef, OpRecord, Origin, Recording, TensorRef, aten, refs_in
from leanconv.dryrun import DryRun, Size, check_higher_order
from leanconv.dryrun.operators import bind, is_pointwise, written
from leanconv.dryrun.size import tensors_of

__all__ = ["record"]

# Operators after which the same numbers are still the same weight.
_SAME_WEIGHT = aten(
    "t transpose permute view _unsafe_view unsqueeze squeeze expand detach alias clone contiguous _to_copy",
    "_reshape_alias",
)
# Operators that take only the shape of their tensor argument: all of it, or its device and type.
_LIKE = aten("zeros_like ones_like full_like empty_like rand_like randn_like")
_FILLED = aten(
    "zeros ones full empty rand randn empty_strided",
    "new_zeros new_ones new_full new_empty new_empty_strided",
)
_SHAPE_ONLY = _LIKE | _FILLED
# Operators that repeat a tensor along new or longer axes.
_REPEATS = aten("expand repeat")


@functools.cache
def _facts(func: Any) -> tuple[str, bool]:
    """Of an operator: plain name, and whether it only composes others."""
    name = func.overloadpacket.__name__
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    return f"{func.namespace}.{name}", composite


@dataclass(slots=True)
class _Storage:
    """Memory behind one or more tensors."""

    serial: int
    nbytes: int
    origin: Origin
    written: frozenset[int] = frozenset()  # parameters that in-place operators brought in


@dataclass(frozen=True, slots=True)
class _Held:
    """What stays true of one tensor object."""

    serial: int
    storage: _Storage
    identity: Hashable
    weight_numel: int
    parameters: frozenset[int] = frozenset()
    spread: bool = False


def record(model: nn.Module, size: Size, *, batch: int = 1) -> Recording:
    """Run `model` once, in eval mode, on fake inputs of `size`, see `check_sizes`, and write down its operators.

    Raises `LeanconvError` when the network cannot run on that size, reads tensor values in its forward, or cannot be
    copied.

    >>> [one.name for one in record(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU()), (2, 8)).records]
    ['aten.convolution', 'aten.relu']
    """
    dry = DryRun(model, size, batch=batch)
    recorder = _Recorder(dry)
    inputs = tuple(map(recorder.ref, dry.inputs))
    ran = dry.run(recorder)
    outputs = tuple(map(recorder.ref, tensors_of(ran.outputs)))
    modules = tuple(
        ModuleRef(name, type(module).__name__, sum(p.numel() for p in module.parameters()), ran.calls[name])
        for name, module in dry.model.named_modules()
    )
    return Recording(tuple(recorder.records), inputs, outputs, modules, recorder.parameters(), recorder.peak_bytes)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator, follows where numbers come from, and adds up the memory that is alive."""

    supports_higher_order_operators = True

    def __init__(self, dry: DryRun) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records: list[OpRecord] = []
        self.live_bytes = 0
        self.peak_bytes = 0
        self._running = dry.stack.running
        self._fake_mode = dry.fake_mode
        self._held: Any = WeakTensorKeyDictionary()
        self._storages: dict[int, tuple[Any, _Storage]] = {}
        self._serial = 0
        self._identities: dict[Hashable, int] = {}
        self._batch = dry.batch
        self._numels: dict[int, int] = {}  # of parameters
        for parameter in dry.model.parameters():
            self._hold(parameter, Origin.WEIGHT)
        for tensor in dry.inputs:
            self._hold(tensor, Origin.IMAGE, counted=True)  # which the caller keeps alive during the forward

    def parameters(self) -> dict[int, int]:
        """The elements of every parameter that a weight was computed of, by its serial."""
        return dict(self._numels)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        if func.namespace == "prim":  # asks a fake tensor for its device
            return func(*args, **kwargs)
        name, composite = _facts(func)
        if composite:  # seen whole only inside torch.inference_mode: look at what it is made of
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        if not name.startswith("aten.lift"):  # lifting is how a real literal becomes fake
            args, kwargs = tree_map(self._to_fake, (args, kwargs))
        bound = {argument: self._swap(value) for argument, value in bind(func, args, kwargs).items()}
        result = func(*args, **kwargs)
        self._record(name, func, bound, result)
        return result

    def _higher_order(self, func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Attention with a rule for its scores, as one operator."""
        check_higher_order(func)
        result = func(*args, **kwargs)
        bound = {name: self._swap(value) for name, value in zip(("query", "key", "value"), args, strict=False)}
        self._record(str(func), None, bound, result)
        return result

    def _to_fake(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            fake = self._fake_mode.from_tensor(value)
            if fake not in self._held:
                self._hold(fake, Origin.WEIGHT if isinstance(value, nn.Parameter) else Origin.CONSTANT)
            return fake
        return value

    def _swap(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.ref(value)
        if isinstance(value, (tuple, list)):
            return tuple(self._swap(item) for item in value)
        return value

    def _record(self, name: str, func: Any, bound: dict[str, Any], result: Any) -> None:
        """Write down a call of the operator `func`, None for one that only reads."""
        results = [t for t in (result if isinstance(result, (tuple, list)) else (result,)) if isinstance(t, Tensor)]
        if not results:
            return
        inputs = list(refs_in(bound.values()))
        read = [] if name in _SHAPE_ONLY else inputs
        origin = max((ref.origin for ref in read), default=Origin.CONSTANT)
        spread = origin < Origin.STATE and any(ref.spread for ref in read)
        keeps = name in _SAME_WEIGHT or name in _REPEATS
        if spread and not keeps:
            origin = Origin.STATE  # of what is new or overwritten; a view is not computed
        sources: frozenset[int] = frozenset()
        if origin is not Origin.IMAGE:
            sources = sources.union(*(ref.parameters for ref in read))
        identity, weight_numel = self._identity(name, origin, inputs, bound)
        writes = () if func is None else tuple(refs_in(bound[argument] for argument in written(func)))
        overwritten = {ref.storage for ref in writes}
        fresh = []
        for position, tensor in enumerate(results):
            known = tensor in self._held
            storage, new = self._storage(tensor, origin, counted=True)
            if storage.serial in overwritten:
                storage.origin = max(storage.origin, origin)
                storage.written |= sources
            if not known:
                self._serial += 1
                mine = (identity, position) if len(results) > 1 and identity is not None else identity
                numel = self._different(tensor, sources) if weight_numel is None else min(weight_numel, tensor.numel())
                carries = spread and (keeps or not new)
                starts = origin < Origin.STATE and self._starts(name, tensor, inputs)
                self._held[tensor] = _Held(self._serial, storage, mine, numel, sources, carries or starts)
            fresh.append(new)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        outputs = tuple(self.ref(tensor) for tensor in results)
        running, pointwise = tuple(self._running), func is not None and is_pointwise(func)
        self.records.append(OpRecord(name, running, bound, outputs, tuple(fresh), writes, pointwise))

    def _identity(
        self, name: str, origin: Origin, inputs: list[TensorRef], bound: dict[str, Any]
    ) -> tuple[Hashable, int | None]:
        """The same operator on the same weights makes the same weight: what shared layers need to be counted once."""
        if origin >= Origin.STATE:
            return None, None
        if name in _SAME_WEIGHT and len(inputs) == 1:
            return inputs[0].identity, inputs[0].weight_numel
        recipe = (name, *(_frozen(value) for value in bound.values()))
        return self._identities.setdefault(recipe, len(self._identities)), None

    def _starts(self, name: str, tensor: Tensor, inputs: list[TensorRef]) -> bool:
        """Whether an operator gives something that is the same for all images an axis for them."""
        shape = tensor.shape
        if name in _LIKE:
            return inputs[0].active or inputs[0].spread
        if name in _FILLED:
            return len(shape) > 1 and self._batch in shape[:2]
        if name in _REPEATS and shape:
            source = inputs[0].shape
            return shape[0] == self._batch and (len(source) < len(shape) or source[0] == 1)
        return False

    def _different(self, tensor: Tensor, sources: frozenset[int]) -> int:
        """How many different numbers a tensor can hold: as many as it was computed of, repeats not counted."""
        numel = _without_repeats(tensor)
        return min(numel, sum(self._numels[one] for one in sources)) if sources else numel

    def ref(self, tensor: Tensor) -> TensorRef:
        """The reference for `tensor` as it is now."""
        held: _Held | None = self._held.get(tensor)
        if held is None:  # made outside the forward: a buffer, a literal
            held = self._hold(tensor, Origin.CONSTANT)
        storage = held.storage
        return TensorRef(
            held.serial,
            storage.serial,
            tuple(tensor.shape),
            storage.nbytes,
            tensor.is_floating_point() or tensor.is_complex(),
            storage.origin,
            held.identity,
            held.weight_numel,
            held.parameters | storage.written if storage.written else held.parameters,
            held.spread,
        )

    def _hold(self, tensor: Tensor, origin: Origin, *, counted: bool = False) -> _Held:
        storage, _ = self._storage(tensor, origin, counted=counted)
        self._serial += 1
        sources: frozenset[int] = frozenset()
        if origin is Origin.WEIGHT:
            self._numels[self._serial] = tensor.numel()
            sources = frozenset((self._serial,))
        held = _Held(self._serial, storage, ("tensor", self._serial), tensor.numel(), sources)
        self._held[tensor] = held
        return held

    def _storage(self, tensor: Tensor, origin: Origin, *, counted: bool) -> tuple[_Storage, bool]:
        """The memory behind `tensor`, and whether it was not known before; its bytes live until Python drops it."""
        memory = tensor.untyped_storage()
        key = memory._cdata
        if key in self._storages:
            return self._storages[key][1], False
        self._serial += 1
        nbytes = memory.nbytes()
        storage = _Storage(self._serial, nbytes, origin)

        def gone(_: object) -> None:
            del self._storages[key]
            if counted:
                self.live_bytes -= nbytes

        self._storages[key] = (weakref.ref(memory, gone), storage)
        if counted:
            self.live_bytes += nbytes
        return storage, True


def _without_repeats(tensor: Tensor) -> int:
    """Elements that are not repeats of an expanded axis."""
    return prod(n for n, step in zip(tensor.shape, tensor.stride(), strict=True) if step != 0)


def _frozen(value: Any) -> Hashable:
    if isinstance(value, TensorRef):
        return value.identity
    if isinstance(value, tuple):
        return tuple(_frozen(item) for item in value)
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)
