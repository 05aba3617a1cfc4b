"""Recipes to YAML and back, and settings changed by dotted names: omegaconf checks types, the messages are ours."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from leanconv.errors import LeanconvError, unknown
from leanconv.recipes.settings import Recipe

__all__ = ["change", "read_recipe", "to_data", "to_yaml"]


def change(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with settings such as `epochs=3`, `optim.lr=0.2`, `elastic=null` or `model_args.multiplier=2` changed.

    Values are YAML (`rewrites=[osep:overlap=1]`). Raises `UnknownName` for a setting that does not exist, with the one
    that was probably meant, and `LeanconvError` for a value of the wrong type or out of range.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.structured(recipe)
    for override in overrides:
        name, equals, value = override.partition("=")
        name = _RENAMED.get(name.strip(), name)
        override = name + equals + value
        if not equals or not name.strip():
            raise LeanconvError(f"{override!r}: expected SETTING=VALUE, for example optim.lr=0.2")
        _check_name(name.strip())
        try:
            config = OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
        except Exception as error:  # omegaconf's and yaml's errors share no base
            raise LeanconvError(f"{override}: {_wanted(name.strip())}{_reason(error)}") from error
    return _built(config)


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe that `to_yaml` wrote to `path` (a run's `config.yaml`), changed by `overrides`.

    Settings that are left out have their defaults; `name` and `model` must be there. Raises as `change`, and
    `LeanconvError` for a file that is missing or is not a recipe.
    """
    from omegaconf import OmegaConf

    path = Path(path)
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise LeanconvError(f"{path}: no such recipe file") from error
    except Exception as error:  # omegaconf's and yaml's errors share no base
        raise LeanconvError(f"{path}: not a recipe{_reason(error)}") from error
    if not isinstance(content, Mapping) or not {"name", "model"} <= content.keys():
        raise LeanconvError(f"{path}: not a recipe, expected a mapping with at least `name` and `model`")
    if isinstance(content.get("data"), dict):
        content = {**content, "data": _of_today(content["data"])}
    for name in _leaf_names(content):
        _check_name(name, where=f"{path}: ")
    try:
        config = OmegaConf.merge(OmegaConf.structured(Recipe), content)
    except Exception as error:  # as above
        name = str(getattr(error, "full_key", None) or "a setting")
        raise LeanconvError(f"{path}: {name}: {_wanted(name)}{_reason(error)}") from error
    return change(_built(config), overrides)


_RENAMED = {"data.size": "data.resolution"}
"""Settings by the names that leanconv 0.1 gave them."""


def _of_today(data: dict[str, Any]) -> dict[str, Any]:
    """The settings of the data as they are called now; where all of the first version
    are there, the run did without the later ones."""
    data = {_RENAMED.get(f"data.{name}", f"data.{name}").removeprefix("data."): data[name] for name in data}
    if {"spec", "resolution", "augment", "batch_size", "workers", "video"} <= data.keys():
        data.setdefault("exif", False)
        data.setdefault("validation", 0.0)
    return data


def to_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain dictionaries and lists."""
    from omegaconf import OmegaConf

    data = OmegaConf.to_container(OmegaConf.structured(recipe))
    return typing.cast(dict[str, Any], _listed(data))


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, every setting written out."""
    from omegaconf import OmegaConf

    text: str = OmegaConf.to_yaml(OmegaConf.create(to_data(recipe)))
    return text


def _built(config: Any) -> Recipe:
    from omegaconf import OmegaConf

    recipe: Recipe = _instance(Recipe, OmegaConf.to_container(config))
    return recipe


def _instance(kind: Any, value: Any) -> Any:
    """`value` as the annotated type `kind`: mappings become dataclasses, lists tuples."""
    if value is None:
        return None
    if get_origin(kind) in (types.UnionType, typing.Union):
        kind = next(part for part in get_args(kind) if part is not types.NoneType)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return typing.cast(Any, kind)(**{name: _instance(hints[name], item) for name, item in value.items()})
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise LeanconvError(f"expected {len(inner)} values, got {len(value)}: {list(value)}")
        return tuple(value)
    return value


def _check_name(name: str, where: str = "") -> None:
    """Raise unless `name` is a dotted path through the recipe's settings; in a free dictionary any name may be."""
    kind: Any = Recipe
    for part in name.split("."):
        if get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(inner for inner in get_args(kind) if inner is not types.NoneType)
        if not is_dataclass(kind):
            if get_origin(kind) is dict:
                return
            raise LeanconvError(f"{where}{name}: {part!r} is below a setting that has no parts")
        hints = get_type_hints(kind)
        if part not in hints:
            wrong = unknown("setting", name, _names(Recipe))
            raise type(wrong)(f"{where}{wrong}")
        kind = hints[part]


def _names(kind: Any, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for item in fields(kind):
        inner = hints[item.name]
        if get_origin(inner) in (types.UnionType, typing.Union):
            inner = next(part for part in get_args(inner) if part is not types.NoneType)
        yield prefix + item.name
        if is_dataclass(inner):
            yield from _names(inner, f"{prefix}{item.name}.")


def _leaf_names(content: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaf_names(value, name + ".")
        else:
            yield name


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _wanted(name: str) -> str:
    """What kind of value the setting takes, in words."""
    kind: Any = Recipe
    for part in name.split("."):
        if get_origin(kind) in (types.UnionType, typing.Union):
            kind = next(inner for inner in get_args(kind) if inner is not types.NoneType)
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    optional = types.NoneType in get_args(kind)
    if optional:
        kind = next(inner for inner in get_args(kind) if inner is not types.NoneType)
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        count = f"{len(inner)}" if inner[-1] is not Ellipsis else "any number of"
        word = f"a list of {count} values, each {_WORDS.get(inner[0], 'a value')}"
    elif is_dataclass(kind):
        word = "settings of its own (write them as " + name + ".SETTING=VALUE)"
    else:
        word = _WORDS.get(kind, "")
    if not word:
        return ""
    return f"expected {word}{' or null' if optional else ''}"


def _reason(error: Exception) -> str:
    """What the YAML parser says; omegaconf's own messages say no more than `_wanted` does."""
    if not type(error).__module__.startswith("yaml"):
        return ""
    return f" in YAML ({' '.join(str(error).split())})"


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
