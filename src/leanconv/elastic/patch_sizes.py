"""A forward whose code holds channel counts as constants, run with the counts of a width.

The trace has numbered the calls of every module's forward that hold such counts (`calls.FORMS`), each function for
itself, and knows which number counts which channels. Away from the largest width the forward of such a module runs in a
`Recounting` scope, which counts along and puts the right numbers into these calls. Where a constant is a tuple of the
module's own (the `normalized_shape` of a norm), the view of the module simply has another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch.overrides import TorchFunctionMode

from leanconv.elastic.coupling.functions import FORMS
from leanconv.elastic.slices import Channels
from leanconv.errors import RewriteError

__all__ = ["Place", "Recounting", "Site", "Sites"]

Place = tuple[Any, int]
"""A function, and how many times it was called before in the same forward."""


@dataclass(frozen=True)
class Site:
    """One call that holds channel counts: its `numbers` as the full network has them, and what some of them count.

    `counts` maps positions to (channels, how many of them are counted as one); `attribute` names the attribute of the
    module that holds the numbers, if that is where they come from.
    """

    numbers: tuple[int, ...]
    counts: Mapping[int, tuple[Channels, int]]
    attribute: str | None = None

    def counted(self, width: float) -> dict[int, int]:
        """The numbers that `width` decides."""
        return {place: channels.count(width) // per for place, (channels, per) in self.counts.items()}

    def attribute_at(self, width: float, value: Any) -> Any:
        """What the module's attribute is at `width`, of the kind that `value` is."""
        counted = self.counted(width)
        numbers = [counted.get(place, number) for place, number in enumerate(self.numbers)]
        return numbers[0] if isinstance(value, int) else type(value)(numbers)


class Sites(NamedTuple):
    """The calls of one forward that hold channel counts, by place, and how often it calls their functions in all."""

    at: Mapping[Place, Site]
    calls: Mapping[Any, int]

    def wanted(self, width: float) -> dict[Place, dict[int, int]]:
        """The numbers of every call that `width` decides."""
        return {place: site.counted(width) for place, site in self.at.items()}


class Recounting(TorchFunctionMode):
    """A scope in which the calls of one forward get the numbers in `wanted`, by their place.

    In `noted`, if given, go the places of calls whose own numbers are other ones.
    Raises `RewriteError` at its end where the forward was another than that which was traced.
    """

    def __init__(
        self, where: str, sites: Sites, wanted: Mapping[Place, Mapping[int, int]], noted: set[Place] | None = None
    ) -> None:
        super().__init__()
        self.where, self.sites, self.wanted, self.noted = where, sites, wanted, noted
        self.calls: dict[Any, int] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.sites.calls:
            return func(*args, **kwargs)
        form = FORMS[func]
        place = func, self.calls.get(func, 0)
        self.calls[func] = place[1] + 1
        wanted = self.wanted.get(place)
        given = None if wanted is None or form.numbers is None else form.numbers(args, kwargs)
        if wanted is None or given is None or form.again is None:
            return func(*args, **kwargs)
        full = self.sites.at[place].numbers
        numbers = [wanted.get(i, number) for i, number in enumerate(given)]
        numbers += [wanted.get(i, full[i]) for i in range(len(given), len(full))]
        if numbers == given:
            return func(*args, **kwargs)
        if self.noted is not None:
            self.noted.add(place)
        return form.again(func, args, kwargs, numbers)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if kind is None and self.calls != self.sites.calls:
            raise RewriteError(
                f"{self.where}: its forward took another path than when the network was made elastic, so which of its "
                "numbers count channels cannot be told (a table that is made once, a branch for training?): pass keep= "
                "with the layers that feed it"
            )
