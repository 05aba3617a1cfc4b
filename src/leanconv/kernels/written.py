"""A program as text and one array of floats, and back: the form in which it stands in a graph and in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from leanconv.errors import LeanconvError
from leanconv.kernels.program import (
    Activation,
    Buffer,
    ClipConv,
    Conv,
    Floats,
    Pool,
    Product,
    Program,
    Repeat,
    Stage,
    Step,
    Volume,
    Window,
    Wire,
)

__all__ = ["Written", "key_of", "read", "write"]

_VERSION = 4
_READ = (1, 2, 3, 4)
"""Version 1 had no volumes, version 2 no windows and no convolutions of clips, version 3 no products."""

_WINDOW = ("kernel", "largest", "frames", "stride", "padding", "dilation", "ceil", "counted", "divisor")
_CLIP = ("frames", "groups", "stride", "padding", "dilation", "activation")


class Written(NamedTuple):
    """`text` is JSON, `weights` every weight and bias in the order of the steps, `key` is a name for both."""

    text: str
    weights: Floats
    key: str


def write(program: Program) -> Written:
    """`read(*write(program)[:2])` is the same program."""
    arrays: list[Floats] = []
    steps = [_step(step, arrays) for step in program.steps]
    text = json.dumps(
        {
            "version": _VERSION,
            "buffers": program.buffers,
            "inputs": program.inputs,
            "outputs": [_flat(wires) for wires in program.outputs],
            "steps": steps,
        },
        separators=(",", ":"),
    )
    weights = np.concatenate([*(array.ravel() for array in arrays), np.zeros(0, np.float32)])
    return Written(text, weights, key_of(text, weights))


def key_of(text: str, weights: Floats) -> str:
    """A name that no other program has."""
    return hashlib.sha256(text.encode() + weights.tobytes()).hexdigest()[:32]


def read(text: str, weights: Floats) -> Program:
    """The program that was written.

    Raises `LeanconvError` for another version's.
    """
    found = json.loads(text)
    if found["version"] not in _READ:
        raise LeanconvError(
            f"a program of version {found['version']} was written by another leanconv, this one reads {_VERSION}: "
            "accelerate the network again"
        )
    reader = _Reader(weights)
    return Program(
        buffers=tuple(Buffer(*buffer) for buffer in found["buffers"]),
        steps=tuple(_read_step(step, reader) for step in found["steps"]),
        inputs=tuple(found["inputs"]),
        outputs=tuple(_wires(flat) for flat in found["outputs"]),
    )


class _Reader:
    def __init__(self, weights: Floats) -> None:
        self.weights, self.position = weights, 0

    def take(self, *shape: int) -> Floats:
        first, self.position = self.position, self.position + int(np.prod(shape))
        return self.weights[first : self.position].reshape(shape)


def _flat(wires: Iterable[Wire] | None) -> list[int] | None:
    return None if wires is None else [number for wire in wires for number in wire]


def _wires(flat: list[int]) -> tuple[Wire, ...]:
    return tuple(Wire(*pair) for pair in zip(flat[::2], flat[1::2], strict=True))


def _step(step: Step, arrays: list[Floats]) -> dict[str, Any]:
    if isinstance(step, Pool):
        return {"kind": "pool", "reads": _flat(step.reads), "writes": step.writes}
    if isinstance(step, Product):
        read = {"reads": _flat(step.reads), "by": _flat(step.by), "residual": _flat(step.residual)}
        return {"kind": "product", **read, "writes": step.writes, "activation": step.activation}
    if isinstance(step, Volume):
        arrays += [array for array in (step.weight, step.bias) if array is not None]
        return {
            "kind": "volume",
            "reads": _flat(step.reads),
            "writes": step.writes,
            "frames": step.frames,
            "stride": step.stride,
            "padding": step.padding,
            "dilation": step.dilation,
            "shape": None if step.weight is None else step.weight.shape,
            "activation": step.activation,
        }
    if isinstance(step, Repeat):
        numbers = {"writes": step.writes, "times": step.times}
        return {"kind": "repeat", "reads": _flat(step.reads), **numbers, "residual": _flat(step.residual)}
    if isinstance(step, ClipConv):
        arrays += [step.weight, step.bias]
        numbers = {name: getattr(step, name) for name in _CLIP}
        return {
            "kind": "clip",
            "reads": _flat(step.reads),
            "writes": step.writes,
            "shape": step.weight.shape,
            **numbers,
        }
    if isinstance(step, Window):
        numbers = {name: getattr(step, name) for name in _WINDOW}
        return {"kind": "window", "reads": _flat(step.reads), "writes": step.writes, **numbers}
    if not isinstance(step, Conv):
        raise LeanconvError("a program of gradients is made where it runs, and is not written")
    for stage in step.stages:
        arrays += [stage.weight, stage.bias]
    return {
        "kind": "conv",
        "reads": _flat(step.reads),
        "writes": step.writes,
        "order": step.order,
        "strides": step.strides,
        "between": step.between,
        "inner": step.inner,
        "residual": _flat(step.residual),
        "activation": step.activation,
        "stages": [
            [stage.weight.shape, stage.groups, stage.stride, stage.padding, stage.dilation] for stage in step.stages
        ],
    }


def _read_step(step: dict[str, Any], reader: _Reader) -> Step:
    if step["kind"] == "pool":
        return Pool(reads=_wires(step["reads"]), writes=step["writes"])
    if step["kind"] == "product":
        return Product(
            reads=_wires(step["reads"]),
            by=_wires(step["by"]),
            writes=step["writes"],
            residual=None if step["residual"] is None else _wires(step["residual"]),
            activation=Activation(*step["activation"]),
        )
    if step["kind"] == "repeat":
        return Repeat(
            reads=_wires(step["reads"]),
            writes=step["writes"],
            times=tuple(step["times"]),
            residual=None if step["residual"] is None else _wires(step["residual"]),
        )
    if step["kind"] == "clip":
        options: dict[str, Any] = {name: step[name] for name in _CLIP}
        options |= {name: tuple(value) for name, value in options.items() if isinstance(value, list)}
        options["activation"] = Activation(*step["activation"])
        shape = step["shape"]
        return ClipConv(
            reads=_wires(step["reads"]),
            writes=step["writes"],
            weight=reader.take(*shape),
            bias=reader.take(shape[0]),
            **options,
        )
    if step["kind"] == "window":
        numbers: dict[str, Any] = {name: step[name] for name in _WINDOW}
        numbers |= {name: tuple(value) for name, value in numbers.items() if isinstance(value, list)}
        return Window(reads=_wires(step["reads"]), writes=step["writes"], **numbers)
    if step["kind"] == "volume":
        shape = step["shape"]
        return Volume(
            reads=_wires(step["reads"]),
            writes=step["writes"],
            frames=step["frames"],
            stride=tuple(step["stride"]),
            padding=tuple(step["padding"]),
            dilation=tuple(step["dilation"]),
            weight=None if shape is None else reader.take(*shape),
            bias=None if shape is None else reader.take(shape[0]),
            activation=Activation(*step["activation"]),
        )
    return Conv(
        reads=_wires(step["reads"]),
        writes=step["writes"],
        order=tuple(step["order"]),
        strides=tuple(step["strides"]),
        between=tuple(step["between"]),
        inner=Activation(*step["inner"]),
        residual=None if step["residual"] is None else _wires(step["residual"]),
        activation=Activation(*step["activation"]),
        stages=tuple(_read_stage(stage, reader) for stage in step["stages"]),
    )


def _read_stage(stage: list[Any], reader: _Reader) -> Stage:
    shape, groups, stride, padding, dilation = stage
    return Stage(
        weight=reader.take(*shape),
        bias=reader.take(shape[0]),
        groups=groups,
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
    )
