"""Where in a checkpoint the weights are: which of its dictionaries, under which prefix, which of two sets.

Training loops put a state dict beside epochs, optimizers, options and numbers, wrap its names (`module.`, `_orig_mod.`,
`model.`), and keep a moving average of the weights beside them, as an entry of its own or as `ema_*` buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from leanconv.errors import CheckpointError
from leanconv.pickles import Array

__all__ = ["WeightFile", "find_weights", "tensor_of"]

_ENTRIES = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params"),
    "blobs",
)
"""Entries that hold a network's weights, the most usual first."""

_AVERAGES = (
    *("state_dict_ema", "ema_state_dict", "model_ema_state_dict", "model_ema", "ema_model", "ema", "averaged_model"),
)
"""Entries that hold a moving average of them."""

_OTHERS = (
    "optim",
    "sched",
    "scaler",
    "rng",
    "callback",
    "loop",
    "hyper_param",
    "meta",
    "args",
    "config",
    "cfg",
    "hist",
)
"""Parts of the names of entries that hold tensors of no network."""

_WRAPPERS = ("module", "model", "net", "network", "_forward_module")
"""Prefixes that wrappers put before all names of a network."""

_INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that compilation, sharding and checkpointing insert, anywhere."""

_COUNTERS = ("n_averaged",)
"""Tensors of wrappers that say nothing about the network."""

_DEPTH = 16
_LONGEST = 256
"""Letters of a tensor's name."""


@dataclass(frozen=True)
class WeightFile(Mapping[str, Tensor]):
    """The tensors of a weight file by name, and where they were found.

    Attributes:
        entry: the dictionary of the file that was taken, dotted; "" for the file itself.
        prefix: what was taken off all names.
        passed_over: names beside the network's that were left out, with the reason in brackets.
        other_weights: other sets of weights in the file, by what takes them instead.
    """

    tensors: Mapping[str, Tensor]
    entry: str = ""
    prefix: str = ""
    passed_over: tuple[str, ...] = ()
    other_weights: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def find_weights(
    content: Any, source: str, *, entry: str | None = None, ema: bool = False, ignore: Sequence[str] = ()
) -> WeightFile:
    """The weights in the `content` of a checkpoint; see `read_tensors` for the arguments.

    Raises `CheckpointError` where there are none, or several and none is named.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds a {type(content).__name__}, not a dictionary of tensors")
    found = _named(content, source, entry) if entry is not None else _chosen(content, source, ema)
    path, mapping, others, is_average = found
    tensors, strange = _flat(mapping)
    odd = next((name for name in (*tensors, *strange) if len(name) > _LONGEST or not name.isprintable()), None)
    if odd is not None:
        raise CheckpointError(f"{source} calls something {odd[:60]!r}, which no network does: the file is damaged")
    if not tensors:
        raise CheckpointError(f"{source} holds no tensors{f' in {path}' if path else ''}: {_content(content)}")
    file = WeightFile(tensors, path, "", tuple(f"{name} (no tensor)" for name in strange), others)
    file = _ignored(file, source, ignore)
    file = _averages(file, source, ema and not is_average)
    return _unwrapped(file)


def tensor_of(value: Any) -> Tensor | None:
    """`value` as a tensor where it is one, or an array with axes; None for anything else, numbers included."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, Array) or not value.shape:
        return None
    dtype = {
        "b1": torch.bool, "u1": torch.uint8, "i1": torch.int8, "i2": torch.int16, "i4": torch.int32,
        "i8": torch.int64, "f2": torch.float16, "f4": torch.float32, "f8": torch.float64,
    }[value.code]  # fmt: skip
    if not value.data:
        return torch.empty(value.shape, dtype=dtype)
    raw = torch.frombuffer(bytearray(value.data), dtype=torch.uint8)
    if value.big_endian:
        raw = raw.view(-1, dtype.itemsize).flip(1).reshape(-1)
    flat = raw.view(dtype)
    if value.columns_first:
        return flat.reshape(value.shape[::-1]).permute(*range(len(value.shape))[::-1]).contiguous()
    return flat.reshape(value.shape)


# ------------------------------------------------------------------------------------------------- which dictionary

