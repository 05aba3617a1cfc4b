"""Train an objective on images in a run folder that can be continued after any interruption."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from leanconv.dryrun import one_line
from leanconv.ends import EndRequest, asked_to_stop
from leanconv.errors import CheckpointError, LeanconvError, need
from leanconv.files import held
from leanconv.schema import Fault
from leanconv.train.runfolder import (
    prepare_run_folder,
    read_problems,
    read_rows,
    refuse_nothing_to_resume,
    write_problems,
)
from leanconv.train.settings import FitResult, FitSettings

if TYPE_CHECKING:
    from leanconv.train.tasks import Data

__all__ = ["fit", "is_main_process"]


def is_main_process() -> bool:
    """Whether this process is the one that writes files, in a distributed run (torchrun, SLURM, our own) or alone."""
    if "RANK" in os.environ:  # torchrun, whose ranks need not follow those of a SLURM job around it
        return int(os.environ["RANK"]) == 0
    return all(int(os.environ.get(name, "0")) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def fit(
    objective: nn.Module,
    data: Data,
    settings: FitSettings,
    out: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> FitResult:
    """Train `objective` (see `Objective`) in place on `data`, and leave a run folder at `out`.

    After every epoch it is tested on the validation part of `data`, by which `best.ckpt` is chosen. Data without such a
    part is tested on its test part; then there is no `best.ckpt`, for what is reported must not be chosen by.
    `config` is what `config.yaml` should say (default: `settings`); a resumed run must be given the same one. With
    `resume` the run continues after the last epoch that `out/last.ckpt` holds and ends, on a CPU and with as many
    threads, with the very weights of a run that was never interrupted. At the end the objective holds the last weights
    (the averaged ones with `ema`).
    The first SIGTERM or Ctrl-C stops it after the step at hand, with everything in `last.ckpt`, by `Terminated` (exit
    code 143) or `KeyboardInterrupt`; the second one ends the process.
    Raises `LeanconvError` for a folder that already holds a run or that another process writes to, and for a loss that
    is no number; `CheckpointError` for a run that cannot be resumed, `MissingExtra` without Lightning.

        fit(Classify(net), open_images("digits"), FitSettings(epochs=5), "runs/digits")
    """
    for package in ("lightning", "tensorboard"):
        if find_spec(package) is None:
            raise need(package, "train", "training")
    from leanconv.elastic import DetectionObjective
    from leanconv.train.detection import DetectionTask
    from leanconv.train.tasks import Feed, Task

    out = Path(out)
    start = time.perf_counter()
    # What can be refused without a run folder is refused here, before there is one.
    loader = data.train_loader()
    batches, _ = len(loader), len(data.val_loader())
    objective.train()
    _check(objective, data, loader, settings)
    task = (DetectionTask if isinstance(objective, DetectionObjective) else Task)(objective, settings, batches)
    main = is_main_process()
    if out.exists() and not out.is_dir():
        raise LeanconvError(f"{out}: expected a folder for the run, found a file: choose another --out")
    if main and resume:
        refuse_nothing_to_resume(out)  # before the folder is made, to hold it
    with _quiet(), held(out) if main else nullcontext(), asked_to_stop() as request:
        trainer = _trainer(settings, out, task, data, request, progress=progress)
        if main:
            checkpoint = prepare_run_folder(out, asdict(settings) if config is None else config, resume=resume)
        else:  # the first process prepares the folder for all
            checkpoint = out / "last.ckpt" if resume and (out / "last.ckpt").exists() else None
        finished = checkpoint is not None and _restore_finished(checkpoint, objective, settings)
        if not finished:
            try:
                feed = Feed(data, _limit(data, settings), settings.train_sample)
                _carry_out(trainer, task, feed, checkpoint, request)
            except _Lost as lost:
                raise LeanconvError(
                    f"process {trainer.global_rank} of {trainer.world_size} has lost another one, whose own output says"
                    f" why it ended ({lost}); " + _how_to_go_on(out, trainer, "stopped", recipe=config is not None)
                ) from lost
        if request.signal is not None:
            why = "interrupted" if request.signal == signal.SIGINT else "terminated"
            line = _how_to_go_on(out, trainer, why, recipe=config is not None)
            if main and request.unanswered:
                print(line, file=sys.stderr)
            raise request.end(line)
        return _result(out, data, start, progress and (finished or trainer.is_global_zero))


def _carry_out(trainer: Any, task: nn.Module, feed: Any, checkpoint: Path | None, request: EndRequest) -> None:
    """Train, to the end or to where a signal has stopped it."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from leanconv.train.stop import Stopped

    try:
        trainer.fit(task, datamodule=feed, ckpt_path=checkpoint, weights_only=True)
    except (Stopped, SIGTERMException):
        pass
    except SystemExit:
        if not trainer.interrupted:
            raise
        raise KeyboardInterrupt from None  # Lightning turns one into an exit of its own
    except Exception as error:
        if request.signal is None:  # otherwise it came of the end: workers, or other processes, that ended first
            if trainer.world_size > 1 and _is_of_the_connection(error):
                raise _Lost(re.sub(r"\[[^]]*:\d+\] |\. This is .*", "", one_line(error))) from error
            raise


