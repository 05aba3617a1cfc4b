"""The configuration in force: what a scope of `ElasticNet.at` sets, and what every elastic layer reads.

It belongs to the thread and the task that entered the scope (`contextvars`): others run in theirs, or in the full
network where they entered none. A thread begins without; a task of asyncio begins in the scope in which it was made,
and keeps it. A generator has no scopes of its own: it shares those of whoever advances it. What `torch.compile` has
compiled follows the scope that it is called in; a scope entered inside of it breaks its graph there.
"""

from __future__ import annotations

import threading
import weakref
from contextvars import ContextVar
from typing import Any

import torch

from leanconv.elastic.width import Config, Width

__all__ = ["ActiveConfig", "Scope", "graph_task"]


class Scope:
    """A configuration, and what the input is brought to: resolution and frames, None where it is left as it is.

    `whole` says whether nothing is sliced, `original` whether this is the network as it was, nothing added either.
    """

    def __init__(self, config: Config, resolution: int | None, frames: int | None, largest: Config) -> None:
        self.config = config
        self.width: Width = config.width
        self.input = resolution, frames
        self.whole = self.width == largest.width
        self.original = self.whole and self.width == 1
        self.below: Scope | None = None
        self.open = True
        self.copies: list[weakref.ref[ActiveConfig]] = []
        """Of the network, made within the scope: they run in it as long as it is open."""


class ActiveConfig:
    """One object that all elastic layers of a network share; `enter` and `leave` begin and end a scope.

    `largest` is the configuration that there are weights for: the widest, the native resolution, all frames. While
    activations are computed again in a backward, what their forward was asked is `recalled` for that backward (see
    `elastic.backward`), in whatever thread it runs.
    """

    def __init__(self, largest: Config) -> None:
        self.largest = largest
        self.full = Scope(largest, None, None, largest)
        self._scope: ContextVar[Scope] = ContextVar("elastic scope", default=self.full)
        self.recalled: dict[int, tuple[Scope, int]] = {}
        """The scope that a backward, by its number, has brought back, and the thread that did."""

    @property
    def scope(self) -> Scope:
        """The scope in force."""
        if self.recalled and not torch.compiler.is_compiling():
            found = self._found_in_backward()
            if found is not None:
                return found
        return self._scope.get()

    def _found_in_backward(self) -> Scope | None:
        """What the backward at hand, or the one that it is a part of, has brought back."""
        task, thread = graph_task(), threading.get_ident()
        if task == -1:
            return None
        recalled = dict(self.recalled)  # other threads change it
        if task not in recalled:  # reentrant checkpoints run a backward inside a backward
            task = max((other for other, (_, by) in recalled.items() if other < task and by == thread), default=-1)
        return recalled[task][0] if task in recalled else None

    def enter(self, config: Config, resolution: int | None, frames: int | None) -> Scope:
        """Begin a scope; an input is left as it is where resolution or frames are None."""
        scope = Scope(config, resolution, frames, self.largest)
        scope.below = self._scope.get()
        self._scope.set(scope)
        return scope

    def leave(self, scope: Scope) -> None:
        """End a scope. Where one that was entered later is still open (generators), that one stays in force."""
        scope.open = False
        if self._scope.get() is scope:
            below = scope.below
            while below is not None and not below.open:
                below = below.below
            self._scope.set(below or self.full)
        for reference in scope.copies:
            copied = reference()
            if copied is not None:
                copied.leave_copied(scope)

    def leave_copied(self, scope: Scope) -> None:
        """End the scope in which this copy of a network was made."""
        if self._scope.get() is scope:
            self._scope.set(self.full)

    @property
    def config(self) -> Config:
        """The configuration in force; an input left as it is counts as native."""
        return self.scope.config

    @property
    def width(self) -> Width:
        """Share of the channels that are in use."""
        return self.scope.width

    def __deepcopy__(self, memo: dict[int, Any]) -> ActiveConfig:
        """A copy made within a scope runs in it as long as it is open; what is made of the copy later is its own."""
        memo[id(self)] = made = ActiveConfig(self.largest)
        scope = self.scope
        if scope is not self.full:
            made._scope.set(scope)
            scope.copies.append(weakref.ref(made))
        return made

    def __reduce__(self) -> Any:
        """What is pickled comes back outside of any scope."""
        return ActiveConfig, (self.largest,)


def graph_task() -> int:
    """The backward that runs in this thread, by its number; -1 outside of any."""
    return int(torch._C._current_graph_task_id())
