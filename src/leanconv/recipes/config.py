"""Recipes to YAML and back, and settings changed by dotted names; every value is held against the type of its setting.

Values are what they say: `${...}` is text, which nobody looks up.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from leanconv.errors import LeanconvError, shown, unknown
from leanconv.files import write_text
from leanconv.plain_text import BadText, read_yaml
from leanconv.plain_text import to_yaml as plain_yaml
from leanconv.recipes.settings import Recipe
from leanconv.schema import Count, Fault, Flag, MapOf, Number, Plain, Shape, Text
from leanconv.train import is_main_process

__all__ = ["change", "complete", "read_recipe", "to_data", "to_yaml"]


def change(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """The recipe with settings such as `epochs=3`, `optim.lr=0.2`, `elastic=null` or `model_args.multiplier=2` changed.

    Values are YAML (`rewrites=[osep:overlap=1]`). Raises `UnknownName` for a setting that does not exist, with the one
    that was probably meant, and `LeanconvError` for a value of the wrong type or out of range.
    """
    data = to_data(recipe)
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            raise LeanconvError(f"{shown(override)}: expected SETTING=VALUE, for example optim.lr=0.2")
        name = _RENAMED.get(name, name)
        _check_name(name)
        told = shown(f"{name}={text}", 120)[1:-1]
        try:
            value = read_yaml(text)
        except BadText as error:
            raise LeanconvError(f"{told}: {_wanted(name)} in YAML ({error})") from error
        kind, optional = _kind_of(name)
        if kind is str and value is not None and not isinstance(value, str):
            value = text.strip()  # a name may look like a number
        try:
            if not (value is None and optional) and not (is_dataclass(kind) and isinstance(value, Mapping)):
                _typed(kind, value, name)
        except Fault as error:
            raise LeanconvError(f"{told}: {_wanted(name) or error}") from error
        _put(data, name.split("."), value)
    return _built(data)


def read_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe that `to_yaml` wrote to `path` (a run's `config.yaml`), changed by `overrides`.

    Settings that are left out have their defaults; `name` and `model` must be there. Raises as `change`, and
    `LeanconvError` for a file that is missing or is not a recipe.
    """
    path = Path(path)
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LeanconvError(f"{path}: no such recipe file") from error
    except BadText as error:
        raise LeanconvError(f"{path}: not a recipe in YAML ({error})") from error
    except (OSError, UnicodeDecodeError) as error:
        raise LeanconvError(f"{path}: not a recipe: {getattr(error, 'strerror', None) or 'no text'}") from error
    if not isinstance(content, Mapping) or not {"name", "model"} <= content.keys():
        raise LeanconvError(f"{path}: not a recipe, expected a mapping with at least `name` and `model`")
    if isinstance(content.get("data"), dict):
        content = {**content, "data": _of_today(content["data"])}
    for name in _leaf_names(content):
        _check_name(name, where=f"{path}: ")
    try:
        recipe = _built(content)
    except Fault as error:
        raise LeanconvError(f"{path}: {error}") from error
    return change(recipe, overrides)


def complete(config: Path) -> None:
    """Write out the settings that the leanconv which started the run did not have yet, at their defaults.

    A default is what a run did without the setting, so the run stays the same run; `fit` compares the rest.
    """
    if not config.exists():
        return
    text = to_yaml(read_recipe(config))
    if is_main_process() and text != config.read_text():
        write_text(config, text)


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
    return typing.cast(dict[str, Any], _listed(asdict(recipe)))


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, every setting written out."""
    return plain_yaml(to_data(recipe))


def _built(data: Mapping[str, Any]) -> Recipe:
    recipe: Recipe = _typed(Recipe, data, "")
    return recipe


def _put(data: dict[str, Any], parts: list[str], value: Any) -> None:
    """Set what the dotted name says; a mapping changes what it names of the one that is there."""
    for part in parts[:-1]:
        if not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    if isinstance(value, dict) and isinstance(before := data.get(parts[-1]), dict):
        for key, item in value.items():
            _put(before, [key], item)
    else:
        data[parts[-1]] = value


_SHAPES: dict[Any, Shape] = {int: Count(-(2**63)), float: Number(), str: Text(), bool: Flag()}


def _typed(kind: Any, value: Any, name: str) -> Any:
    """`value`, plain data, as the annotated type `kind`; `Fault` with the setting's `name` where it is none."""
    kind, optional = _not_null(kind)
    if value is None and optional:
        return None
    if kind is Any:
        Plain().check(value, name)
        return value
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise _misfit(name)
        hints, before = get_type_hints(kind), f"{name}." if name else ""
        for key in value:
            if key not in hints:
                raise unknown("setting", f"{before}{key}", _names(Recipe))
        return typing.cast(Any, kind)(**{key: _typed(hints[key], item, before + key) for key, item in value.items()})
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        many = inner[-1] is Ellipsis
        if not isinstance(value, list | tuple) or len(value) > 10_000 or (not many and len(value) != len(inner)):
            raise _misfit(name)
        each = [inner[0]] * len(value) if many else inner
        return tuple(_typed(one, item, name) for one, item in zip(each, value, strict=True))
    if get_origin(kind) is dict:
        MapOf(Plain(), longest=1000).check(value, name)
        return dict(value)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 1e300 else value
    if kind is bool and type(value) is int and value in (0, 1):
        value = bool(value)
    try:
        _SHAPES[kind].check(value, name)
    except Fault as error:
        raise _misfit(name) from error
    return value


def _misfit(name: str) -> Fault:
    return Fault(f"{name}: {_wanted(name) or 'expected plain data'}")


def _kind_of(name: str) -> tuple[Any, bool]:
    """The type of a setting that exists, and whether it may be null; that of anything in a free dictionary is `Any`."""
    kind, optional = Recipe, False
    for part in name.split("."):
        kind, optional = _not_null(get_type_hints(kind)[part] if is_dataclass(kind) else Any)
    return kind, optional


def _not_null(kind: Any) -> tuple[Any, bool]:
    """The type without its null, and whether it had one."""
    if get_origin(kind) not in (types.UnionType, typing.Union):
        return kind, False
    return next(part for part in get_args(kind) if part is not types.NoneType), True


def _check_name(name: str, where: str = "") -> None:
    """Raise unless `name` is a dotted path through the recipe's settings; in a free dictionary any name may be."""
    kind: Any = Recipe
    for part in name.split("."):
        kind, _ = _not_null(kind)
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
        inner, _ = _not_null(hints[item.name])
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
    kind, optional = _kind_of(name)
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


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
