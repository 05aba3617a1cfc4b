"""Activations that are computed again in a backward (gradient checkpointing) have the configuration of their forward.

By then the scope of that forward has ended, and others have come. So whatever a forward returns has a hook that brings
its configuration back before the gradients pass: autograd runs what was made last first, one sub-network after the
other, however their losses were added up.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from leanconv.dryrun.size import tensors_of
from leanconv.elastic.width import ActiveConfig, Asked
from leanconv.errors import LeanconvError

__all__ = ["begin_forward", "in_backward", "recall_in_backward"]


def begin_forward(active: ActiveConfig) -> None:
    """Before a forward: forget what a backward that failed has left, and raise where the configuration is not known.

    That is so for a forward inside a backward whose outputs had no history, and so no hook, in the first one.
    """
    if torch.compiler.is_compiling():  # the compiler makes a graph of the recomputation, too, in the configuration
        return
    if not in_backward():
        active.recalled = None
    elif active.recalled is None:
        raise LeanconvError(
            "this elastic network is computed again inside a backward, where the configuration that it had is not "
            "known: checkpoint(..., use_reentrant=True) around the network hides its outputs; pass use_reentrant=False"
        )


def recall_in_backward(active: ActiveConfig, outputs: Any) -> None:
    """Have the configuration in force now again while gradients pass from `outputs` back."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    recall = partial(_recall, active, active.asked)
    for node in {tensor.grad_fn for tensor in tensors_of(outputs)}:
        if node is not None:
            node.register_prehook(recall)


def _recall(active: ActiveConfig, asked: Asked, _: Any) -> None:
    if active.recalled is None:
        engine: Any = torch.autograd.Variable._execution_engine
        engine.queue_callback(partial(setattr, active, "recalled", None))
    active.recalled = asked


def in_backward() -> bool:
    """Whether gradients are on their way at this moment."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
