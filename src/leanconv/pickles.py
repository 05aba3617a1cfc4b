"""Pickles of plain data, read without running them, and arrays rebuilt from their bytes.

A pickle is a program. This machine knows the instructions that build numbers, text, lists and dictionaries, and of all
functions and classes that a pickle can name only those of `ALLOWED`, each replaced by a stand-in that holds plain data:
nothing of numpy, pathlib or anybody else is imported or called. An array is its bytes, its shape and a type from
`ITEM_BYTES`; numpy's own `__setstate__` and arrays of objects do not exist here. Any other name ends the reading.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

__all__ = ["ALLOWED", "ITEM_BYTES", "Array", "ForeignName", "is_cut", "read_pickle"]

ITEM_BYTES = {"b1": 1, "u1": 1, "i1": 1, "i2": 2, "i4": 4, "i8": 8, "f2": 2, "f4": 4, "f8": 8}
"""The types of arrays that are read, as numpy writes them, and the bytes of one value."""

MAX_AXES = 32


class ForeignName(ValueError):
    """A pickle names a function or class that is none of the allowed; `name` is its dotted path."""

    def __init__(self, name: str) -> None:
        super().__init__(f"names {name}")
        self.name = name


class ItemType:
    """Stands for numpy.dtype: a code of `ITEM_BYTES` and the order of the bytes."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = _text(code)
        self.big_endian = False

    def __setstate__(self, state: Any) -> None:
        self.big_endian = _text(state[1]) == ">"


class Array:
    """Stands for numpy.ndarray: `data` in the `code` of its values, `shape`, and how both are laid out."""

    code = "u1"
    shape: tuple[int, ...] = (0,)
    data: bytes = b""
    columns_first = False
    big_endian = False

    def __setstate__(self, state: Any) -> None:
        shape, kind, columns_first, data = state[-4:]
        self._set(kind, shape, columns_first, data)

    def _set(self, kind: Any, shape: Any, columns_first: Any, data: Any) -> None:
        if not isinstance(kind, ItemType) or kind.code not in ITEM_BYTES:
            code = kind.code if isinstance(kind, ItemType) else "unknown"
            raise ValueError(f"an array of type {code[:20]!r}, expected one of {', '.join(ITEM_BYTES)}")
        shape = tuple(shape)
        legal = len(shape) <= MAX_AXES and all(isinstance(side, int) and side >= 0 for side in shape)
        if not legal or prod(max(side, 1) for side in shape) >= 1 << 60:
            raise ValueError("an array whose shape is none")
        data = data.encode("latin-1") if isinstance(data, str) else data
        if not isinstance(data, bytes | bytearray) or len(data) != prod(shape) * ITEM_BYTES[kind.code]:
            raise ValueError(f"an array of shape {shape} whose bytes do not fit it")
        self.code, self.shape, self.data = kind.code, shape, bytes(data)
        self.columns_first, self.big_endian = bool(columns_first), kind.big_endian


class Options:
    """Stands for argparse.Namespace, whose contents nobody needs."""

    def __setstate__(self, state: Any) -> None:
        pass


class Marker:
    """Stands for a class that pickles only mention as an argument."""


def _text(value: Any) -> str:
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ValueError(f"expected text, got {type(value).__name__}")
    return text


def _array(*_: Any) -> Array:
    return Array()


def _array_of_bytes(data: Any, kind: Any, shape: Any, order: Any) -> Array:
    made = Array()
    made._set(kind, shape, order == "F", data)
    return made


def _number(kind: Any, data: Any = b"") -> Array:
    made = Array()
    made._set(kind, (), False, data)
    return made


def _encoded(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("text in another encoding than latin1, where bytes are expected")
    return _text(text).encode("latin-1")


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in pairs}


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}


def _listed(items: Any = ()) -> list[Any]:
    if not isinstance(items, list | tuple):
        raise ValueError("a set of something else than a list")
    return list(items)


def _bytes(data: Any = b"") -> bytes:
    if not isinstance(data, bytes):
        raise ValueError("bytes of something else")
    return data


def _made(kind: Any, *_: Any) -> Options:
    if kind is not Options:
        raise ValueError("an object of an unknown kind")
    return Options()


def _path(*parts: Any) -> str:
    return "/".join(map(_text, parts))


_NUMPY = ("numpy.core", "numpy._core")

