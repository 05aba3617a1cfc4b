"""Lightning's view of a run: the objective as a LightningModule, the data as a LightningDataModule.

All sub-networks of an elastic step are inside the objective's one forward, so a distributed run needs no search for
unused parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, Protocol, cast

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from leanconv.errors import CheckpointError
from leanconv.intervals import of_share
from leanconv.train.optim import make_optimizer, rate
from leanconv.train.settings import FitSettings

__all__ = ["MID_EPOCH", "Data", "Feed", "Task"]

MID_EPOCH = "leanconv_mid_epoch"
"""The key of a checkpoint under which is what only one in the middle of an epoch has."""


class Batches(Protocol):
    """A sized iterable of (images or clips, labels)."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


class Data(Protocol):
    """What training needs of a data set; `ImageData` and `VideoData` of `leanconv.data` have it.

    `has_validation` says whether there is a part to choose by; without it an epoch is tested on the test part, and
    nothing is chosen.
    `unit` is what one of its files is called in tables and messages: image, video.
    """

    @property
    def unit(self) -> str: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def has_validation(self) -> bool: ...

    @property
    def problems(self) -> tuple[tuple[str, str], ...]: ...

    def set_epoch(self, epoch: int) -> None: ...

    def train_loader(self, *, rank: int = 0, world: int = 1) -> Batches: ...

    def val_loader(self, *, rank: int = 0, world: int = 1, limit: int | None = None) -> Batches: ...

    def train_sample_loader(self, count: int, *, rank: int = 0, world: int = 1) -> Batches: ...


class Feed(pl.LightningDataModule):
    """The share of this process; the training loader is made anew for every epoch.

    With `limit` an epoch is tested on so many files at most, drawn over all classes; with `train_sample` on so many
    training files as well, the same after every epoch.
    """

    def __init__(self, data: Data, limit: int | None = None, train_sample: int = 0) -> None:
        super().__init__()
        self.data = data
        self.limit = limit
        self.train_sample = train_sample

    def train_dataloader(self) -> Batches:
        trainer = cast(pl.Trainer, self.trainer)
        self.data.set_epoch(trainer.current_epoch)
        batches = self.data.train_loader(rank=trainer.global_rank, world=trainer.world_size)
        done = cast(Task, trainer.lightning_module).begun_with
        return Rest(batches, done) if done else batches

    def val_dataloader(self) -> list[Batches]:
        trainer = cast(pl.Trainer, self.trainer)
        share = {"rank": trainer.global_rank, "world": trainer.world_size}
        loaders = [self.data.val_loader(**share, limit=self.limit)]
        if self.train_sample:
            loaders.append(self.data.train_sample_loader(self.train_sample, **share))
        return loaders


class Rest:
    """The batches of an epoch without the first `done`, under the length of all."""

    def __init__(self, batches: Batches, done: int) -> None:
        self.batches, self.done = batches, done

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        skipping = getattr(self.batches, "after", None)  # leanconv's own need not read them
        return iter(skipping(self.done)) if skipping else islice(iter(self.batches), self.done, None)


