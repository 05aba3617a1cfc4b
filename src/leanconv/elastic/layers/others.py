"""What is elastic beside the layers: modules with parameters per channel, and with channel counts in their code.

A layer scale, the gamma of a norm, a table of positions: such a module runs on a view of itself with sliced tensors, as
the leaves do. Where its forward also makes calls with constant channel counts, it runs in a `Recounting` scope.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from torch import nn

from leanconv.elastic.coupling.find import Beside
from leanconv.elastic.layers.leaves import Elastic, become, pick_all
from leanconv.elastic.patch_sizes import Place, Recounting, Site, Sites
from leanconv.elastic.width import Config, Dial
from leanconv.errors import RewriteError

__all__ = ["ElasticBeside", "Recounted", "make_beside", "settle"]


class Code(NamedTuple):
    """What is known of a module's own code: its name, the method that is its forward, the counts in its calls.

    A forward may be chosen when the module is made. `held` are the calls whose numbers an attribute holds.
    """

    name: str
    method: str
    sites: Sites
    held: tuple[Site, ...]


class ElasticBeside(Elastic):
    """A module that is no layer: its own tensors are sliced, the channel counts in its code replaced."""

    elastic_code: Code
    """Under a name that no module of somebody else's has."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward, with the tensors and the counts that the dial asks for."""
        dial, (name, method, sites, _) = self.dial, self.elastic_code
        run = getattr(self.kind, method)
        if dial.original or (dial.whole and not sites.at):
            return run(self, *args, **kwargs)
        view = self.view(dial.width)
        if not sites.at:
            return run(view, *args, **kwargs)
        noted: set[Place] | None = set() if dial.probing else None
        try:
            with Recounting(name, sites, sites.wanted(dial.width), noted):
                return run(view, *args, **kwargs)
        finally:
            dial.counted.update((name, place) for place in noted or ())

    def view(self, width: float) -> nn.Module:
        """The module at `width`, sharing its parts."""
        view = super().view(width)
        if any(name in self.slices for name in self._buffers):
            vars(view)["_buffers"] = {
                name: pick_all(b, self.slices[name], width) if name in self.slices else b
                for name, b in self._buffers.items()
            }
        return view

    def plain(self, config: Config, *, calibrated: bool = True) -> nn.Module:
        """An ordinary module; where its code holds counts of the full network, one that replaces them."""
        view = self._own(self.view(config.width))
        name, method, sites, _ = vars(view).pop("elastic_code")
        wanted = sites.wanted(config.width)
        if any(wanted[place][i] != site.numbers[i] for place, site in sites.at.items() for i in site.counts):
            vars(view)["elastic_recount"] = method, (name, sites, wanted)
            view.__class__ = _recounted(type(view))
        elif method != "forward":
            vars(view)["forward"] = getattr(view, method)
        return view

    def _attributes_at(self, width: float) -> dict[str, Any]:
        return {
            site.attribute: site.attribute_at(width, vars(self)[site.attribute])
            for site in self.elastic_code.held
            if site.attribute is not None
        }


class Recounted(nn.Module):
    """The parent of an extracted module whose code holds channel counts of the full network."""

    kind: ClassVar[type[nn.Module]]
    elastic_recount: tuple[str, tuple[str, Sites, dict[Place, dict[int, int]]]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original forward with the counts that this module has."""
        method, counts = self.elastic_recount
        with Recounting(*counts):
            return getattr(self.kind, method)(self, *args, **kwargs)

    def __reduce__(self) -> Any:
        return _blank_recounted, (self.kind,), vars(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        made = _blank_recounted(self.kind)
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(vars(self), memo))
        return made


_RECOUNTED: dict[type[nn.Module], type[nn.Module]] = {}


def _recounted(kind: type[nn.Module]) -> type[nn.Module]:
    if kind not in _RECOUNTED:
        _RECOUNTED[kind] = type(f"Recounted{kind.__name__}", (Recounted, kind), {"kind": kind})
    return _RECOUNTED[kind]


def _blank_recounted(kind: type[nn.Module]) -> nn.Module:
    blank: nn.Module = object.__new__(_recounted(kind))
    return blank


def make_beside(name: str, module: nn.Module, found: Beside, dial: Dial) -> None:
    """Turn a module that is no layer into an elastic one, in place."""
    chosen = vars(module).pop("forward", None)
    if chosen is not None and getattr(chosen, "__self__", None) is not module:
        raise RewriteError(f"{name}: its forward was replaced on the instance by a function of somebody else's")
    made = become(module, ElasticBeside, dial)
    assert isinstance(made, ElasticBeside)
    made.slices = dict(found.tensors)
    made.elastic_code = Code(
        name or made.kind.__name__,
        "forward" if chosen is None else chosen.__name__,
        _sites({place: site for place, site in found.sites.items() if site.attribute is None}, found.calls),
        tuple(site for site in found.sites.values() if site.attribute is not None),
    )


def _sites(at: dict[Place, Site], calls: Mapping[Any, int]) -> Sites:
    functions = {function for function, _ in at}
    return Sites(at, {function: count for function, count in calls.items() if function in functions})


def settle(module: ElasticBeside) -> None:
    """Forget the calls whose counts the code gets right by itself, which a run at other widths has told."""
    code = module.elastic_code
    counted = {place: site for place, site in code.sites.at.items() if (code.name, place) in module.dial.counted}
    module.elastic_code = code._replace(sites=_sites(counted, code.sites.calls))
    if not (counted or code.held or module.slices):
        for key in ("elastic_code", "slices", "dial"):
            del vars(module)[key]
        module.__class__ = module.kind  # type: ignore[assignment]
        if code.method != "forward":
            vars(module)["forward"] = getattr(module, code.method)
