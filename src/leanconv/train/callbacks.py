"""What happens around an epoch: seeds before it; figures, files and a line on the terminal after it."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch

from leanconv.intervals import of_share
from leanconv.train.runfolder import read_rows, write_problems, write_rows
from leanconv.train.tasks import Data, Task

__all__ = ["Progress", "Record", "Seeds"]


class Seeds(pl.Callback):
    """Seed every generator at the start of an epoch from (seed, epoch, process).

    What an epoch draws (dropout, say) then does not depend on what ran before it in this process, so a resumed run
    draws the same. NumPy mixes these seeds, not `leanconv.seeds`: another mix would change the runs that are resumed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        sequence = np.random.SeedSequence((self.seed, trainer.current_epoch, trainer.global_rank))
        number = int(sequence.generate_state(1, np.uint32)[0])
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)


class Record(pl.Callback):
    """One row per epoch to `metrics.csv` and TensorBoard, what could not be read to `problems.csv`.

    A row is what was at the end of its epoch: the steps done, the rate of the last of them, the accuracies of the
    weights after it, those on a fixed sample of the training part (`train_accuracy`) where one is asked for. Losses in
    training (`train_loss`) are means over the epoch's steps, each of the weights that it began with.

    The file is rewritten whole, with the rows before this epoch and this one, so a resumed run leaves the file that an
    uninterrupted one leaves, times apart.
    """

    def __init__(self, out: Path, data: Data, task: Task) -> None:
        self.task = task
        self.out = out
        self.data = data
        self.row: dict[str, float] = {}
        self.samples = {"video": "clips"}.get(data.unit, f"{data.unit}s")
        self.part = "val" if data.has_validation else "test"
        self._start = 0.0
        self._training = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start = time.perf_counter()  # also in the middle of an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._training = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        losses = self.task.train_row()
        epoch = trainer.current_epoch + 1
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.row = {
            "epoch": epoch,
            "step": trainer.global_step,
            "lr": self.task.rate,
            **losses,
            **self.task.test_row(metrics),
            **self._on_training_sample(metrics),
            "seconds": round(time.perf_counter() - self._start, 3),
            f"{self.samples}_per_second": round(self.task.samples / max(self._training, 1e-9), 1),
        }
        if not trainer.is_global_zero:
            return
        path = self.out / "metrics.csv"
        write_rows(path, [*(row for row in read_rows(path) if row["epoch"] < epoch), self.row])
        for logger in trainer.loggers:
            logger.log_metrics({key: value for key, value in self.row.items() if key != "step"}, trainer.global_step)
        self._note_problems()

    @staticmethod
    def _on_training_sample(metrics: Mapping[str, float]) -> dict[str, float]:
        if "sample_accuracy" not in metrics:
            return {}
        accuracy = metrics["sample_accuracy"]
        low, high = of_share(accuracy, int(metrics["sample_count"]))
        return {"train_accuracy": accuracy, "train_low": low, "train_high": high}

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero:  # a run that goes on in the middle of the epoch does not read these files again
            self._note_problems()

    def _note_problems(self) -> None:
        if self.data.problems:
            write_problems(self.out, self.data.problems, self.data.unit)


class Progress(pl.Callback):
    """A line per epoch; on a terminal also a bar for the epoch at hand, elsewhere a line every half minute.

    After `Record` in the list of callbacks.
    """

    every = 30.0
    """Seconds between two lines of an epoch."""

    def __init__(self, record: Record, epochs: int) -> None:
        self.record = record
        self.epochs = epochs
        self._bar: Any = None
        self._task: Any = None
        self._began = self._said = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._said = self._began = time.perf_counter()
        if not trainer.is_global_zero or not sys.stdout.isatty():
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), transient=True)
        self._bar.start()
        if self.record.task.resumed is not None:
            self.on_train_epoch_start(trainer, module)

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._began, task = time.perf_counter(), self.record.task
        if self._bar is not None:
            name = f"epoch {trainer.current_epoch + 1}/{self.epochs}"
            self._task = self._bar.add_task(name, total=task.batches, completed=task.begun_with, note="")

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, number: int
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=1)
        elif trainer.is_global_zero and (now := time.perf_counter()) - self._said >= self.every:
            self._say_where(trainer, outputs, number + 1, now)

    def _say_where(self, trainer: pl.Trainer, outputs: Any, done: int, now: float) -> None:
        """Step, loss, rate and remaining time, for who reads a log."""
        self._said, batches = now, self.record.task.batches
        left = (
            (now - self._began)
            / (done - self.record.task.begun_with)
            * (batches * (self.epochs - trainer.current_epoch) - done)
        )
        loss = float(outputs["loss"] if isinstance(outputs, Mapping) else outputs)
        rate = trainer.optimizers[0].param_groups[-1]["lr"]
        print(
            f"epoch {trainer.current_epoch + 1}/{self.epochs}  {done}/{batches}  loss {loss:.4f}  rate {rate:.2g}  "
            f"{_duration(left)} left",
            flush=True,
        )

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note="testing")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        row = self.record.row
        line = (  # within 60 columns; the speed is in metrics.csv
            f"epoch {row['epoch']}/{self.epochs}  loss {row['train_loss']:.4f}  {self.record.part}"
            f" {self.record.task.told(row)}  {row['seconds']:.1f} s"
        )
        if self._bar is None:
            print(line, flush=True)
        else:
            self._bar.remove_task(self._task)
            self._bar.console.print(line, highlight=False)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _duration(seconds: float) -> str:
    """In the unit in which a person would wait."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
