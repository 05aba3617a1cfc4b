"""The run itself: one forward of a copy on fake tensors, in which nothing is computed and nothing big is allocated."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from leanconv.dryrun.copies import fake_copy
from leanconv.dryrun.failures import failure, quiet
from leanconv.dryrun.size import Size, arguments, check_count, check_sizes, fake_input, tensors_of
from leanconv.dryrun.stack import ModuleStack
from leanconv.errors import LeanconvError

__all__ = ["DryRun", "Ran", "as_written", "running"]


class Ran(NamedTuple):
    """What a run gave: the outputs (fake), the shapes of all tensors in them, and the calls of `ModuleStack`."""

    outputs: Any
    shapes: tuple[tuple[int, ...], ...]
    calls: Counter[str]


class DryRun:
    """A model made ready to be run without computing.

    Args:
        model: any network, on any device; it is copied and stays as it was.
        size: shape of one input without the batch axis, or a list of shapes, see `leanconv.dryrun.size`.
        batch: how many inputs at once.
        training: the mode of the run: False evaluation, True training, None as each module is.
        error: the class of what is raised where the model cannot be followed.

    Attributes:
        model: the copy, whose tensors are fake ones of `fake_mode`.
        arguments: what the forward is given, fake batches of `size`.
        inputs: the tensors among them.
        stack: which modules run, and hooks for who wants to look, see `ModuleStack`.

    >>> ran = DryRun(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), (3, 32, 32)).run()
    >>> ran.shapes, list(ran.calls)
    (((2, 8, 30, 30),), ['', '0', '1'])
    """

    def __init__(
        self,
        model: nn.Module,
        size: Size,
        *,
        batch: int = 2,
        training: bool | None = False,
        error: type[LeanconvError] = LeanconvError,
    ) -> None:
        self.size = check_sizes(size)
        self.batch = check_count(batch, "batch")
        self.error = error
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.model = fake_copy(model, self.fake_mode, error=error)
        if training is not None:
            self.model.train(training)
        self.stack = ModuleStack(self.model)
        with self.fake_mode:
            self.arguments = arguments(
                self.model, self.size, lambda shape: fake_input(self.model, shape, batch=self.batch)
            )
        self.inputs = tensors_of(self.arguments)

    def run(self, *modes: AbstractContextManager[Any]) -> Ran:
        """Run the copy once, within `modes`: dispatch modes see ATen operators, function modes torch's functions.

        Raises `error` where the forward reads values or fails, see `failures`; an error of ours passes as it is.
        """
        with ExitStack() as scope:
            contexts: list[AbstractContextManager[Any]]
            contexts = [torch.no_grad(), _announced(), quiet(), _eager(), as_written()]
            contexts += [self.fake_mode, self.stack, *modes]
            for context in contexts:
                scope.enter_context(context)
            try:
                outputs = self.model(*self.arguments)
            except Warning:  # raised only where the caller asked for it
                raise
            except Exception as error:
                told = failure(error, self.model, self.size, module=self.stack.path_of(error), kind=self.error)
                if told is error:
                    raise
                raise told from error
        return Ran(outputs, tuple(tuple(tensor.shape) for tensor in tensors_of(outputs)), self.stack.calls)


_RUNNING: ContextVar[bool] = ContextVar("leanconv_dry_run", default=False)


def running() -> bool:
    """Whether a dry run is at work, so that values play no part: statistics that were never measured are not missed."""
    return _RUNNING.get()


@contextmanager
def _announced() -> Iterator[None]:
    token = _RUNNING.set(True)
    try:
        yield
    finally:
        _RUNNING.reset(token)


@contextmanager
def _eager() -> Iterator[None]:
    """Run compiled parts as they are written; where the compiler was never loaded, there is none, and it stays so."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def as_written() -> Iterator[None]:
    """Run transformer layers as their forward is written: the one operator that torch has for some of them in
    evaluation hides the layers inside, and is not there in training, on all devices, or for all options."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
