"""What a network costs: `measure_forward` runs it once on fake tensors and adds up what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from leanconv.cost.metrics import activation_bytes, not_counted, outside, weights
from leanconv.cost.other_operations import other_operations
from leanconv.cost.products import Product, products
from leanconv.cost.receptive_field import receptive_field
from leanconv.cost.recorder import record
from leanconv.cost.records import ModuleRef, OpRecord
from leanconv.dryrun import Sizes
from leanconv.errors import LeanconvError

__all__ = ["Comparison", "Cost", "ModuleCost", "PartCost", "measure_forward"]

_COMPARED = ("params", "conv_params", "macs", "interactions", "activation_bytes", "peak_activation_bytes")


@dataclass(frozen=True, slots=True)
class ModuleCost:
    """What one module costs, everything that ran inside it included; per image.

    `own_macs` are the multiply-adds of operators that ran in the module itself and in none of its children, `calls` how
    often the module ran; the other numbers are those of `Cost`.
    """

    name: str
    type: str
    calls: int
    params: int
    conv_params: int
    macs: int
    own_macs: int
    attention_macs: int
    interactions: int
    activation_bytes: int

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {name: getattr(self, name) for name in type(self).__slots__}


@dataclass(frozen=True, slots=True)
class PartCost:
    """What one part of a detector costs for an image: it is given `size` so many `times`; `macs` are those of all.

    `name` is "body", "neck", "proposals", "boxes", "masks" or "keypoints".
    """

    name: str
    size: Sizes
    times: int
    params: int
    macs: int

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {name: getattr(self, name) for name in type(self).__slots__}


@dataclass(frozen=True, slots=True)
class Comparison:
    """`cost / reference` for each number: 0.5 says half of the reference; None where the reference is 0."""

    params: float | None
    conv_params: float | None
    macs: float | None
    interactions: float | None
    activation_bytes: float | None
    peak_activation_bytes: float | None

    def to_json(self) -> dict[str, float | None]:
        """All ratios by name."""
        return {name: getattr(self, name) for name in _COMPARED}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs for one image of `size`; every number but `params` is measured from executed operators.

    size: the input of one image, without the batch axis; of several inputs a tuple of shapes.
    batch: how many images the measured forward took; all numbers are per image.
    params: elements of all parameters, BN affine and biases included, shared ones once.
    conv_params: elements of the convolution and linear weights that ran, as they ran (a slice counts as the slice),
        without biases, shared ones once.
    macs: multiply-adds of convolutions and linear layers (the papers' "FLOPs"); see `cost.products` for what counts.
    attention_macs: multiply-adds of products of two activations, which papers on convolutions leave out: attention's
        two, fused or written out, non-local blocks, bilinear pooling. Masked positions count, as in torch's counter.
    interactions: channel interactions, the sum over executed convolutions of C_out * binom(C_in / G, 2) (CSN, eq. 3);
        linear layers are not counted.
    activation_bytes: bytes of all floating-point results that depend on the image; views and in-place results add none.
    peak_activation_bytes: the largest sum of memory alive at once during an inference: the input, which the caller
        keeps, and every tensor that the forward has made and not yet dropped (of any type); not the weights, and not
        what kernels use inside.
    receptive_field: input positions per spatial axis that can reach one position of the last feature map, far from the
        borders (it may exceed the input); None when every position sees the whole input, as with squeeze-excitation.
    receptive_field_note: which map that is, or why there is no number.
    other_operations: by kind ("norms", "pools", "sums", ...) what everything but convolutions and linear layers does,
        see `cost.other_operations`; empty unless asked for.
    not_counted: operators that compute and are in no number above, by ATen name, with how often they ran.
    params_not_counted: parameters that no convolution or linear layer read, by the operator that read them first.
    params_not_run: parameters that nothing on the way from the input read, such as a head for training only.
    parts: of a detector, what its parts cost, of which the other numbers are the sums; empty for any other network.
    """

    size: Sizes
    batch: int
    params: int
    conv_params: int
    macs: int
    attention_macs: int
    interactions: int
    activation_bytes: int
    peak_activation_bytes: int
    receptive_field: tuple[int, ...] | None
    receptive_field_note: str
    not_counted: dict[str, int]
    params_not_counted: dict[str, int]
    params_not_run: int
    other_operations: dict[str, int]
    operators: dict[str, int] = field(repr=False)
    modules: tuple[ModuleCost, ...] = field(repr=False)
    parts: tuple[PartCost, ...] = ()

    @property
    def total_macs(self) -> int:
        """`macs` and `attention_macs`: what torch's FlopCounterMode counts as twice as many operations."""
        return self.macs + self.attention_macs

    @property
    def all_operations(self) -> int:
        """`total_macs` and all `other_operations`, which are there only when `measure` was asked for them."""
        return self.total_macs + sum(self.other_operations.values())

    @property
    def share_not_counted(self) -> float:
        """The part of all parameters that is in `params_not_counted`: how much of the network `macs` does not see."""
        return sum(self.params_not_counted.values()) / self.params if self.params else 0.0

    def by_module(self) -> dict[str, ModuleCost]:
        """The cost of every module that ran or has parameters, by name, in the network's order; "" is the network."""
        return {module.name: module for module in self.modules}

    def by_operator(self) -> dict[str, int]:
        """Multiply-adds per image by ATen operator; the sum is `macs`."""
        return dict(self.operators)

    def compare(self, reference: Cost) -> Comparison:
        """How many times `reference` this costs, number by number."""
        ratios = {}
        for name in _COMPARED:
            mine, theirs = getattr(self, name), getattr(reference, name)
            ratios[name] = mine / theirs if theirs else None
        return Comparison(**ratios)

    def to_json(self, *, modules: bool = False) -> dict[str, Any]:
        """All numbers as plain JSON values; with `modules=True` the list of module costs too."""
        out: dict[str, Any] = {"size": _listed(self.size), "batch": self.batch}
        out |= {name: getattr(self, name) for name in _COMPARED}
        out["attention_macs"] = self.attention_macs
        out["receptive_field"] = None if self.receptive_field is None else list(self.receptive_field)
        out["receptive_field_note"] = self.receptive_field_note
        out["macs_by_operator"] = dict(self.operators)
        out["not_counted"] = dict(self.not_counted)
        out["params_not_counted"] = dict(self.params_not_counted)
        out["share_not_counted"] = self.share_not_counted
        out["params_not_run"] = self.params_not_run
        if self.other_operations:
            out["other_operations"] = dict(self.other_operations)
            out["all_operations"] = self.all_operations
        if self.parts:
            out["parts"] = [part.to_json() for part in self.parts]
        if modules:
            out["modules"] = [module.to_json() for module in self.modules]
        return out


