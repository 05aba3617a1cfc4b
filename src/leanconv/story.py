"""How a model came to be, in plain data that can be written down and replayed.

A checkpoint is a story plus weights: never a pickle, which may run anything. The story is one entry of the model's
`__dict__`, beside its ordinary attributes, so that `copy.deepcopy` and `pickle` take it along.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["STORY_KEY", "Story", "begun", "is_own_code", "remember", "story_of"]

STORY_KEY = "_leanconv_story"


@dataclass(frozen=True, kw_only=True)
class Story:
    """`model` and its `options`, then every step that changed it, in order.

    `model` is a name that `create_model` takes, or None as long as nobody has said how the network is built; `save`
    asks for it then. A step is `(stem, settings)` with JSON values only, for example `("osep", {"overlap": 1.0})` or
    `("elastic", {"widths": [0.25, 1.0]})`. `contract` is what the model is fed, see `leanconv.data.contract`; None
    where nobody has said it.
    """

    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    contract: Mapping[str, Any] | None = None

    def then(self, stem: str, settings: Mapping[str, Any]) -> Story:
        """The story with one more step at its end."""
        return replace(self, steps=(*self.steps, (stem, dict(settings))))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {
            "model": self.model,
            "options": dict(self.options),
            "steps": [[stem, dict(settings)] for stem, settings in self.steps],
            **({} if self.contract is None else {"contract": dict(self.contract)}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Story:
        """The inverse of `to_json`; leanconv 0.1 wrote "knobs", and its octave networks had other strides."""
        steps = tuple(
            (stem, {_RENAMED.get(name, name): value for name, value in settings.items()})
            for stem, settings in data.get("steps", ())
        )
        options = dict(data.get("options", data.get("knobs", {})))
        if "knobs" in data and data["model"].startswith("oct_"):
            options.setdefault("full_stride", "strided")
        return cls(model=data["model"], options=options, steps=steps, contract=data.get("contract"))


_RENAMED = {"example_size": "size"}
"""Settings of steps by the names that leanconv 0.1 wrote."""


def remember(model: nn.Module, story: Story) -> None:
    """Attach `story` to `model`, replacing an earlier one."""
    vars(model)[STORY_KEY] = story


def story_of(model: nn.Module) -> Story | None:
    """The story of `model`, or None for a network that no part of leanconv has made or changed."""
    story = vars(model).get(STORY_KEY)
    return story if isinstance(story, Story) else None


def begun(model: nn.Module, source: str | None = None, source_options: Mapping[str, Any] | None = None) -> Story:
    """The story of `model` so far, with `source` as its beginning where that is given.

    `source` is what `create_model` takes: "package.module:function" (or a class) for code of one's own, a name for a
    network of a library; `source_options` are its keywords. Raises `LeanconvError` where it cannot be one.

    >>> from torch import nn
    >>> begun(nn.Identity(), "my_pkg.nets:build", {"width": 8}).to_json()
    {'model': 'my_pkg.nets:build', 'options': {'width': 8}, 'steps': []}
    """
    story = story_of(model) or Story()
    if source is None:
        if source_options:
            raise LeanconvError(f"source_options {dict(source_options)} are keywords of source, which is not given")
        return story
    if not isinstance(source, str) or not source.strip() or _looks_wrong(source):
        raise LeanconvError(
            f"source says how the network is built, 'package.module:function' or a name that create_model takes, got "
            f"{source!r}"
        )
    if source.startswith("__main__:"):
        raise LeanconvError(
            f"source={source!r}: __main__ is the script that runs now, and no other process could import it: move what "
            "builds the network to a module of its own"
        )
    return replace(story, model=source, options=dict(source_options or {}))


def is_own_code(name: str) -> bool:
    """Whether `name` is a dotted path, "package.module:function": building it imports and runs that code."""
    return re.fullmatch(r"[\w.]+:[\w.]+", name) is not None


def _looks_wrong(source: str) -> bool:
    """Whether a colon stands in something that is no dotted path: a file's name, say."""
    return ":" in source and (not is_own_code(source) or source.partition(":")[0].endswith(".py"))
