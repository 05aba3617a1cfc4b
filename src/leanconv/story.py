"""How a model came to be, in plain data that can be written down and replayed.

A checkpoint is a story plus weights: never a pickle, because a traced graph may not survive pickling and a pickle may
run anything. Stories are kept beside the models, in a weak table, so that nobody's module is given an attribute it
did not ask for; the price is that `copy.deepcopy` drops the story, and `save` then asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Story", "remember", "story_of"]


@dataclass(frozen=True, kw_only=True)
class Story:
    """`model` and its `options`, then every step that changed it, in order.

    A step is `(stem, settings)` with JSON values only, for example `("osep", {"overlap": 1.0})` or
    `("elastic", {"widths": [0.25, 1.0]})`.
    """

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def then(self, stem: str, settings: Mapping[str, Any]) -> Story:
        """The story with one more step at its end."""
        return replace(self, steps=(*self.steps, (stem, dict(settings))))

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return {
            "model": self.model,
            "options": dict(self.options),
            "steps": [[stem, dict(settings)] for stem, settings in self.steps],
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
        return cls(model=data["model"], options=options, steps=steps)


_RENAMED = {"example_size": "size"}
"""Settings of steps by the names that leanconv 0.1 wrote."""

_STORIES: WeakKeyDictionary[nn.Module, Story] = WeakKeyDictionary()


def remember(model: nn.Module, story: Story) -> None:
    """Attach `story` to `model`, replacing an earlier one."""
    _STORIES[model] = story


def story_of(model: nn.Module) -> Story | None:
    """The story of `model`, or None where nobody has told one (the model was built outside leanconv, or copied)."""
    return _STORIES.get(model)
