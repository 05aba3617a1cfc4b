"""Where training ends before its end: a signal has asked for it, or the loss is no number.

A signal is answered after the step at hand, by all processes after the same one. `last.ckpt` then holds the state in
the middle of the epoch, with everything that the rest of it depends on, so that a resumed run ends with the very
weights of one that was never stopped. A signal during the test after an epoch is answered when the epoch is finished.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from leanconv.ends import EndRequest
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.ranks import rank_and_world
from leanconv.train.tasks import Task

__all__ = ["Stop", "Stopped"]


class Stopped(Exception):
    """Training has been stopped as it was asked to; its text says where."""


class Stop(pl.Callback):
    """Ends training by `Stopped` after a step at which `request` has a signal, by `LeanconvError` where a loss is none.

    The last of the callbacks.
    """

    look_every = 20
    """Steps between two looks at the losses of a GPU, which has to finish for one."""

    def __init__(self, out: Path, request: EndRequest, task: Task) -> None:
        self.out, self.request, self.task = out, request, task
        self._first_bad: Tensor | None = None
        self._rates: dict[int, float] = {}
        self._between = False

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.request.handle_again()  # Lightning's own handler would talk to the other processes wherever they are
        if self.task.resumed is not None:
            restore_draws(self.task.resumed["draws"])

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, number: int) -> None:
        self._between = False
        self._rates[number] = trainer.optimizers[0].param_groups[-1]["lr"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        last = number + 1 == self.task.batches
        whole = (number + 1) % trainer.accumulate_grad_batches == 0
        asked = float(self.request.signal or 0)
        bad = self._bad_step(trainer, outputs, number, last)
        if trainer.world_size > 1:
            signs = torch.tensor([asked, -bad], device=module.device)
            asked, bad = trainer.strategy.reduce(signs, reduce_op="max").tolist()
            bad = -bad
        if math.isfinite(bad):
            raise self._no_number(trainer, int(bad))
        if asked and whole and not last:
            self.request.signal = signal.Signals(int(asked))  # also where it came to another process
            self._save(trainer, number + 1)
            raise Stopped(f"after step {number + 1} of {self.task.batches} of epoch {trainer.current_epoch + 1}")
        self._between = whole and not last

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._between = False
        self._rates.clear()
        name = next((name for name, p in module.named_parameters() if not torch.isfinite(p).all()), None)
        if name is not None:
            raise LeanconvError(
                f"epoch {trainer.current_epoch + 1}: after its last step {name.removeprefix('objective.')} holds"
                f" numbers that are not finite; {self._advice(trainer)}"
            )
        asked = torch.tensor(float(self.request.signal or 0), device=module.device)
        asked = trainer.strategy.reduce(asked, reduce_op="max")
        if int(asked):
            self.request.signal, trainer.should_stop = signal.Signals(int(asked)), True

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """A signal to the whole process group also ends the workers, and the next batch never comes."""
        early = self._between and not isinstance(exception, Stopped)
        if early and self.request.signal is not None and trainer.world_size == 1:
            self._save(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _bad_step(self, trainer: pl.Trainer, outputs: Any, number: int, last: bool) -> float:
        """The first step of this epoch whose loss is no number, as far as it is known by now; infinity for none."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss.device.type == "cpu" or trainer.world_size > 1:
            return math.inf if math.isfinite(float(loss)) else number
        if self._first_bad is None or number == 0:
            self._first_bad = torch.full((), math.inf, device=loss.device)
        self._first_bad = torch.where(torch.isfinite(loss), self._first_bad, self._first_bad.clamp(max=number))
        return float(self._first_bad) if last or number % self.look_every == 0 else math.inf

    def _no_number(self, trainer: pl.Trainer, number: int) -> LeanconvError:
        rate = self._rates.get(number, math.nan)
        return LeanconvError(
            f"epoch {trainer.current_epoch + 1}, step {number + 1} of {self.task.batches}: the training loss is not a"
            f" finite number (learning rate {rate:.3g}), so the weights are lost; {self._advice(trainer)}"
        )

    def _advice(self, trainer: pl.Trainer) -> str:
        kept, steps = self.out / "last.ckpt", self.task.begun_with
        at = (
            f"step {steps} of epoch {trainer.current_epoch + 1}"
            if steps
            else f"the end of epoch {trainer.current_epoch}"
        )
        good = f"{kept} holds the last good state, {at}" if kept.exists() else "there is no checkpoint yet"
        return f"lower optim.lr, add schedule.warmup_epochs or set clip; {good}"

    def _save(self, trainer: pl.Trainer, done: int) -> None:
        """The state after `done` steps of the epoch, in `last.ckpt`."""
        self.task.stopping = {"batch": done, "ranks": _of_all(self.task.part_of_epoch() | {"draws": draws()})}
        try:
            trainer.save_checkpoint(self.out / "last.ckpt")
        finally:
            self.task.stopping = None


def draws() -> dict[str, Any]:
    """The state of every generator of this process, in plain data."""
    kind, words, *others = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": random.getstate(),
        "numpy": (kind, [int(word) for word in words], *others),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def restore_draws(state: Mapping[str, Any]) -> None:
    """Put every generator into a state that `draws` gave."""
    try:
        random.setstate(state["python"])
        kind, words, *others = state["numpy"]
        np.random.set_state((kind, np.array(words, dtype=np.uint32), *others))
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"last.ckpt: the state of its random generators cannot be restored: {error}") from error


def _of_all(mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What every process has, by rank."""
    world = rank_and_world()[1]
    if world == 1:
        return [mine]
    found: list[Any] = [None] * world
    dist.all_gather_object(found, mine)
    return found