_Found = tuple[str, Mapping[Any, Any], tuple[str, ...], bool]


def _chosen(content: Mapping[Any, Any], source: str, ema: bool) -> _Found:
    """The dictionary that is a network's by its name, or the only one with tensors; from the outside inwards."""
    path: list[str] = []
    others: list[str] = []
    node, is_average = content, False
    for _ in range(_DEPTH):
        inside = {key: value for key, value in node.items() if isinstance(key, str) and _holds_tensors(value)}
        averages = [name for name in _AVERAGES if name in inside]
        taken = next((name for name in (*(averages if ema else ()), *_ENTRIES) if name in inside), None)
        usual = [name for name in inside if not _is_other(name)]
        named = bool(path) and path[-1] in (*_ENTRIES, *_AVERAGES)
        if taken is None and (named or any(_is_tensor(value) for value in node.values())):
            break  # a state dict; dictionaries in it are parts of the network
        if taken is None and len(usual) > 1:
            some = ", ".join(map(_short, usual[:8]))
            raise CheckpointError(
                f"{source} holds several sets of tensors ({some}), and none is named like a network's "
                f"({', '.join(_ENTRIES[:4])}, ...): say which with entry={usual[0][:80]!r} (--entry {_short(usual[0])})"
            )
        taken = taken or next(iter(usual), None)
        if taken is None:
            return "", {}, (), False
        is_average = is_average or taken in averages
        others += [".".join([*path, name]) for name in usual if name != taken]
        path.append(taken)
        node = inside[taken]
    node = {key: value for key, value in node.items() if not isinstance(value, Mapping) or not _is_other(key)}
    return ".".join(path), node, tuple(others), is_average


def _is_other(key: Any) -> bool:
    """Whether an entry called `key` holds no network's tensors."""
    return any(part in str(key).lower() for part in _OTHERS)


def _named(content: Mapping[Any, Any], source: str, entry: str) -> _Found:
    """The dictionary called `entry`, "." for the whole file."""
    node: Any = content
    for part in [] if entry == "." else entry.split("."):
        if not isinstance(node, Mapping) or part not in node or not _holds_tensors(node[part]):
            raise CheckpointError(f"{source} has no entry {entry!r} with tensors in it: {_content(content)}")
        node = node[part]
    return "" if entry == "." else entry, node, (), False


def _content(content: Mapping[Any, Any]) -> str:
    """What a file holds, for a message."""
    names = [_short(key) for key in content]
    with_tensors = [_short(key) for key, value in content.items() if _holds_tensors(value)]
    if not names:
        return "it is empty"
    told = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
    return f"it has {told}" + (f"; with tensors: {', '.join(with_tensors[:8])}" if with_tensors else "")


def _short(key: Any) -> str:
    """A key of somebody's dictionary as a part of one line."""
    if not isinstance(key, str | bytes | bool | float | None) and not (isinstance(key, int) and abs(key) < 1 << 60):
        return type(key).__name__
    text = str(key)[:40]
    return text if text.isprintable() else repr(text)


def _holds_tensors(value: Any) -> bool:
    """Whether `value` is a dictionary with a tensor somewhere in it."""
    waiting, seen = [(value, 0)], {id(value)}
    while waiting:
        node, depth = waiting.pop()
        if not isinstance(node, Mapping) or depth > _DEPTH:
            continue
        for inner in node.values():
            if _is_tensor(inner):
                return True
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append((inner, depth + 1))
    return False


def _is_tensor(value: Any) -> bool:
    """Whether `tensor_of` would make a tensor of `value`, without making it."""
    return isinstance(value, Tensor) or (isinstance(value, Array) and bool(value.shape))


