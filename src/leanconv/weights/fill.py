"""Weights of another project, or one's own, into a network, after everything that could differ has been compared."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.errors import CheckpointError
from leanconv.weights.container import WeightFile
from leanconv.weights.files import read_tensors
from leanconv.weights.formats import Filled, Format, Joined, Source, eps_of, names_of, patterns_for
from leanconv.weights.plain import PLAIN, find_heads

__all__ = ["Imported", "fill", "import_weights"]

_COUNTER = ".num_batches_tracked"
_BANK = re.compile(r"(?:.*\.)?(?:mean|var)_(?:w|layers)[\dp]+_r\d+.*")
"""Statistics of an elastic network's configurations, which go with the weights they were measured for."""


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        format: how the file names a network.
        network: what was filled.
        tensors: how many of the file's tensors were used.
        classifier: whether the classifier's are among them.
        classifier_layers: the layers of the network that score classes, as far as they are known.
        entry: the dictionary of the file that was taken; "" for the file itself.
        prefix: what was taken off all names.
        passed_over: names that were left out, with the reason in brackets.
        other_weights: other sets of weights in the file.
        notes: what no file says and what was done about it, a sentence each.
    """

    format: str
    network: str
    tensors: int
    classifier: bool
    classifier_layers: tuple[str, ...] = ()
    entry: str = ""
    prefix: str = ""
    passed_over: tuple[str, ...] = ()
    other_weights: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)


def import_weights(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: Format,
    *,
    new_classifier: bool = False,
    entry: str | None = None,
    ema: bool = False,
    ignore: Sequence[str] = (),
) -> Imported:
    """Fill `model` in place from the file `path`, whose tensors are called as in `format`.

    Args:
        new_classifier: keep the model's own classifier, for a file without one or with other classes.
        entry, ema, ignore: see `read_tensors`.

    Raises `CheckpointError`, before anything is changed, where the file is of another network, class count or eps,
    where a name is missing, unexpected or of another shape, and where values are none of a trained network.
    """
    tensors = read_tensors(path, entry=entry, ema=ema, ignore=ignore)
    return fill(model, tensors, format, source=str(path), new_classifier=new_classifier)


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], format: Format, *, source: str, new_classifier: bool = False
) -> Imported:
    """`import_weights` from tensors that are read already; `source` is what messages call them."""
    file = tensors if isinstance(tensors, WeightFile) else WeightFile(tensors)
    own = {name: value for name, value in model.state_dict().items() if not _BANK.fullmatch(name)}
    theirs, prefix = format.align(tensors, own, source)
    sources = format.key_map(own, theirs)
    format.refuse_other_network(own, theirs, source)
    if not format.absorbs_eps:
        _refuse_other_eps(format, model, source)
    heads = find_heads(sources, own, theirs) if format is PLAIN else tuple(h for h in format.heads if _has(own, h))
    if new_classifier:
        sources, theirs = _without_heads(sources, theirs, heads, source)
    else:
        _refuse_other_classes(sources, own, theirs, heads, source)
    extra = format.extra(model, own, theirs, source)
    own, sources = {**own, **extra.own}, {**sources, **extra.sources}
    idle = _refuse_other_names(format, sources, own, theirs, source)
    values = _values(format, model, sources, own, theirs, source)
    model.load_state_dict({**own, **values})
    return Imported(
        format=format.name,
        network=format.describe(model, own),
        tensors=len(theirs) - len(idle),
        classifier=not new_classifier,
        classifier_layers=heads,
        entry=file.entry,
        prefix=file.prefix + prefix,
        passed_over=(*file.passed_over, *(f"{name} ({why})" for name, why in idle.items())),
        other_weights=file.other_weights,
        notes=(*format.notes(model), *_eps_note(format, model), *extra.notes),
    )


# ---------------------------------------------------------------------------------------------------- what is refused


def _refuse_other_eps(format: Format, model: nn.Module, source: str) -> None:
    """BatchNorm's eps is in no file, and another one would change every output a little."""
    if format.wants_other_eps(model):
        raise CheckpointError(
            f"{source}: {format.name} networks have BatchNorm eps {format.norm_eps:g}, this one "
            f"{min(eps_of(model)):g}: build it with norm_eps={format.norm_eps:g}"
        )