class Task(pl.LightningModule):
    """Steps, sums and the optimizer. `train_row` and `val_accuracy` are the figures of the epoch at hand.

    `stopping` is what a checkpoint in the middle of an epoch also holds, for every process; `resumed` is this
    process's part of it where the run goes on from one.
    """

    def __init__(self, objective: nn.Module, settings: FitSettings, batches: int) -> None:
        super().__init__()
        self.objective = objective
        self.settings = settings
        self.batches = min(batches, settings.steps_per_epoch or batches)
        self.samples = 0
        self.rate = 0.0
        """The learning rate of the last step."""
        self.stopping: dict[str, Any] | None = None
        self.resumed: dict[str, Any] | None = None
        self.begun_with = 0
        """How many batches of this epoch were done before the run was resumed."""
        self._losses: dict[str, Tensor] = {}
        self._tested = torch.zeros(2, 3, dtype=torch.float64)

    def on_train_start(self) -> None:
        if self.resumed is not None:
            self.samples, self.rate = int(self.resumed["samples"]), float(self.resumed["rate"])
            self._losses = {name: total.to(self.device) for name, total in self.resumed["losses"].items()}

    def on_train_epoch_start(self) -> None:
        self.samples, self._losses = 0, {}

    def on_train_epoch_end(self) -> None:
        self.resumed, self.begun_with = None, 0

    def part_of_epoch(self) -> dict[str, Any]:
        """The figures of this epoch so far, in plain data."""
        losses = {name: total.cpu() for name, total in self._losses.items()}
        return {"samples": self.samples, "rate": self.rate, "losses": losses}

    def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
        inputs, targets = batch
        self.rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        losses: dict[str, Tensor] = self.objective(inputs, targets, self.current_epoch * self.batches + number)
        self.samples += len(inputs) * self.trainer.world_size
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0) + value.detach().double()
        return losses["loss"]

    def train_row(self) -> dict[str, float]:
        """The mean of every loss over this epoch's batches and all processes, as train_loss and train_<part>."""
        return {
            f"train_{name}": float(self.trainer.strategy.reduce(total, reduce_op="mean")) / self.batches
            for name, total in self._losses.items()
        }

    def on_validation_epoch_start(self) -> None:
        self._tested = torch.zeros(2, 3, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], number: int, dataloader_idx: int = 0) -> None:
        inputs, targets = batch
        logits = self.objective.predict(inputs).float()  # type: ignore[operator]
        self._tested[dataloader_idx] += torch.stack(
            [
                (logits.argmax(1) == targets).sum().double(),
                functional.cross_entropy(logits, targets, reduction="sum").double(),
                torch.tensor(len(targets), dtype=torch.float64, device=logits.device),
            ]
        )

    def on_validation_epoch_end(self) -> None:
        tested = self.trainer.strategy.reduce(self._tested, reduce_op="sum").tolist()
        distributed = self.trainer.world_size > 1
        for part, (correct, loss, count) in zip(("val", "sample"), tested, strict=True):
            if count:
                for name, value in (("accuracy", correct / count), ("loss", loss / count), ("count", count)):
                    double = torch.tensor(value, dtype=torch.float64)
                    self.log(f"{part}_{name}", double, logger=False, sync_dist=distributed)

    def test_row(self, metrics: dict[str, float]) -> dict[str, float]:
        """The columns of `metrics.csv` that say how the test of an epoch went."""
        interval = of_share(metrics["val_accuracy"], int(metrics["val_count"]))
        tested = {name: metrics[name] for name in ("val_loss", "val_accuracy")}
        return {**tested, "val_low": interval.low, "val_high": interval.high}

    def told(self, row: dict[str, float]) -> str:
        """The test of an epoch in a few words, from the columns of `test_row`."""
        low, high = (100 * row[f"val_{end}"] for end in ("low", "high"))
        return f"{100 * row['val_accuracy']:.2f} % ({low:.1f}-{high:.1f})"

    def configure_optimizers(self) -> Any:
        settings, steps = self.settings, math.ceil(self.batches / self.settings.accumulate)
        optimizer = make_optimizer(settings.optim, self.objective)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(settings.schedule, step, steps_per_epoch=steps, epochs=settings.epochs)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is in the middle of an epoch, where it is saved there."""
        if self.stopping is not None:
            checkpoint[MID_EPOCH] = self.stopping

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Correct the paths in the checkpoint: the run folder may have been moved since."""
        from lightning.pytorch.callbacks import ModelCheckpoint

        if MID_EPOCH in checkpoint:
            self.begun_with, self.resumed = _middle(
                checkpoint[MID_EPOCH], self.trainer.global_rank, self.trainer.world_size
            )
        for callback in self.trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and state is not None:
                checkpoint["callbacks"][callback.state_key] = _moved(state, str(callback.dirpath))


def _middle(stopped: Any, rank: int, world: int) -> tuple[int, dict[str, Any]]:
    """How many batches of its epoch a checkpoint has seen, and the part of what it holds that is this process's."""
    try:
        done, ranks = int(stopped["batch"]), list(stopped["ranks"])
        parts = [{**part, "samples": int(part["samples"]), "rate": float(part["rate"])} for part in ranks]
        wrong = done < 1 or any(not isinstance(total, Tensor) for part in parts for total in part["losses"].values())
        draws = [part["draws"] for part in parts]
    except (AttributeError, KeyError, TypeError, ValueError):
        wrong, draws = True, []
    if wrong:
        raise CheckpointError("last.ckpt: what it says of the epoch that was stopped in its middle cannot be read")
    if len(draws) != world:
        raise CheckpointError(
            f"last.ckpt: {len(draws)} processes were stopped in the middle of an epoch, and {world} cannot go on from"
            " there: resume with as many"
        )
    return done, parts[rank]


def _moved(state: dict[str, Any], folder: str) -> dict[str, Any]:
    before = str(state["dirpath"])

    def move(value: Any) -> Any:
        if isinstance(value, str) and (value == before or value.startswith(before + "/")):
            return folder + value[len(before) :]
        return {move(key): move(item) for key, item in value.items()} if isinstance(value, dict) else value

    moved: dict[str, Any] = move(state)
    return moved
