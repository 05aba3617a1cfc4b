"""A forward whose code holds channel counts as constants, run with the counts of a width.

`coupling.find` has numbered the calls of every module's forward that hold such counts (`functions.FUNCTION_RULES`),
each function for itself, and found which numbers count which channels. Away from the largest width the forward of such
a module runs in a `PatchSizes` scope, which counts along and puts the right numbers into these calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch.overrides import TorchFunctionMode

from leanconv.elastic.coupling.aten_ops import Call
from leanconv.elastic.coupling.functions import FUNCTION_RULES
from leanconv.elastic.slices import Place
from leanconv.errors import RewriteError

__all__ = ["Patch", "PatchSizes"]


class Patch(NamedTuple):
    """Numbers to put into one call: all that the full network has there, and those by position that are others."""

    full: tuple[int, ...]
    wanted: Mapping[int, int]


class PatchSizes(TorchFunctionMode):
    """A scope in which the calls of one forward, that of the module called `where`, get the numbers of their patches.

    `made` says how often that forward calls each of the functions in all. In `needed`, if given, go the places of the
    calls whose own numbers are other ones.
    Raises `RewriteError` at its end where the forward was another than when coupling was found.
    """

    def __init__(
        self, where: str, patches: Mapping[Place, Patch], made: Mapping[Any, int], needed: set[Place] | None = None
    ) -> None:
        super().__init__()
        self.where, self.patches, self.made, self.needed = where, patches, made, needed
        self.calls: dict[Any, int] = dict.fromkeys(made, 0)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.calls:
            return func(*args, **kwargs)
        place = func, self.calls[func]
        self.calls[func] += 1
        patch, rule, call = self.patches.get(place), FUNCTION_RULES[func], Call(func, args, kwargs)
        given = None if patch is None or rule.numbers is None else rule.numbers(call)
        if patch is None or given is None or rule.again is None:
            return func(*args, **kwargs)
        numbers = [patch.wanted.get(i, number) for i, number in enumerate((*given, *patch.full[len(given) :]))]
        if numbers == given:
            return func(*args, **kwargs)
        if self.needed is not None:
            self.needed.add(place)
        return rule.again(call, numbers)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if kind is None and self.calls != self.made:
            raise RewriteError(
                f"{self.where}: its forward took another path than when the network was made elastic, so which of its "
                "numbers count channels cannot be told (a table that is made once, a branch for training?): pass keep= "
                "with the layers that feed it"
            )