def _eps_note(format: Format, model: nn.Module) -> tuple[str, ...]:
    if not format.absorbs_eps or not format.wants_other_eps(model):
        return ()
    return (
        f"BatchNorm's eps is {format.norm_eps:g} in {format.name} networks and {min(eps_of(model)):g} in this one: the "
        "difference was added to the variances, so that outputs are the same",
    )


def _has(own: Iterable[str], layer: str) -> bool:
    return any(name.startswith(f"{layer}.") for name in own)


def _of_heads(sources: Mapping[str, Source], heads: Sequence[str]) -> dict[str, Source]:
    return {name: source for name, source in sources.items() if name.rpartition(".")[0] in heads}


def _without_heads(
    sources: Mapping[str, Source], theirs: Mapping[str, Tensor], heads: Sequence[str], source: str
) -> tuple[dict[str, Source], dict[str, Tensor]]:
    """Both sides without the classifier."""
    if not heads:
        raise CheckpointError(
            f"{source}: which layer of this network is the classifier cannot be found, as the shapes of the file's "
            "differ nowhere, or in more than one layer: leave new_classifier (--new-classifier) out, or build the "
            "network with the num_classes that you want"
        )
    gone = _of_heads(sources, heads)
    names = {name for one in gone.values() for name in names_of(one)}
    kept = {name: one for name, one in sources.items() if name not in gone}
    return kept, {name: value for name, value in theirs.items() if name not in names}


def _refuse_other_classes(
    sources: Mapping[str, Source],
    own: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    heads: Sequence[str],
    source: str,
) -> None:
    """No classifier, or one of another number of classes."""
    for name, one in _of_heads(sources, heads).items():
        if name.rpartition(".")[2] != "weight":
            continue
        first, layer = names_of(one)[0], name.rpartition(".")[0]
        if first not in theirs:
            raise CheckpointError(
                f"{source} holds no classifier ({first}): pass new_classifier=True (--new-classifier) to keep the "
                "network's own, which then has to be trained"
            )
        mine, other = len(own[name]), len(theirs[first]) if theirs[first].ndim else 0
        if mine != other:
            raise CheckpointError(
                f"{source} has a classifier ({layer}) of {other} classes, the network one of {mine}: build it with "
                f"num_classes={other} (--set num_classes={other}), or pass new_classifier=True (--new-classifier) to "
                "train another one"
            )


def _refuse_other_names(
    format: Format,
    sources: Mapping[str, Source],
    own: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    source: str,
) -> dict[str, str]:
    """Every name has its place on both sides, and the same shape there; returns those left out, with the reason."""
    wanted = {name: ours for ours, one in sources.items() for name in names_of(one)}
    tied = _tied(own)
    missing = [
        name
        for name, ours in wanted.items()
        if name not in theirs
        and not ours.endswith(_COUNTER)
        and not any(
            all(name in theirs for name in names_of(sources[twin])) for twin in tied.get(ours, ()) if twin in sources
        )
    ]
    extra = [name for name in theirs if name not in wanted]
    idle = {name: why for name in extra if (why := format.idle(name, theirs[name])) is not None}
    extra = [name for name in extra if name not in idle]
    odd = []
    for ours, one in sources.items():
        parts = [theirs[name] for name in names_of(one) if name in theirs]
        if parts and len(parts) == len(names_of(one)) and not _fits(one, parts, own[ours]):
            shapes = " and ".join(str(tuple(part.shape)) for part in parts)
            odd.append(f"{names_of(one)[0]} (file {shapes}, network {tuple(own[ours].shape)})")
    kinds = (("missing", missing), ("unexpected", extra), ("of another shape", odd))
    told = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for what, names in kinds if names
    ]
    if told:
        advice = ""
        if extra and not missing and not odd:
            advice = (
                "; leave out what belongs to no network with "
                f"ignore={patterns_for(extra)!r} ({' '.join(f'--ignore {p!r}' for p in patterns_for(extra))})"
            )
        kind = "" if format is PLAIN else f"{format.name} "
        raise CheckpointError(f"{source} is no {kind}file of this network: {'; '.join(told)}{advice}")
    return idle


