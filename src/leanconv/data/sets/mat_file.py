"""MATLAB's .mat files, version 5: arrays of numbers rebuilt from their bytes, texts, and structures of these.

The file is a header of 128 bytes, then elements (a type, a length, the bytes padded to eight), each a matrix or a
matrix that is compressed. A matrix has four elements: its class, its sides, its name, its values, column by column; a
structure the names of its fields and a matrix for each field of each of its entries. Objects, functions, cells and
sparse or complex numbers are not read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.errors import DataError

__all__ = ["read_mat"]

_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""How values are stored, by the number of the type."""
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
"""What they are, by the number of the class; MATLAB stores whole doubles in fewer bytes."""
_STRUCTURE, _TEXT = 2, 4
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16"}
_COMPLEX = 0x0800
_DEEPEST = 4

_MOST_BYTES = 2**32
"""What all compressed elements of a file may hold; that of SVHN's largest is 1.6 GB."""


def read_mat(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """The variables called `names` of a .mat file: arrays, texts, and structures as field -> list of values.

    Raises `DataError` for a file that is damaged or has not all of them.
    """
    try:
        data = path.read_bytes()
        found = {name: values for name, values in _matrices(data) if name in names}
    except OSError as error:
        raise DataError(f"{path}: not a readable .mat file: {error.strerror or error}") from error
    except (ValueError, zlib.error, MemoryError) as error:
        raise DataError(f"{path}: not a readable .mat file: {error or 'memory ran out'}") from error
    for name in names:
        if found.get(name) is None:
            what = "it is no array of numbers" if name in found else "there is none"
            raise DataError(f"{path}: expected the variable {name}, and {what}")
    return found


def _matrices(data: bytes) -> Iterator[tuple[str, Any]]:
    """The name and value of every matrix, None for what is not read."""
    if data[124:126] not in (b"\x00\x01", b"\x01\x00"):
        raise ValueError("its header is none of version 5")
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("its header does not say the order of its bytes")
    left = _MOST_BYTES
    for kind, content in _elements(memoryview(data)[128:], order):
        if kind == _COMPRESSED:
            machine = zlib.decompressobj()
            # Deflate makes at most 1032 bytes of one.
            unpacked = machine.decompress(content, min(left, 1032 * len(content) + 64))
            left -= len(unpacked)
            if machine.unconsumed_tail or left <= 0:
                raise ValueError("its compressed arrays hold more than any data set of images")
            for inner, matrix in _elements(memoryview(unpacked), order):
                if inner == _MATRIX:
                    yield _matrix(matrix, order)
        elif kind == _MATRIX:
            yield _matrix(content, order)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The type and the bytes of the elements that follow each other."""
    at, total = 0, len(data)
    while at < total:
        if at + 8 > total:
            raise ValueError("it ends within an element")
        kind, length = (int(number) for number in np.frombuffer(data[at : at + 8], f"{order}u4"))
        start = at + 8
        if kind >> 16:  # up to four bytes beside a short type
            kind, length, start = kind & 0xFFFF, kind >> 16, at + 4
            at += 8
            if length > 4:
                raise ValueError("a small element of more than four bytes")
        else:
            at = start + length + (-length % 8 if kind != _COMPRESSED else 0)
        if start + length > total:
            raise ValueError("it is truncated, an element is longer than the file")
        yield kind, data[start : start + length]


def _matrix(data: memoryview, order: str, deep: int = 0) -> tuple[str, Any]:
    if not len(data):  # an empty one
        return "", None
    parts = list(_elements(data, order))
    if len(parts) < 3 or parts[0][0] != 6 or len(parts[0][1]) != 8 or parts[1][0] != 5:
        raise ValueError("an element that is no matrix")
    flags = int(np.frombuffer(parts[0][1], f"{order}u4")[0])
    sides = tuple(int(side) for side in np.frombuffer(parts[1][1], f"{order}i4"))
    name = bytes(parts[2][1]).decode("latin-1")
    if flags & 0xFF == _STRUCTURE and deep < _DEEPEST:
        return name, _structure(parts[3:], order, deep)
    if flags & 0xFF == _TEXT and len(parts) > 3:
        encoding = _ENCODINGS.get(parts[3][0], "")
        wide = {"<": "-le", ">": "-be"}[order] if encoding == "utf-16" else ""
        return name, bytes(parts[3][1]).decode(encoding + wide) if encoding else None
    stored, made = _STORED.get(parts[3][0] if len(parts) > 3 else 0), _CLASSES.get(flags & 0xFF)
    if stored is None or made is None or flags & _COMPLEX:
        return name, None
    values = np.frombuffer(parts[3][1], f"{order}{stored}")
    if not 2 <= len(sides) <= 32 or min(sides) < 0 or prod(sides) != len(values):
        raise ValueError(f"the array {name[:40]!r} has {len(values)} values for {sides[:8]}")
    return name, values.astype(made).reshape(sides, order="F")


def _structure(parts: list[tuple[int, memoryview]], order: str, deep: int) -> dict[str, list[Any]]:
    """Field -> its value in every entry."""
    if len(parts) < 2 or len(parts[0][1]) != 4:
        raise ValueError("a structure without the names of its fields")
    width, text = int(np.frombuffer(parts[0][1], f"{order}i4")[0]), bytes(parts[1][1])
    if not 0 < width <= 256 or len(text) % width or len(text) > 64 * width:
        raise ValueError("a structure whose names of fields do not fit")
    names = [text[at : at + width].partition(b"\0")[0].decode("latin-1") for at in range(0, len(text), width)]
    values = [_matrix(content, order, deep + 1)[1] for kind, content in parts[2:] if kind == _MATRIX]
    if not names or len(values) % len(names):
        raise ValueError("a structure whose entries have not all of its fields")
    return {name: values[place :: len(names)] for place, name in enumerate(names)}
