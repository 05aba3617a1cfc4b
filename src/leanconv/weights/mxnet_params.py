"""MXNet's `.params` files (NDArray dictionaries), every version of them, read byte by byte.

    file    u64 0x112, u64 0, u64 count, arrays, u64 count, names (u64 length, bytes)                little-endian
    array   V3 u32 0xF993FACA  i32 storage  i32 ndim  i64 dims  (numpy shapes: ndim 0 is a number, -1 is nothing)
            V2 u32 0xF993FAC9  i32 storage  u32 ndim  i64 dims
            V1 u32 0xF993FAC8               u32 ndim  i64 dims
            before 1.0                      u32 ndim  u32 dims
            then in all                     i32 device, i32 its number, i32 type, values

Every length is held against what is left of the file before anything is allocated. Names lose the `arg:` and `aux:`
that tell parameters from statistics. Sparse arrays are refused: no released network has any.
"""

from __future__ import annotations

import struct
from math import prod

import torch
from torch import Tensor

__all__ = ["MXNET_MAGIC", "read_params"]

MXNET_MAGIC = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
_TYPES = {
    0: torch.float32,
    1: torch.float64,
    2: torch.float16,
    3: torch.uint8,
    4: torch.int32,
    5: torch.int8,
    6: torch.int64,
    7: torch.bool,
    12: torch.bfloat16,
}
_MAX_AXES = 32


def read_params(data: bytes) -> dict[str, Tensor]:
    """The arrays of a `.params` file by name.

    Raises `EOFError` where the file ends before what it announces, `ValueError` where it makes no sense.
    """
    file = _Reader(data)
    magic, _ = file.numbers("QQ")
    if magic != MXNET_MAGIC:
        raise ValueError("its first bytes are not those of an MXNet file")
    arrays = [_array(file) for _ in range(file.count(at_least=4))]
    names = [bytes(file.take(file.count(at_least=1))).decode() for _ in range(file.count(at_least=8))]
    if file.left:
        raise ValueError(f"{file.left} bytes follow its end")
    if len(names) != len(arrays):
        raise ValueError(f"{len(arrays)} arrays with {len(names)} names")
    short = [name.removeprefix("arg:").removeprefix("aux:") for name in names]
    if len(set(short)) < len(short):
        raise ValueError("two arrays have the same name")
    return dict(zip(short, arrays, strict=True))


class _Reader:
    """The bytes of a file and how far they are read."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)
        self.at = 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise EOFError(f"{count} bytes are announced at byte {self.at}, {self.left} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def numbers(self, kinds: str) -> tuple[int, ...]:
        layout = f"<{kinds}"
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def number(self, kind: str) -> int:
        return self.numbers(kind)[0]

    def count(self, *, at_least: int) -> int:
        """A number of things that take `at_least` so many bytes each."""
        number = self.number("Q")
        if number * at_least > self.left:
            raise EOFError(f"{number} entries are announced at byte {self.at - 8}, {self.left} bytes are left")
        return number


def _array(file: _Reader) -> Tensor:
    magic = file.number("I")
    if magic in (_V2, _V3):
        if file.number("i") != 0:
            raise ValueError("a sparse array, which is not read")
        axes, kind = file.number("i"), "q"
        if axes == (-1 if magic == _V3 else 0):
            return torch.empty(0)
    else:
        axes, kind = (file.number("I"), "q") if magic == _V1 else (magic, "I")
        if axes == 0:
            return torch.empty(0)
    if not 0 <= axes <= _MAX_AXES:
        raise ValueError(f"an array of {axes} axes")
    shape = file.numbers(kind * axes)
    _device, _number, code = file.numbers("iii")
    if code not in _TYPES:
        raise ValueError(f"an array of type {code}, which is unknown")
    empty = 0 in shape and prod(max(side, 1) for side in shape) >= 1 << 60  # no values, yet no shape that exists
    if min(shape, default=0) < 0 or empty:
        raise ValueError(f"an array of shape {shape}")
    dtype = _TYPES[code]
    raw = file.take(prod(shape) * dtype.itemsize)
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
