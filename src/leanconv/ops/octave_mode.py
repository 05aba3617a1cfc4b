"""A mode of torch that sees what a network's functions do with the two parts of its octave maps."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode

from leanconv.ops.octave_map import OctaveMap, call

__all__ = ["PartsMode"]


class PartsMode(TorchFunctionMode):
    """A mode that sees what functions do with the parts of maps at two resolutions, and not the maps."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if OctaveMap not in types:
            return self.function(func, args, kwargs or {})
        TorchFunctionMode.__enter__(self)  # type: ignore[no-untyped-call]  # nobody asks a mode while it is asked
        try:
            return call(func, args, kwargs or {})[0]
        finally:
            TorchFunctionMode.__exit__(self, None, None, None)  # type: ignore[no-untyped-call]

    def function(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of a function with plain tensors."""
        raise NotImplementedError