def _flat(mapping: Mapping[Any, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors below `mapping` by dotted name, and the names of what is none."""
    tensors: dict[str, Tensor] = {}
    strange: list[str] = []
    waiting: list[tuple[str, Any, int]] = [("", mapping, 0)]
    seen: set[int] = set()
    while waiting:
        prefix, node, depth = waiting.pop()
        inner: list[tuple[str, Any, int]] = []
        for key, value in node.items():
            name = f"{prefix}{key if isinstance(key, str) else _short(key)}"
            tensor = tensor_of(value)
            if tensor is not None:
                tensors[name] = tensor
            elif isinstance(value, Mapping) and _holds_tensors(value) and depth < _DEPTH and id(value) not in seen:
                seen.add(id(value))
                inner.append((f"{name}.", value, depth + 1))
            else:
                strange.append(name)
        waiting += inner[::-1]
    return tensors, strange


# ---------------------------------------------------------------------------------------------------- which tensors


def _ignored(file: WeightFile, source: str, patterns: Sequence[str]) -> WeightFile:
    """`file` without what `patterns` match, and without the counters of wrappers."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in file):
            some = ", ".join(list(file)[:3])
            raise CheckpointError(f"{source}: ignore={pattern!r} (--ignore) matches none of its tensors ({some}, ...)")
    gone = {name: "ignored" for name in file if any(fnmatchcase(name, pattern) for pattern in patterns)}
    gone |= {name: "a counter" for name in file if name.rpartition(".")[2] in _COUNTERS and name not in gone}
    return _leaving_out(file, gone)


def _leaving_out(file: WeightFile, gone: Mapping[str, str]) -> WeightFile:
    kept = {name: value for name, value in file.items() if name not in gone}
    passed = (*file.passed_over, *(f"{name} ({why})" for name, why in gone.items()))
    return replace(file, tensors=kept, passed_over=passed) if gone else file


def _averages(file: WeightFile, source: str, wanted: bool) -> WeightFile:
    """Of two sets of weights in one dictionary the ordinary one, or with `wanted` the moving average."""
    flat = {name.replace(".", "_"): name for name in file}
    averages = {name: flat[name[4:]] for name in file if name.startswith("ema_") and name[4:] in flat}
    for group in () if averages else ("ema_model.", "model_ema.", "ema.", "averaged_model."):
        members = [name for name in file if name.startswith(group)]
        rest = [name for name in file if not name.startswith(group)]
        ends = {name[len(group) :] for name in members}
        before = {name[: -len(end)] for name in rest for end in _ends(name) if end in ends}
        for prefix in sorted(before) if members and rest else ():
            if all(prefix + end in file for end in ends):
                averages = {name: prefix + name[len(group) :] for name in members}
                break
    if not averages:
        if wanted:
            raise CheckpointError(
                f"{source} holds no moving average of the weights (looked for entries {', '.join(_AVERAGES[:4])}, ... "
                "and for ema_* beside the weights): leave ema (--ema) out"
            )
        return file
    if not wanted:
        file = _leaving_out(file, dict.fromkeys(averages, "a moving average"))
        return replace(file, other_weights=(*file.other_weights, f"{len(averages)} moving averages (ema, --ema)"))
    taken = {**file.tensors, **{name: file[average] for average, name in averages.items()}}
    file = _leaving_out(replace(file, tensors=taken), dict.fromkeys(averages, "taken in place of the weights"))
    return replace(file, other_weights=(*file.other_weights, f"{len(averages)} weights that are no average"))


def _ends(name: str) -> list[str]:
    """`name` without its first parts, one after the other."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _unwrapped(file: WeightFile) -> WeightFile:
    """`file` without the prefixes and parts that wrappers add to names."""
    prefix = ""
    tensors: dict[str, Tensor] = {}
    inserted = {part for name in file for part in name.split(".")[:-1] if part in _INSERTED}
    for name, value in file.items():
        parts = name.split(".")
        short = ".".join([part for part in parts[:-1] if part not in _INSERTED] + parts[-1:])
        tensors[short] = value
    if len(tensors) < len(file):
        tensors, inserted = dict(file.tensors), set()
    while tensors:
        first = next(iter(tensors)).partition(".")[0]
        if first not in _WRAPPERS or not all(name.startswith(f"{first}.") for name in tensors):
            break
        prefix += f"{first}."
        tensors = {name.removeprefix(f"{first}."): value for name, value in tensors.items()}
    prefix = "".join(f"{part}." for part in _INSERTED if part in inserted) + prefix
    return replace(file, tensors=tensors, prefix=prefix)
