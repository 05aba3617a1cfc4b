"""JSON and YAML that somebody may have written to harm: plain data and nothing else, bounded, every key once.

Text stays text: `${...}` is never looked up, tags and anchors of YAML do not exist, and a number that is none (NaN,
Infinity, 1e999) is refused, because no count, share or size is one.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from typing import Any

from leanconv.errors import LeanconvError, shown

__all__ = ["BadText", "read_json", "read_yaml", "to_yaml"]

_JSON_LONGEST = 2**26
_YAML_LONGEST = 2**18
"""Characters. A run's config.yaml has two thousand; YAML is read at a few hundred thousand a second."""


class BadText(LeanconvError):
    """Text that is no JSON or YAML of plain data; the message has the line and the column where these are known."""


def read_json(text: str) -> Any:
    """The plain data of a JSON text. Raises `BadText`.

    >>> read_json('{"a": [1, 2.5, null]}')
    {'a': [1, 2.5, None]}
    """
    if len(text) > _JSON_LONGEST:
        raise BadText(f"{len(text)} characters of JSON, more than the {_JSON_LONGEST} that are read")
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except BadText:
        raise
    except RecursionError:
        raise BadText("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise BadText(f"no JSON in line {error.lineno}, column {error.colno}: {error.msg}") from error
    except ValueError as error:  # a number of thousands of digits
        raise BadText(f"no JSON: {' '.join(str(error).split())[:200]}") from error


def read_yaml(text: str) -> Any:
    """The plain data of a YAML text. Raises `BadText`.

    >>> read_yaml("rate: 1e-3\\npath: ${oc.env:HOME}\\nsteps: [osep:overlap=1]")
    {'rate': 0.001, 'path': '${oc.env:HOME}', 'steps': ['osep:overlap=1']}
    """
    import yaml

    if len(text) > _YAML_LONGEST:
        raise BadText(f"{len(text)} characters of YAML, more than the {_YAML_LONGEST} that are read")
    try:
        return yaml.load(text, Loader=_classes()[0])  # a SafeLoader
    except BadText:
        raise
    except RecursionError:
        raise BadText("it is nested too deeply") from None
    except yaml.YAMLError as error:
        raise BadText(" ".join(str(error).split())[:300]) from error
    except ValueError as error:
        raise BadText(" ".join(str(error).split())[:200]) from error


def to_yaml(data: Any) -> str:
    """Plain data as YAML, which `read_yaml` reads back to the same.

    >>> to_yaml({"rate": 0.001, "name": "1e3", "sizes": [1, 2]})
    "rate: 0.001\\nname: '1e3'\\nsizes:\\n- 1\\n- 2\\n"
    """
    import yaml

    text: str = yaml.dump(data, Dumper=_classes()[1], default_flow_style=False, allow_unicode=True, sort_keys=False)
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadText(f"the key {shown(twice)} is given twice")
    return made


def _no_number(name: str) -> float:
    raise BadText(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadText(f"{shown(text)[1:-1]} is no finite number")
    return value


@cache
def _classes() -> tuple[Any, Any]:
    """A loader and a dumper that agree about which words are numbers, truth values and null."""
    import yaml

    kinds: tuple[tuple[str, str, str], ...] = (
        ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
        ("null", r"~|null|Null|NULL|", "~nN\0"),
        ("int", r"[-+]?(?:0|[1-9][0-9_]*)", "-+0123456789"),
        (
            "float",
            r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*"
            r"(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
            "-+0123456789.",
        ),
    )
    resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, letters in kinds:
        for letter in letters.replace("\0", ""):
            resolvers.setdefault(letter, []).append((f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$")))
    resolvers[""] = resolvers["~"]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers = resolvers

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if getattr(event, "anchor", None) is not None or isinstance(event, yaml.events.AliasEvent):
                raise BadText(f"an anchor or alias in line {event.start_mark.line + 1}, which plain data do without")
            if getattr(event, "tag", None) not in (None, "!"):
                raise BadText(f"a tag in line {event.start_mark.line + 1}, which plain data do without")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            made: dict[Any, Any] = {}
            for key_node, value_node in node.value:
                line = key_node.start_mark.line + 1
                if not isinstance(key_node, yaml.ScalarNode):
                    raise BadText(f"a key that is no word in line {line}")
                key = self.construct_object(key_node)
                if key in made:
                    raise BadText(f"the key {shown(key)} is given twice, the second time in line {line}")
                made[key] = self.construct_object(value_node, deep=True)
            return made

        def construct_yaml_float(self, node: Any) -> float:
            return _finite(str(node.value).replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())

    Loader.add_constructor("tag:yaml.org,2002:float", Loader.construct_yaml_float)
    Loader.add_constructor("tag:yaml.org,2002:map", lambda self, node: self.construct_mapping(node))

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        yaml_implicit_resolvers = resolvers

        def ignore_aliases(self, data: Any) -> bool:
            return True

    return Loader, Dumper
