"""What a weight format is: how a project calls the tensors of a network of ours, as plain data.

A format answers one question, `key_map`: where in the file is each tensor of this network? Everything else (that no
name is left over, shapes, classes, values) is `fill`'s, the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from leanconv.errors import CheckpointError

__all__ = ["Filled", "Format", "Joined", "Renamed", "Source", "eps_of", "names_of"]


@dataclass(frozen=True)
class Joined:
    """One tensor of ours that is several of theirs, concatenated along `axis`."""

    names: tuple[str, ...]
    axis: int = 0


@dataclass(frozen=True)
class Filled:
    """A tensor of ours that their files do not have, because it is the same `value` everywhere."""

    value: float


NO_FILE: Mapping[str, Tensor] = MappingProxyType({})
"""For questions about a format that no file is at hand for."""

Source = str | Joined | Filled
"""Where a tensor of ours comes from: a name in the file, several, or a constant."""


def names_of(source: Source) -> tuple[str, ...]:
    """The names in the file that `source` reads."""
    if isinstance(source, str):
        return (source,)
    return source.names if isinstance(source, Joined) else ()


@dataclass(frozen=True)
class Extra:
    """Tensors that a network makes room for when they come: their shapes, where they are, and what to say about it."""

    own: Mapping[str, Tensor] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Format(ABC):
    """How one project names the tensors of a network.

    Args:
        name: what users call it.
        files: whose files these are, in a few words.
        markers: groups of names; a file that has all names of one group is of this format.
        heads: what our networks call their classifier.
        norm_eps: what the project's BatchNorms add to the variance, where it is fixed; no file says it.
        absorbs_eps: whether another eps of our network is made up for in the variances, so that outputs are equal;
            otherwise the network has to be built with `norm_eps`.
    """

    name: str
    files: str
    markers: tuple[tuple[str, ...], ...] = ()
    heads: tuple[str, ...] = ("fc",)
    norm_eps: float | None = None
    absorbs_eps: bool = False

    @abstractmethod
    def key_map(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor] = NO_FILE) -> dict[str, Source]:
        """Where each tensor of the state dict `own` is; `theirs` is the file, where names vary.

        Raises `CheckpointError` where a tensor has no counterpart: another kind of network, or a rewritten one.
        """

    def prefix_in(self, names: Iterable[str]) -> str | None:
        """What stands before every marker in `names`, "" for nothing; None where they are not of this format."""
        present = set(names)
        for first, *others in self.markers:
            for name in (first, *sorted(n for n in present if n.endswith(f".{first}"))):
                prefix = name.removesuffix(first)
                if name in present and all(prefix + other in present for other in others):
                    return prefix
        return None

    def align(
        self, tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str
    ) -> tuple[Mapping[str, Tensor], str]:
        """`tensors` without the prefix that all their names share, and that prefix.

        Raises `CheckpointError` where only some of them have it.
        """
        prefix = self.prefix_in(tensors) or ""
        return without_prefix(tensors, prefix, source), prefix

    def refuse_other_network(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], source: str) -> None:
        """Raise `CheckpointError` for another network than `own`, in the words that say what to build instead.

        Nothing by default: what differs is found name by name.
        """
        return

    def wants_other_eps(self, model: nn.Module) -> bool:
        """Whether a BatchNorm of `model` adds something else to the variance than the project's do."""
        return self.norm_eps is not None and bool(eps_of(model) - {self.norm_eps})

    def idle(self, name: str, value: Tensor) -> str | None:
        """Why a tensor of theirs without counterpart may be left out; None where it may not."""
        return None

    def extra(self, model: nn.Module, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], source: str) -> Extra:
        """What else of the file `model` can hold, beside the tensors that it has already."""
        return Extra()

    def describe(self, model: nn.Module, own: Mapping[str, Tensor]) -> str:
        """The network, for people."""
        return type(model).__name__

    def notes(self, model: nn.Module) -> tuple[str, ...]:
        """What no file of this format can say, and what was assumed."""
        return ()


def eps_of(model: nn.Module) -> set[float]:
    """What the BatchNorms of `model` add to the variance."""
    return {module.eps for module in model.modules() if isinstance(module, _BatchNorm)}


def without_prefix(tensors: Mapping[str, Tensor], prefix: str, source: str) -> Mapping[str, Tensor]:
    """`tensors` with `prefix` taken off every name; `CheckpointError` naming those that do not have it."""
    if not prefix:
        return tensors
    others = [name for name in tensors if not name.startswith(prefix)]
    if others:
        raise CheckpointError(
            f"{source}: {len(tensors) - len(others)} of {len(tensors)} names have the prefix {prefix!r}, but not "
            f"{', '.join(others[:3])}{', ...' * (len(others) > 3)}: leave out what belongs to no network "
            f"with ignore={patterns_for(others)!r} (--ignore)"
        )
    return {name.removeprefix(prefix): value for name, value in tensors.items()}


def patterns_for(names: Iterable[str]) -> list[str]:
    """A few patterns that match just these names, for advice: the first part of each."""
    firsts = dict.fromkeys(f"{name.split('.')[0]}.*" if "." in name else name for name in names)
    return list(firsts)[:4]


@dataclass(frozen=True, kw_only=True)
class Renamed(Format):
    """A format whose names follow from ours one by one.

    Args:
        holds: what networks its files hold, for the message about any other.
        rename: our name, our state dict and the file to where the tensor is; None for no counterpart.
    """

    holds: str
    rename: Callable[[str, Mapping[str, Tensor], Mapping[str, Tensor]], Source | None]

    def key_map(self, own: Mapping[str, Tensor], theirs: Mapping[str, Tensor] = NO_FILE) -> dict[str, Source]:
        found: dict[str, Source] = {}
        for name in own:
            source = self.rename(name, own, theirs)
            if source is None:
                raise CheckpointError(
                    f"{name} of this network has no counterpart in {self.name} files, which hold {self.holds}"
                )
            found[name] = source
        return found
