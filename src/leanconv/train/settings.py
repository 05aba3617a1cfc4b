"""Everything about a run that is not the network or the data, in one frozen record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from leanconv.errors import LeanconvError, unknown
from leanconv.train.optim import OptimSettings, ScheduleSettings

__all__ = ["FitResult", "FitSettings"]

_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
_ACCELERATORS = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class FitSettings:
    """How to train.

    `precision` is 32-true, bf16-mixed or 16-mixed; `ema` the decay of an exponential moving average of the weights
    (None for none; the averaged weights are then the ones tested and kept); `accumulate` batches make one optimizer
    step; `clip` bounds the norm of the gradient; `steps_per_epoch` cuts every epoch, and every test, short (for trying
    things out), each to a sample drawn over all classes. With `train_sample` every epoch is also tested on so many
    training images, without augmentation and the same ones each time (`train_accuracy` in `metrics.csv`). `devices` and
    `nodes` count processes of a distributed run;
    each process must see the same data.
    """

    epochs: int = 10
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    seed: int = 0
    precision: str = "32-true"
    ema: float | None = None
    accumulate: int = 1
    clip: float | None = None
    steps_per_epoch: int | None = None
    train_sample: int = 0
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise unknown("precision", self.precision, _PRECISIONS)
        if self.accelerator not in _ACCELERATORS:
            raise unknown("accelerator", self.accelerator, _ACCELERATORS)
        for name in ("epochs", "accumulate", "devices", "nodes", "steps_per_epoch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise LeanconvError(f"{name} must be at least 1, got {value}")
        if self.train_sample < 0:
            raise LeanconvError(f"train_sample is a number of training images, 0 for none, got {self.train_sample}")
        if self.seed < 0:
            raise LeanconvError(f"seed must not be negative, got {self.seed}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise LeanconvError(f"ema is a decay between 0 and 1 (or null for none), got {self.ema}")
        if self.clip is not None and not self.clip > 0:
            raise LeanconvError(f"clip must be a positive norm (or null for none), got {self.clip}")


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a run came to; `history` holds the rows of `metrics.csv`, one per epoch.

    `accuracy` is that of the last epoch, on the `part` of the data that epochs were tested on, validation or test; the
    best epoch is None where there is no validation part to choose it by.
    """

    out: Path
    epochs: int
    part: str
    accuracy: float
    best_accuracy: float | None
    best_epoch: int | None
    seconds: float
    history: tuple[dict[str, float], ...]
    problems: tuple[tuple[str, str], ...] = ()
