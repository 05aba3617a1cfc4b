"""A program packed for every machine, as it stands in a file: weights once, a plan for each length of vectors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leanconv.kernels.library import NAMES
from leanconv.kernels.pack import pack
from leanconv.kernels.program import Floats, Program

__all__ = ["DOMAIN", "OPERATOR", "Portable", "portable"]

DOMAIN, OPERATOR = "leanconv", "Program"
"""What the operator is called in an ONNX file; its inputs and attributes: native/onnxruntime.cpp."""

_REGISTERS = {16: 32, 8: 16, 4: 32}  # AVX-512, AVX2, NEON


class Portable(NamedTuple):
    """`plans` are by lanes, and all of them read the same `weights`."""

    weights: Floats
    plans: dict[int, NDArray[np.int64]]


def portable(program: Program) -> Portable:
    """Pack `program` for vectors of every length that a library may be built for.

    >>> from leanconv.kernels.program import Buffer, Program, Wire
    >>> sorted(portable(Program(buffers=(Buffer(1, 4, 5),), steps=(), inputs=(0,), outputs=((Wire(0, 0),),))).plans)
    [4, 8, 16]
    """
    packed = {lanes: pack(program, lanes=lanes, registers=_REGISTERS[lanes], winograd="everywhere") for lanes in NAMES}
    first, *others = packed.values()
    # What a tile reads follows from its outputs and its kernel alone, how it reads from the vectors.
    assert all(first.weights.tobytes() == other.weights.tobytes() for other in others)
    return Portable(first.weights, {lanes: one.plan for lanes, one in packed.items()})
