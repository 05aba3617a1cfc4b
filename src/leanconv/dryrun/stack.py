"""Which module is running: a stack of qualified names, kept by hooks, with a call at every entry and exit."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["Enter", "Leave", "ModuleStack"]

Enter = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]
"""Called as (name, module, args, kwargs) when a module begins."""

Leave = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]
"""Called as (name, module, args, kwargs, output) when a module has returned; not when it raised."""


class ModuleStack:
    """Follows the modules of a model while they run, within a `with`; afterwards no hook of it is left.

    A module that is registered twice goes by its first name. Around the modules' own hooks: what a weight normalisation
    computes before a forward runs inside its module.

    Attributes:
        running: qualified names of the modules at work, outermost first; "" is the model itself.
        calls: how often each module ran, in the order of their first calls.
        on_enter, on_leave: who is called, see `Enter` and `Leave`.

    >>> import torch
    >>> net = nn.Sequential(nn.ReLU(), nn.ReLU())
    >>> with ModuleStack(net) as stack:
    ...     y = net(torch.zeros(1))
    >>> dict(stack.calls)
    {'': 1, '0': 1, '1': 1}
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules: Mapping[str, nn.Module] = dict(model.named_modules())
        self.running: list[str] = []
        self.calls: Counter[str] = Counter()
        self.on_enter: list[Enter] = []
        self.on_leave: list[Leave] = []
        self._errors: list[BaseException | None] = []
        self._failed: tuple[BaseException, str] | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ModuleStack:
        self.running.clear()
        self.calls.clear()
        self._errors.clear()
        self._failed = None
        for name, module in self.modules.items():
            enter, leave = self._entering(name), self._leaving(name)
            self._handles += (
                module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True),
                module.register_forward_hook(leave, with_kwargs=True, always_call=True),
            )
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def path(self) -> str:
        """The innermost module at work; "" is the model itself."""
        return self.running[-1] if self.running else ""

    def path_of(self, error: BaseException) -> str:
        """The innermost module that was at work when `error` arose, for after it has passed through the modules."""
        return self._failed[1] if self._failed is not None and self._failed[0] is error else self.path

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.running.append(name)
            self._errors.append(sys.exception())
            self.calls[name] += 1
            for look in self.on_enter:
                look(name, module, args, kwargs)

        return hook

    def _leaving(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            # Called on the way out of a failure, too: then an exception is there that was not when the module began.
            # One that the forward catches is as if it had never been.
            error = sys.exception()
            try:
                if error is None or error is self._errors[-1]:
                    for look in self.on_leave:
                        look(name, module, args, kwargs, output)
                elif self._failed is None or self._failed[0] is not error:
                    self._failed = error, name
            except Exception as raised:  # by a look
                self._failed = raised, name
                raise
            finally:
                self._errors.pop()
                self.running.pop()

        return hook