class _Lost(Exception):
    """Another process of the run has ended, or cannot be reached."""


def _is_of_the_connection(error: Exception) -> bool:
    """Whether `error` is what gloo or NCCL say where another process does not answer any more."""
    from torch import distributed

    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _how_to_go_on(out: Path, trainer: Any, why: str, *, recipe: bool) -> str:
    """What is said of a run that something has stopped."""
    if not (out / "last.ckpt").exists():
        return f"{why} before the first step was finished, nothing to go on from"
    again = f"leanconv train --resume --out {out}" if recipe else "the same call with resume=True"
    # A signal waits for the step at hand; a process that is lost takes the steps since the last checkpoint with it.
    kept = "everything" if why != "stopped" else "the last whole epoch"
    return f"{why} in epoch {trainer.current_epoch + 1}, and {kept} is in {out / 'last.ckpt'}; to go on: {again}"


def _check(objective: nn.Module, data: Data, loader: Any, settings: FitSettings) -> None:
    """Compare network and data before anything is written, where the data say what they are, as leanconv's own do."""
    from leanconv.train.check import check_training

    size, chunks = getattr(data, "input_size", None), getattr(loader, "chunks", ())
    if size is None or not chunks or not hasattr(objective, "net"):
        return
    world = int(os.environ.get("WORLD_SIZE", settings.devices * settings.nodes))
    sample = str(getattr(data, "sample", "input"))
    classes = int(getattr(data, "num_classes", 0))
    check_training(objective, size, classes, max(len(chunks[0]) // world, 1), sample=sample)


def _limit(data: Data, settings: FitSettings) -> int | None:
    """On how many files an epoch is tested at most: as many as it trains on."""
    return None if settings.steps_per_epoch is None else settings.steps_per_epoch * data.batch_size


def _trainer(settings: FitSettings, out: Path, task: Any, data: Data, request: EndRequest, *, progress: bool) -> Any:
    """Lightning's Trainer, which keeps the best epoch where there is a part of the data to choose it by.

    `LeanconvError` for devices that this machine does not have.
    """
    import lightning.pytorch as pl
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
    from lightning.pytorch.loggers import TensorBoardLogger

    from leanconv.train.callbacks import Progress, Record, Seeds
    from leanconv.train.checkpoint_io import AtomicCheckpointIO
    from leanconv.train.stop import Stop

    # The best first: a run killed between the two repeats the epoch and writes the same best again.
    best = ModelCheckpoint(
        out, "best", monitor="val_accuracy", mode="max", save_on_train_epoch_end=True, enable_version_counter=False
    )
    last = ModelCheckpoint(out, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    record = Record(out, data, task)
    callbacks = [Seeds(settings.seed), Stop(out, request, task), record]
    callbacks += [Progress(record, settings.epochs)] if progress else []
    callbacks += [best, last] if data.has_validation else [last]
    if settings.ema is not None:
        callbacks.insert(0, EMAWeightAveraging(decay=settings.ema))
    devices, nodes = settings.devices, settings.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun, which then has started that many of us on each node
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    try:
        trainer = pl.Trainer(
            accelerator=settings.accelerator,
            devices=devices,
            num_nodes=nodes,
            precision=cast(Any, settings.precision),
            max_epochs=settings.epochs,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip,
            limit_train_batches=settings.steps_per_epoch,
            callbacks=callbacks,
            logger=TensorBoardLogger(out, name="tensorboard", version=""),
            default_root_dir=out,  # where Lightning looks for what it saves under SLURM, not the working folder
            plugins=[AtomicCheckpointIO()],
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            inference_mode=False,
        )
    except (MisconfigurationException, RuntimeError) as error:
        raise LeanconvError(
            f"cannot train with accelerator={settings.accelerator}, devices={settings.devices}, nodes={settings.nodes}:"
            f" {' '.join(str(error).split())}"
        ) from error
    if trainer.precision != settings.precision:
        raise LeanconvError(
            f"precision={settings.precision} is not possible on a CPU, which has no float16: use bf16-mixed or 32-true"
        )
    return trainer


def _restore_finished(checkpoint: Path, objective: nn.Module, settings: FitSettings) -> bool:
    """Whether the checkpoint is of a finished run; if so, load its weights. `CheckpointError` if they do not fit."""
    from leanconv.train.checkpoint_io import read_checkpoint
    from leanconv.train.checkpoint_schema import check_optimizer
    from leanconv.train.optim import make_optimizer
    from leanconv.train.tasks import MID_EPOCH

    content = read_checkpoint(checkpoint)
    prefix = "objective."
    weights = {name.removeprefix(prefix): value for name, value in content["state_dict"].items()}
    mine = objective.state_dict()
    wrong = sorted(weights.keys() ^ mine.keys()) or [
        name for name, value in weights.items() if value.shape != mine[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"{checkpoint}: its weights are not those of this network ({len(wrong)} differ, the first is {wrong[0]}):"
            " resume with the network that the run was started with"
        )
    if content["epoch"] + 1 < settings.epochs or MID_EPOCH in content:
        try:
            check_optimizer(content, make_optimizer(settings.optim, objective))
        except Fault as error:
            raise CheckpointError(f"{checkpoint}: not a checkpoint of this run: {error}") from error
        return False
    objective.load_state_dict(weights)
    return True


def _result(out: Path, data: Data, start: float, progress: bool) -> FitResult:
    history = read_rows(out / "metrics.csv")
    if not history:
        raise LeanconvError(f"{out}: the run left no metrics.csv, it cannot have finished an epoch")
    best = max(history, key=lambda row: (row["val_accuracy"], -row["epoch"])) if data.has_validation else None
    if data.problems:
        write_problems(out, data.problems, data.unit)
    problems = read_problems(out)
    if problems:
        path = out / "problems.csv"
        if progress:
            name, reason = problems[0]
            count, verb = (f"1 {data.unit}", "was") if len(problems) == 1 else (f"{len(problems)} {data.unit}s", "were")
            print(f"{count} could not be read and {verb} skipped, see {path}; the first: {name}: {reason}")
    return FitResult(
        out=out,
        epochs=len(history),
        accuracy=history[-1]["val_accuracy"],
        part="validation" if data.has_validation else "test",
        best_accuracy=None if best is None else best["val_accuracy"],
        best_epoch=None if best is None else int(best["epoch"]),
        seconds=time.perf_counter() - start,
        history=tuple(history),
        problems=problems,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes and advice off the terminal; its errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in (
                r"Checkpoint directory .* exists and is not empty",
                r"GPU available but not used",
                r"You passed `Trainer\(accelerator='cpu', precision='16-mixed'\)`",
                r"The '\w+_dataloader' does not have many workers",
                r"Found \d+ module\(s\) in eval mode at the start of training",  # frozen norms
                r"You're resuming from a checkpoint that ended before the epoch ended",  # `Feed` goes on in its middle
                r"`isinstance\(treespec, LeafSpec\)` is deprecated",
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