@dataclass(slots=True)
class _Sum:
    """Running totals of one module."""

    macs: int = 0
    own_macs: int = 0
    attention_macs: int = 0
    interactions: int = 0
    activation_bytes: int = 0
    products: list[Product] = field(default_factory=list)


def measure_forward(network: nn.Module, size: Sizes, *, batch: int = 1, all_operations: bool = False) -> Cost:
    """What one forward of `network` costs, which can be followed from its inputs to its outputs; see `measure`."""
    _refuse_packed(network)
    recorded = record(network, size, batch=batch)
    found = products(recorded.records)
    sums: dict[str, _Sum] = {"": _Sum()}
    operators: dict[str, int] = {}
    for one, made in zip(recorded.records, found, strict=True):
        nbytes = _per_image(activation_bytes(one), batch)
        layers = [product for product in made if product.weight is not None]
        macs = sum(_macs(product, batch) for product in layers)
        attention = sum(_macs(product, batch) for product in made if product.weight is None)
        # A network may fold the batch into the groups, to convolve every image with its own kernel.
        interactions = sum(
            _per_image(product.interactions, batch if product.per_image and product.batch == 1 else 1)
            for product in layers
        )
        if layers:
            operators[one.name] = operators.get(one.name, 0) + macs
        for name in {"", *one.stack}:
            total = sums.setdefault(name, _Sum())
            total.macs += macs
            total.own_macs += macs if name == one.path else 0
            total.attention_macs += attention
            total.interactions += interactions
            total.activation_bytes += nbytes
            total.products += made
    modules = tuple(
        _module_cost(module, sums.get(module.name, _Sum()), recorded.parameters)
        for module in recorded.modules
        if module.calls or module.params or module.name in sums
    )
    whole = modules[0]
    seen = receptive_field(recorded)
    beside = outside(recorded.records, found, recorded.parameters)
    missed = not_counted(recorded.records, found)
    others: dict[str, int] = {}
    if all_operations:
        others, missed = _others(recorded.records, found, batch)
    return Cost(
        size=size,
        batch=batch,
        params=whole.params,
        conv_params=whole.conv_params,
        macs=whole.macs,
        attention_macs=whole.attention_macs,
        interactions=whole.interactions,
        activation_bytes=whole.activation_bytes,
        peak_activation_bytes=-(-recorded.peak_bytes // batch),
        receptive_field=seen.size,
        receptive_field_note=seen.note,
        not_counted=missed,
        params_not_counted=beside.read,
        params_not_run=beside.unread,
        other_operations=others,
        operators=dict(sorted(operators.items(), key=lambda item: -item[1])),
        modules=modules,
    )


def _others(
    records: Sequence[OpRecord], found: Sequence[Sequence[Product]], batch: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Operations per image beside the layers, by kind, the most first; and the operators that no rule knows."""
    kinds: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for one, made in zip(records, found, strict=True):
        known = other_operations(one, made)
        unknown[one.name] += known is None
        for kind, operations in known or ():
            kinds[kind] += _per_image(operations, batch)
    return dict(kinds.most_common()), {name: times for name, times in unknown.most_common() if times}


def _refuse_packed(network: nn.Module) -> None:
    """Layers that torch has quantized hold their weights in an object that is no tensor: no count would see them."""
    for name, module in network.named_modules():
        if any(isinstance(value, torch.ScriptObject) for value in vars(module).values()):
            raise LeanconvError(
                f"measure: {name or type(network).__name__} ({type(module).__name__}) has packed its weights into an "
                "object that is no tensor, where they cannot be counted: measure the network before it is quantized"
            )


def _macs(product: Product, batch: int) -> int:
    return _per_image(product.macs, batch if product.per_image else 1)


def _per_image(total: int, batch: int) -> int:
    return total if batch == 1 else round(total / batch)


def _listed(size: Sizes) -> list[Any]:
    return [_listed(one) if isinstance(one, tuple) else one for one in size]


def _module_cost(module: ModuleRef, total: _Sum, parameters: Mapping[int, int]) -> ModuleCost:
    return ModuleCost(
        name=module.name,
        type=module.type,
        calls=module.calls,
        params=module.params,
        conv_params=weights(total.products, parameters),
        macs=total.macs,
        own_macs=total.own_macs,
        attention_macs=total.attention_macs,
        interactions=total.interactions,
        activation_bytes=total.activation_bytes,
    )
