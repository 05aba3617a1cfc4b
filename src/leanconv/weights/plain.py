"""The network's own names: what one's own training script has saved, for any network that can be built here.

No format is needed for it, and none is asked for: names that fit are names that fit. The classifier is found by its
shapes alone: the one layer (or the layers, with auxiliary heads) whose tensors differ from the network's in their
first axis only, all by the same two numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from leanconv.weights.formats import NO_FILE, Format, Source, names_of, without_prefix

__all__ = ["PLAIN", "find_heads", "share_of"]


class _Plain(Format):
    def key_map(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor] = NO_FILE) -> dict[str, Source]:
        """Every name to itself, but for the prefix that all of the network's own names share where theirs have none."""
        prefix = _prefixes(own, theirs)[0] if theirs else ""
        return {name: name.removeprefix(prefix) for name in own}

    def align(
        self, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
    ) -> tuple[Mapping[str, Tensor], str]:
        """`tensors` without the prefix that the network's names do not have."""
        prefix = _prefixes(own, tensors)[1]
        return without_prefix(tensors, prefix, source), prefix


PLAIN = _Plain(name="plain", files="any network under its own names")


def share_of(own: Iterable[str], theirs: Collection[str]) -> float:
    """How many of the names `theirs` are those of the network, from 0 to 1, after prefixes.

    >>> share_of(["conv.weight", "fc.weight"], ["net.conv.weight", "net.head.weight"])
    0.5
    """
    mine = list(own)
    ours, other = _prefixes(mine, theirs)
    names = {name.removeprefix(ours) for name in mine}
    return sum(name.startswith(other) and name.removeprefix(other) in names for name in theirs) / max(len(theirs), 1)


def _prefixes(own: Iterable[str], theirs: Iterable[str]) -> tuple[str, str]:
    """What to take off our names and off theirs so that most of them are the same."""
    mine, other = list(own), list(theirs)
    present = set(other)
    shared = _shared(mine)
    ends = {end for name in mine for end in (name, *(name.removeprefix(prefix) for prefix in shared))}
    seen: dict[str, int] = {"": 0}
    for name in other:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in ends:
                prefix = "".join(f"{part}." for part in parts[:start])
                seen[prefix] = seen.get(prefix, 0) + 1
    candidates = [
        (sum(prefix + name.removeprefix(ours) in present for name in mine), -len(ours) - len(prefix), ours, prefix)
        for ours in ("", *shared)
        for prefix in sorted(seen, key=lambda prefix: -seen[prefix])[:8]
    ]
    return max(candidates)[2:]


def _shared(names: list[str]) -> list[str]:
    """The prefixes that all names have: "a." and "a.b." of "a.b.c" and "a.b.d"."""
    if not names:
        return []
    parts = [name.split(".")[:-1] for name in names]
    prefixes, depth = [], 0
    while all(len(part) > depth and part[depth] == parts[0][depth] for part in parts):
        depth += 1
        prefixes.append("".join(f"{part}." for part in parts[0][:depth]))
    return prefixes


def find_heads(
    sources: Mapping[str, Source], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Our layers that score classes, as far as the shapes say: see the head of this file; () where none stands out.

    A layer all of whose tensors are missing is one, too, if it is the only thing that is missing.
    """
    odd: dict[str, set[tuple[int, int]]] = {}
    missing: dict[str, int] = {}
    for name, source in sources.items():
        layer = name.rpartition(".")[0]
        value = theirs.get(names_of(source)[0]) if names_of(source) else None
        if value is None and not name.endswith(".num_batches_tracked"):
            missing[layer] = missing.get(layer, 0) + 1
        elif value is not None and value.shape != own[name].shape:
            if value.ndim != own[name].ndim or not value.ndim or value.shape[1:] != own[name].shape[1:]:
                return ()
            odd.setdefault(layer, set()).add((len(value), len(own[name])))
    pairs = set().union(*odd.values()) if odd else set()
    if odd:
        return tuple(odd) if len(pairs) == 1 and not missing else ()
    if len(missing) == 1:
        (layer,) = missing
        of_layer = [name for name in sources if name.rpartition(".")[0] == layer]
        if missing[layer] == len(of_layer) and any(own[name].ndim >= 2 for name in of_layer):
            return (layer,)
    return ()
