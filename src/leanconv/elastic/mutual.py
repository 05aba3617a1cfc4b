"""Mutual learning from width and resolution (Yang et al., "MutualNet"): the training step as one module.

    loss_full  = CrossEntropy(N(W_{0:1}, I_R), y)                                         (eq. 2)
    loss_sub_i = KLDiv(N(W_{0:w_i}, I_{r_i}), N(W_{0:1}, I_R))                            (eq. 3)
    loss       = loss_full + sum_i loss_sub_i                                             (eq. 4)

Sandwich rule: the widths are the largest, the smallest and `num_random` uniform ones between; the largest is trained at
the highest resolution R with labels, every other at a resolution drawn for it and this batch, with the full network's
answer, detached. As the reference implementation: temperature 1, no labels for sub-networks, all weights 1, KL summed
over classes and averaged over the batch. With one resolution it is the step of US-Net.
Deviation: one backward for all sub-networks instead of one each, which gives the same gradients for more memory;
`low_memory` is the other way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.dryrun import ModelHolder, as_module
from leanconv.elastic.backward import part_by_part, together
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.width import Config, LayerWidths
from leanconv.errors import LeanconvError

__all__ = ["MutualObjective", "plan_step"]


def plan_step(
    seed: int,
    step: int,
    widths: Sequence[float],
    resolutions: Sequence[int],
    num_random: int = 2,
    frames: Sequence[int] = (),
    *,
    layer_widths: bool = False,
) -> tuple[Config, ...]:
    """The configurations of one step: the teacher, then the students from wide to narrow, the narrowest last.

    A function of its arguments alone, so that every process of a distributed run draws the same. With `layer_widths`
    the random students draw a width for every layer instead of one for all.

    >>> plan_step(0, 7, (0.25, 1.0), (224, 160)) == plan_step(0, 7, (0.25, 1.0), (224, 160))
    True
    """
    draw = random.Random(f"{seed}/{step}")
    low, high = widths
    students: list[float] = sorted((draw.uniform(low, high) for _ in range(num_random)), reverse=True)
    if layer_widths:
        students = [LayerWidths(low, high, draw.getrandbits(32)) for _ in students]
    clips: list[int | None] = list(frames) or [None]
    teacher = Config(float(high), max(resolutions), max(frames, default=None))
    return (
        teacher,
        *(
            Config(width, draw.choice(list(resolutions)), draw.choice(clips) if frames else None)
            for width in (*students, float(low))
        ),
    )


class MutualObjective(nn.Module):
    """The loss of one mutual learning step, with all its sub-networks inside one forward.

    Args:
        net: the elastic network; `objective.net` is what to save.
        num_random: random students beside the narrowest.
        layer_widths: draw a width for every layer of a random student (US-Net's non-uniform networks) instead of one
            for the whole network, which is the paper's way.
        seed: of the plan, together with the step.
        temperature: of teacher and students alike, the KL multiplied by its square; the paper's is 1.
        hard_labels: share of a student's loss that is cross-entropy with the labels, the rest being distillation;
            the paper's is 0.
        resolutions: those to train at, of which the highest must be the network's own; default all of the network's.
            The highest alone is US-Net, and its table at the others is what the paper calls US-Net+.
        teacher: another network, whose answers to the images as they come every sub-network learns instead of the full
            network's; the full network learns them beside the labels. It is put in evaluation mode, is never trained
            and is in no state dict.
        low_memory: differentiate one sub-network after the other (`backward.part_by_part`), for the memory of one and
            equal gradients. Not for sharded parameters nor float16.

    Raises `LeanconvError` for a `net` that is not elastic, and for options outside their range.
    """

    def __init__(
        self,
        net: ElasticNet,
        *,
        num_random: int = 2,
        seed: int = 0,
        temperature: float = 1.0,
        hard_labels: float = 0.0,
        resolutions: Sequence[int] | None = None,
        teacher: nn.Module | ModelHolder | None = None,
        low_memory: bool = False,
        layer_widths: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(net, ElasticNet):
            raise LeanconvError(
                f"mutual learning trains an elastic network, got {type(net).__name__}: pass make_elastic(model)"
            )
        if not isinstance(num_random, int) or num_random < 0:
            raise LeanconvError(f"num_random must be a whole number from 0, got {num_random!r}")
        if not temperature > 0:
            raise LeanconvError(f"temperature must be above 0, got {temperature!r}")
        if not 0 <= hard_labels <= 1:
            raise LeanconvError(f"hard_labels is a share from 0 to 1, got {hard_labels!r}")
        self.net = net
        self.num_random = num_random
        self.seed = seed
        self.temperature = float(temperature)
        self.hard_labels = float(hard_labels)
        self.low_memory = low_memory
        self.layer_widths = layer_widths
        self.resolutions = None if resolutions is None else _checked(net, resolutions)
        # In a tuple it is no submodule: not optimized, not synchronised, not saved.
        self._teacher: tuple[nn.Module, ...] = () if teacher is None else (as_module(teacher).eval(),)

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """Images (b, c, h, w) of any size and labels (b,) to `loss`, and its parts, detached.

        The parts are `ce` of the full network, `kl` of all that is distilled, and `student_ce` where `hard_labels` is
        above 0; they add up to the loss.
        """
        parts: dict[str, Tensor] = {}
        losses = self._losses(inputs, targets, self.plan(step), parts)
        loss = part_by_part(losses, self.net.parameters()) if self.low_memory else together(losses)
        return {"loss": loss, **parts}

    def plan(self, step: int) -> tuple[Config, ...]:
        """The configurations that `step` trains, the full network first."""
        net = self.net
        return plan_step(
            self.seed,
            step,
            net.widths,
            self.resolutions or net.resolutions,
            self.num_random,
            frames=net.frames,
            layer_widths=self.layer_widths,
        )

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits (b, classes) of the full network at the highest resolution.

        In evaluation its BatchNorms use the running statistics that the teacher's forwards keep during training, or
        those of a calibration after it, so that validation is honest at any moment.
        """
        with self.net.at(self.net.widths[1], self.net.resolutions[0]):
            logits: Tensor = self.net(inputs)
        return logits

    def _losses(
        self, inputs: Tensor, targets: Tensor, plan: tuple[Config, ...], parts: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """The loss of each configuration of `plan` in turn; nothing of one is held once the next is asked for."""

        def told(name: str, value: Tensor) -> Tensor:
            parts[name] = parts.get(name, 0) + value.detach()
            return value

        full, *students = plan
        wisdom = self._soft(self._taught(inputs)) if self._teacher else None
        logits = self._answer(full, inputs)
        loss = told("ce", F.cross_entropy(logits, targets))
        if wisdom is None:
            wisdom = self._soft(logits.detach())
            parts["kl"] = torch.zeros_like(parts["ce"])
        else:
            loss = loss + told("kl", self._distance(logits, wisdom))
        del logits
        yield loss
        del loss
        for student in students:
            logits = self._answer(student, inputs)
            loss = told("kl", (1 - self.hard_labels) * self._distance(logits, wisdom))
            if self.hard_labels:
                loss = loss + told("student_ce", self.hard_labels * F.cross_entropy(logits, targets))
            del logits
            yield loss
            del loss

    def _answer(self, config: Config, inputs: Tensor) -> Tensor:
        with self.net.at(*config):
            logits: Tensor = self.net(inputs)
        return logits

    def _taught(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = self._teacher[0](inputs)
        return logits

    def _soft(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits / self.temperature, dim=1)

    def _distance(self, logits: Tensor, wisdom: Tensor) -> Tensor:
        if logits.shape != wisdom.shape:
            raise LeanconvError(
                f"the teacher's answer has shape {tuple(wisdom.shape)}, a student's {tuple(logits.shape)}: distilling "
                "compares them number by number, so a teacher needs the same classes, and a network whose outputs "
                "follow the size of its input a single resolution"
            )
        return F.kl_div(self._soft(logits), wisdom, reduction="batchmean", log_target=True) * self.temperature**2

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moving or casting the objective takes the teacher along."""
        for teacher in self._teacher:
            teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


def _checked(net: ElasticNet, resolutions: Sequence[int]) -> tuple[int, ...]:
    chosen = tuple(net.checked(net.widths[1], resolution).resolution for resolution in resolutions)
    if not chosen or max(chosen) != net.resolutions[0]:
        raise LeanconvError(
            f"resolutions to train at must include {net.resolutions[0]}, at which the full network teaches, got "
            f"{list(chosen)}"
        )
    return tuple(sorted(set(chosen), reverse=True))
