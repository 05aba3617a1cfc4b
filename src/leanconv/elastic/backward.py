"""Activations that are computed again in a backward (gradient checkpointing) have the configuration of their forward.

By then the scope of that forward has ended, and others have come. So whatever a forward returns has a hook that brings
its configuration back before the gradients pass: autograd runs what was made last first, one sub-network after the
other, however their losses were added up. What is brought back is known by the backward that it is for: it may run in
other threads than the one that has asked for it, and beside others.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch

from leanconv.dryrun.size import tensors_of
from leanconv.elastic.active import ActiveConfig, Scope, graph_task
from leanconv.errors import LeanconvError

__all__ = ["begin_forward", "begin_scope", "end_scope", "recall_in_backward"]

Recalled = tuple[Scope, int]
"""A scope that was brought back, and the thread that did it."""

_MOST = 256
"""Backwards that failed in threads of autograd's own and left a scope behind; the oldest are forgotten."""


def begin_forward(active: ActiveConfig) -> None:
    """Before a forward: raise where it is inside a backward in which its configuration is not known.

    That is so where its outputs had no history in the first one, and so no hook.
    """
    if torch.compiler.is_compiling():  # the compiler makes a graph of the recomputation, too, in the configuration
        return
    task, thread = graph_task(), threading.get_ident()
    if task == -1:
        for old in [old for old, (_, by) in list(active.recalled.items()) if by == thread]:
            active.recalled.pop(old, None)  # of a backward that has failed
    elif task not in active.recalled:
        raise LeanconvError(
            "this elastic network is computed again inside a backward, where the configuration that it had is not "
            "known: checkpoint(..., use_reentrant=True) around the network hides its outputs; pass use_reentrant=False"
        )


def begin_scope(active: ActiveConfig, scope: Scope) -> tuple[int, Recalled | None] | None:
    """Where the scope is a part of what a backward computes again, that backward and what it had recalled before."""
    if torch.compiler.is_compiling() or (task := graph_task()) == -1:
        return None
    before = active.recalled.get(task)
    active.recalled[task] = scope, threading.get_ident()
    return task, before


def end_scope(active: ActiveConfig, recalled: tuple[int, Recalled | None] | None) -> None:
    """Undo `begin_scope`."""
    if recalled is None:
        return
    task, before = recalled
    if before is None:
        active.recalled.pop(task, None)
    else:
        active.recalled[task] = before


def recall_in_backward(active: ActiveConfig, outputs: Any) -> None:
    """Have the configuration in force now again while gradients pass from `outputs` back."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    recall = partial(_recall, active, active.scope)
    for node in {tensor.grad_fn for tensor in tensors_of(outputs)}:
        if node is not None:
            node.register_prehook(recall)


def _recall(active: ActiveConfig, scope: Scope, _: Any) -> None:
    task = graph_task()
    if task not in active.recalled:
        while len(active.recalled) >= _MOST:
            active.recalled.pop(next(iter(active.recalled)), None)
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(partial(active.recalled.pop, task, None))
    active.recalled[task] = scope, threading.get_ident()
