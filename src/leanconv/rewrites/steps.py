"""A rewrite step as text: JSON for stories, `stem:option=value,...` for the command line, both typed and strict."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from leanconv.errors import LeanconvError, shown, unknown
from leanconv.ops import OPERATORS
from leanconv.ops.operator import ConvRewrite
from leanconv.rewrites.changes import Step
from leanconv.rewrites.inflate import Inflate
from leanconv.rewrites.octave import Octave

__all__ = ["STEPS", "from_json", "options_of", "parse_step", "split_options", "to_json"]

STEPS: dict[str, type[ConvRewrite | Step]] = {**OPERATORS, Octave.stem: Octave, Inflate.stem: Inflate}
"""Stem -> the settings class of every rewrite."""


def to_json(step: ConvRewrite | Step) -> dict[str, Any]:
    """The stem and every option of `step`, defaults included, so that a later change of a default changes no story.

    >>> from leanconv.ops import OPERATORS
    >>> to_json(OPERATORS["group"](groups=4))["groups"]
    4
    """
    values = {option.name: getattr(step, option.name) for option in fields(step)}
    return {"stem": step.stem} | {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_json(data: Mapping[str, Any]) -> ConvRewrite | Step:
    """The inverse of `to_json`; options that are left out have their defaults.

    Raises `UnknownName` for an unknown stem or option, `LeanconvError` for a value of the wrong type.
    """
    if "stem" not in data:
        raise LeanconvError(f"a rewrite step in JSON needs the key 'stem', got {sorted(data)}")
    options = {name: value for name, value in data.items() if name != "stem"}
    return _make(str(data["stem"]), options, text=False)


def parse_step(text: str) -> ConvRewrite | Step:
    """The step that `stem` or `stem:option=value,option=value` describes; `none` is the value None.

    Commas inside brackets and parentheses do not separate, and only the first `=` of an option does, so `where` needs
    no quoting. Raises as `from_json`.

    >>> parse_step("group:groups=4,where=layer[34].* kernel>1").where
    'layer[34].* kernel>1'
    """
    stem, colon, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in split_options(rest) if colon else ():
        name, equals, value = part.partition("=")
        name = name.strip()
        if not equals or not name:
            raise LeanconvError(
                f"rewrite {shown(text)}: expected option=value, got {shown(part)}; write"
                f" {shown(stem)[1:-1]}:option=value,..."
            )
        if name in options:
            raise LeanconvError(f"rewrite {shown(text)}: option {shown(name)[1:-1]} is given twice")
        options[name] = value.strip()
    return _make(stem.strip(), options, text=True)


def options_of(stem: str) -> dict[str, str]:
    """The options of a rewrite and their defaults, as `parse_step` reads them.

    >>> options_of("group")["groups"]
    '2'
    """
    return {option.name: _written(getattr(STEPS[stem](), option.name)) for option in fields(STEPS[stem])}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def split_options(text: str) -> list[str]:
    """The parts between the commas that stand outside brackets and parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _make(stem: str, options: Mapping[str, Any], *, text: bool) -> ConvRewrite | Step:
    """The step, with every option converted to the type of its field."""
    if stem not in STEPS:
        raise unknown("rewrite", stem, STEPS)
    config = STEPS[stem]
    hints = get_type_hints(config)
    known = [option.name for option in fields(config)]
    for name in options:
        if name not in known:
            error = unknown(f"option of rewrite {shown(stem)}", name, known)
            raise type(error)(f"{error}; its options are {', '.join(known)}")
    read = _read_text if text else _read_json
    typed = {}
    for name, value in options.items():
        try:
            typed[name] = read(value, hints[name])
        except ValueError:
            raise LeanconvError(
                f"rewrite {stem!r}: option {name} takes {_say(hints[name])}, got {shown(value)}"
            ) from None
    return config(**typed)


def _read_text(value: str, hint: Any) -> Any:
    """`value`, typed by a person, as `hint` wants it; ValueError where it cannot be."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first(value, args, _read_text)
    if origin is Literal:
        for legal in args:
            if value == str(legal):
                return legal
        raise ValueError
    if origin is tuple:
        items = [item.strip() for item in value.strip("()[]").replace("x", ",").split(",") if item.strip()]
        return _tuple(items, args, _read_text)
    if hint is types.NoneType:
        if value.lower() in ("none", "null"):
            return None
        raise ValueError
    if hint is bool:
        flags = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if value.lower() in flags:
            return flags[value.lower()]
        raise ValueError
    if hint in (int, float, str):
        return _bounded(hint(value))
    raise TypeError(f"an option of type {hint} has no text form")


def _read_json(value: Any, hint: Any) -> Any:
    """`value`, read from JSON, as `hint` wants it; ValueError where it cannot be."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first(value, args, _read_json)
    if origin is Literal:
        if any(value == legal and type(value) is type(legal) for legal in args):
            return value
        raise ValueError
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return _tuple(list(value), args, _read_json)
    if hint is types.NoneType:
        hint = type(None)
    if hint is float and type(value) is int:
        return float(_bounded(value))
    if type(value) is hint:  # exact: True is no integer here
        return _bounded(value)
    raise ValueError


_LARGEST = 2**20
"""No count of channels, groups, stages, frames or taps is larger."""


def _bounded(value: Any) -> Any:
    """`value`, unless it is a number that no convolution has, or a text that no one would write: ValueError."""
    if isinstance(value, str):
        if len(value) > 4096:
            raise ValueError
    elif value != value or (type(value) is int and abs(value) > _LARGEST):  # NaN is no share either
        raise ValueError
    return value


def _first(value: Any, hints: tuple[Any, ...], read: Any) -> Any:
    """The first reading that fits; None is tried first, text last, because everything is a text."""
    for hint in sorted(hints, key=lambda hint: (hint is str) - (hint is types.NoneType)):
        try:
            return read(value, hint)
        except ValueError:
            continue
    raise ValueError


def _tuple(items: list[Any], args: tuple[Any, ...], read: Any) -> tuple[Any, ...]:
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(read(item, args[0]) for item in items)
    if len(items) != len(args):
        raise ValueError
    return tuple(read(item, hint) for item, hint in zip(items, args, strict=True))


def _say(hint: Any) -> str:
    """A type in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_say(arg) for arg in args)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return f"a list whose entries are each {_say(args[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "none"}
    return names.get(hint, str(hint))