def _fits(source: Source, parts: Sequence[Tensor], mine: Tensor) -> bool:
    """Whether the parts make a tensor of our shape, but for axes of length 1 at the end."""
    if len(parts) > 1:
        axis = source.axis if isinstance(source, Joined) else 0
        shapes = [list(part.shape) for part in parts]
        if any(len(shape) <= axis or shape[:axis] + shape[axis + 1 :] != _rest(shapes[0], axis) for shape in shapes):
            return False
        shape = [*shapes[0][:axis], sum(shape[axis] for shape in shapes), *shapes[0][axis + 1 :]]
    else:
        shape = list(parts[0].shape)
    return _cut(shape) == _cut(list(mine.shape)) and parts[0].layout == torch.strided


def _rest(shape: list[int], axis: int) -> list[int]:
    return shape[:axis] + shape[axis + 1 :]


def _cut(shape: list[int]) -> list[int]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _tied(own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Name -> the other names of the same tensor."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, value in own.items():
        if value.numel() and not value.is_meta:
            groups.setdefault((value.data_ptr(), value.dtype, value.shape, value.stride()), []).append(name)
    return {name: [n for n in group if n != name] for group in groups.values() if len(group) > 1 for name in group}


# ---------------------------------------------------------------------------------------------------------- the values


def _values(
    format: Format,
    model: nn.Module,
    sources: Mapping[str, Source],
    own: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    source: str,
) -> dict[str, Tensor]:
    """The tensors of the file under our names, each checked to be one of a trained network."""
    values: dict[str, Tensor] = {}
    for ours, one in sources.items():
        mine = own[ours]
        if isinstance(one, Filled):
            values[ours] = torch.full_like(mine, one.value)
            continue
        parts = [theirs[name] for name in names_of(one) if name in theirs]
        if not parts:
            continue
        value = parts[0] if len(parts) == 1 else torch.cat(parts, one.axis if isinstance(one, Joined) else 0)
        values[ours] = _checked(value.reshape(mine.shape), mine, ours, names_of(one)[0], source)
    for ours, twins in _tied(own).items():
        for twin in twins:
            if ours in values and twin in values and not torch.equal(values[ours], values[twin]):
                raise CheckpointError(
                    f"{source}: {ours} and {twin} are one tensor in this network and two different ones in the file"
                )
            if ours in values:
                values.setdefault(twin, values[ours])
    if format.absorbs_eps:
        _absorb(format, model, values, source)
    return values


def _checked(value: Tensor, mine: Tensor, ours: str, name: str, source: str) -> Tensor:
    if value.is_floating_point() != mine.is_floating_point() and not ours.endswith(_COUNTER):
        raise CheckpointError(
            f"{source}: {name} holds {str(value.dtype).removeprefix('torch.')} where the network has "
            f"{str(mine.dtype).removeprefix('torch.')}: a quantized file, or another network's"
        )
    if not bool(torch.isfinite(value).all()):
        raise CheckpointError(f"{source}: {name} holds NaN or infinity: the file is damaged or training diverged")
    if ours.rpartition(".")[2].startswith(("running_var", "var_")) and bool((value < 0).any()):
        raise CheckpointError(
            f"{source}: {name} holds a negative variance ({float(value.min()):g}): the file is damaged, or its names "
            "mean something else"
        )
    return value


def _absorb(format: Format, model: nn.Module, values: dict[str, Tensor], source: str) -> None:
    """Add to each variance what the project's eps is larger than the network's: variance + eps stays what it was."""
    assert format.norm_eps is not None
    for name in [name for name in values if name.endswith("running_var")]:
        eps = getattr(model.get_submodule(name.rpartition(".")[0]), "eps", format.norm_eps)
        if eps != format.norm_eps:
            values[name] = values[name].double() + (format.norm_eps - eps)
            if bool((values[name] < 0).any()):
                raise CheckpointError(
                    f"{source}: {name} is too small to make up for BatchNorm's eps, {format.norm_eps:g} in "
                    f"{format.name} networks and {eps:g} in this one"
                )
