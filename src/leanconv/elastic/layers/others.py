"""What is elastic but no layer: modules with parameters per channel, and with channel counts in their code.

A layer scale, the gamma of a norm, a table of positions: such a module runs on a view of itself with sliced tensors, as
the leaves do. `coupling.find` has numbered the calls of its forward that hold constant channel counts, each function
for itself; away from the largest width it runs in a `PatchSizes` scope, which counts along and puts in the right ones.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from leanconv.elastic.active import ActiveConfig
from leanconv.elastic.coupling.aten_ops import Call
from leanconv.elastic.coupling.functions import FUNCTION_RULES
from leanconv.elastic.layers.leaves import Elastic, MadeClass, made_class, make_class_elastic
from leanconv.elastic.slices import OtherLayer, Place
from leanconv.elastic.width import Config, Width
from leanconv.errors import RewriteError
from leanconv.ops.octave_mode import PartsMode

Patch = tuple[tuple[int, ...], Mapping[int, int]]
"""Numbers to put into one call: all that the full network has there, and those by position that are others."""


class PatchSizes(PartsMode):
    """A scope in which the calls of one forward, that of the module called `where`, get the numbers of their patches.

    `made` says how often that forward calls each function: raises `RewriteError` at its end where it was another one.
    In `needed`, if given, go the places of the calls whose own numbers are other ones.
    """

    def __init__(
        self, where: str, patches: Mapping[Place, Patch], made: Mapping[Any, int], needed: set[Place] | None = None
    ) -> None:
        super().__init__()
        self.where, self.patches, self.made, self.needed = where, patches, made, needed
        self.calls: dict[Any, int] = dict.fromkeys((function for function, _ in patches), 0)

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a function, counted, and with its patch where it has one."""
        if func not in self.calls:
            return func(*args, **kwargs)
        place = func, self.calls[func]
        self.calls[func] += 1
        (full, wanted), rule, call = self.patches.get(place, ((), {})), FUNCTION_RULES[func], Call(func, args, kwargs)
        given = rule.numbers(call) if wanted and rule.numbers is not None else None
        numbers = [wanted.get(i, number) for i, number in enumerate((*(given or ()), *full[len(given or ()) :]))]
        if given is None or rule.again is None or numbers == given:
            return func(*args, **kwargs)
        if self.needed is not None:
            self.needed.add(place)
        return rule.again(call, numbers)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if kind is None and any(self.made[function] != calls for function, calls in self.calls.items()):
            raise RewriteError(
                f"{self.where}: its forward took another path than when the network was made elastic, so which of its "
                "numbers count channels is unknown (a table that is made once, a branch for training?): pass keep= "
                "with the layers that feed it"
            )


class ElasticOther(Elastic):
    """A module that is no layer: its own tensors are sliced, the channel counts in its code replaced.

    `elastic_name` is its qualified name, `elastic_method` the method that is its forward, which may be chosen when a
    module is made. In `elastic_needed`, where it is a set, go the calls that needed other numbers than they have.
    """

    elastic_layer: OtherLayer
    elastic_name: str
    elastic_method: str
    elastic_needed: set[Place] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward, with the tensors and the counts of the configuration in force."""
        scope, layer = self.elastic_config.scope, self.elastic_layer
        run = getattr(self.kind, self.elastic_method)
        if scope.original or (scope.whole and not layer.calls):
            return run(self, *args, **kwargs)
        view = self.view(scope.width)
        if not layer.calls:
            return run(view, *args, **kwargs)
        with PatchSizes(self.elastic_name, self.patches(scope.width), layer.made, self.elastic_needed):
            return run(view, *args, **kwargs)

    def patches(self, width: Width) -> dict[Place, Patch]:
        """The numbers at `width` of every call that holds counts."""
        return {place: (counts.numbers, counts.at(width)) for place, counts in self.elastic_layer.calls.items()}

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """An ordinary module; where its code holds counts of the full network, one that replaces them."""
        view = self.view(config.width)
        patches = self.patches(config.width)
        if any(full[i] != number for full, wanted in patches.values() for i, number in wanted.items()):
            vars(view)["patched_sizes"] = self.elastic_method, (self.elastic_name, patches, self.elastic_layer.made)
            view.__class__ = made_class(Patched, type(view))
        elif self.elastic_method != "forward":
            vars(view)["forward"] = getattr(view, self.elastic_method)
        return view

    def drop_unneeded_patches(self, needed: Collection[Place]) -> None:
        """Drop the patches of calls whose counts the code gets right by itself, as a run at other widths has shown."""
        calls = {place: counts for place, counts in self.elastic_layer.calls.items() if place in needed}
        self.elastic_layer = layer = replace(self.elastic_layer, calls=calls)
        if not (layer.calls or layer.attributes or layer.tensors):
            if self.elastic_method != "forward":
                vars(self)["forward"] = getattr(self, self.elastic_method)
            for name in [name for name in vars(self) if name.startswith("elastic_")]:
                del vars(self)[name]
            self.__class__ = self.kind  # type: ignore[assignment]


class Patched(MadeClass):
    """The parent of an extracted module whose code holds channel counts of the full network."""

    prefix = "Patched"
    patched_sizes: tuple[str, tuple[Any, ...]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward with the counts that this module has."""
        method, patches = self.patched_sizes
        with PatchSizes(*patches):
            return getattr(self.kind, method)(self, *args, **kwargs)


def make_other(name: str, module: nn.Module, layer: OtherLayer, active: ActiveConfig) -> None:
    """Turn a module that is no layer into an elastic one, in place."""
    chosen = vars(module).pop("forward", None)
    if chosen is not None and getattr(chosen, "__self__", None) is not module:
        raise RewriteError(f"{name}: its forward was replaced on the instance by a function of somebody else's")
    kind = type(module).__name__
    made = make_class_elastic(module, layer, active, ElasticOther)
    vars(made).update(elastic_name=name or kind, elastic_method="forward" if chosen is None else chosen.__name__)