ALLOWED: Mapping[str, Callable[..., Any]] = {
    "numpy.ndarray": Marker,
    "numpy.dtype": ItemType,
    **{f"{core}.multiarray._reconstruct": _array for core in _NUMPY},
    **{f"{core}.multiarray.scalar": _number for core in _NUMPY},
    **{f"{core}.numeric._frombuffer": _array_of_bytes for core in _NUMPY},
    **{f"{home}.{kind}Path": _path for home in ("pathlib", "pathlib._local") for kind in
       ("Posix", "Windows", "PurePosix", "PureWindows")},
    "argparse.Namespace": Options,
    "copy_reg._reconstructor": _made,
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": _dictionary,
    **{f"{home}.{kind}": Marker for home in ("builtins", "__builtin__") for kind in
       ("int", "long", "float", "str", "bool", "list", "tuple", "dict", "object")},
    "_codecs.encode": _encoded,
    **{f"{home}.{kind}": _bytes for home in ("builtins", "__builtin__") for kind in ("bytes", "bytearray")},
    **{f"{home}.{kind}": _listed for home in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
}  # fmt: skip
"""What a pickle may name -> what it becomes."""


def read_pickle(data: bytes) -> Any:
    """The plain data of the pickle `data`: dictionaries, lists, tuples, numbers, text, bytes and `Array`.

    Raises `ForeignName` where it names anything that is not allowed, `EOFError` where it ends early, `ValueError` for
    whatever else is no pickle of plain data.

    >>> import pickle
    >>> read_pickle(pickle.dumps({"epoch": 3, "names": ["a", "b"]}))
    {'epoch': 3, 'names': ['a', 'b']}
    """
    try:
        with warnings.catch_warnings():  # about escapes in damaged text
            warnings.simplefilter("ignore")
            return _Machine(len(data)).run(data)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise ValueError(f"its instructions make no sense ({type(error).__name__})") from error


def is_cut(data: bytes, pickles: int) -> bool:
    """Whether `data` ends before the end of so many `pickles`, one behind the other."""
    stream = io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(pickles):
                for _ in _instructions(stream):
                    pass
    except EOFError:
        return True
    except ValueError:
        return False
    return False


def _instructions(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Names and arguments of the instructions of one pickle; `EOFError` where the bytes of one are not all there."""
    steps = pickletools.genops(stream)
    while True:
        try:
            opcode, argument, _ = next(steps)
        except StopIteration:
            return
        except ValueError as error:
            if any(words in str(error) for words in ("exhausted", "remain", "not enough", "no newline")):
                raise EOFError("it ends early") from error
            raise
        yield opcode.name, argument


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,
}


def _key(key: Any) -> Any:
    """A dictionary's key: text or a number, because others may take for ever to be hashed."""
    if not isinstance(key, str | bytes | int | float | None):
        raise ValueError(f"a dictionary with a {type(key).__name__} as key")
    return key


class _Machine:
    """The stack, the marks on it and the memo of a pickle of `size` bytes."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = 4 * size + 4096
        """What decoding may produce in all: each byte of the file stands for one, so more is an attack."""

    def run(self, data: bytes) -> Any:
        for name, argument in _instructions(io.BytesIO(data)):
            if name == "STOP":
                return self.stack.pop()
            self.step(name, argument)
        raise EOFError("it ends early")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(self.memo[int(argument)])
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD"):
            self.call(name, argument)
        elif name not in ("PROTO", "FRAME"):
            self.build(name)

    def build(self, name: str) -> None:
        """The instructions that put together what is on the stack."""
        stack = self.stack
        match name:
            case "MARK":
                self.marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(self.since_mark()))
            case "LIST" | "FROZENSET":
                stack.append(self.since_mark())
            case "DICT":
                items = self.since_mark()
                stack.append({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [stack.pop()] if name == "APPEND" else self.since_mark()
                self.target(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.since_mark()
                self.target(dict).update({_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)})
            case _:
                raise ValueError(f"an instruction that plain data has no need of ({name})")

    def target(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"items for a {type(self.stack[-1]).__name__}, expected a {kind.__name__}")
        return self.stack[-1]

    def call(self, name: str, argument: Any) -> None:
        """The instructions that name, make and fill an object: only stand-ins are."""
        stack = self.stack
        if name == "GLOBAL":
            stack.append(_allowed(".".join(str(argument).split(" ", 1))))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_allowed(f"{_text(module)}.{_text(attribute)}"))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], Array | ItemType | Options):
                stack[-1].__setstate__(state)
                self.spend(stack[-1])
            elif not isinstance(stack[-1], dict):  # the attributes of an ordered dictionary are nobody's tensors
                raise ValueError(f"a state for a {type(stack[-1]).__name__}")
        else:
            arguments, function = stack.pop(), stack.pop()
            if type(arguments) is not tuple or not any(function is known for known in ALLOWED.values()):
                raise ValueError("a call of something that is no function")
            stack.append(function(*arguments))
            self.spend(stack[-1])

    def spend(self, made: Any) -> None:
        data = made.data if isinstance(made, Array) else made
        self.bytes_left -= len(data) if isinstance(data, bytes | str) else 0
        if self.bytes_left < 0:
            raise ValueError("more data than the file can hold")


def _allowed(name: str) -> Callable[..., Any]:
    if name not in ALLOWED:
        raise ForeignName(name)
    return ALLOWED[name]
