"""Mutual learning from width and resolution (Yang et al., "MutualNet"): the training step as one module.

    loss_full  = CrossEntropy(N(W_{0:1}, I_R), y)                                         (eq. 2)
    loss_sub_i = KLDiv(N(W_{0:w_i}, I_{r_i}), N(W_{0:1}, I_R))                            (eq. 3)
    loss       = loss_full + sum_i loss_sub_i                                             (eq. 4)

Sandwich rule: the widths are the largest, the smallest and `num_random` uniform ones between; the largest is trained at
the highest resolution R with labels, every other at a resolution drawn for it and this batch, with the full network's
answer, detached. As the reference implementation: temperature 1, no labels for sub-networks, all weights 1, KL summed
over classes and averaged over the batch. With one resolution it is the step of US-Net.
Deviation: one backward for all sub-networks instead of one each: equal gradients, and more memory unless `low_memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.dryrun import ModelHolder, as_module
from leanconv.elastic.net import ElasticNet
from leanconv.elastic.width import Config, Width
from leanconv.errors import LeanconvError
from leanconv.seeds import python_random

__all__ = ["MutualObjective", "part_by_part", "plan_step", "together"]


def plan_step(
    seed: int,
    step: int,
    widths: Sequence[float],
    resolutions: Sequence[int],
    num_random: int = 2,
    frames: Sequence[int] = (),
    *,
    layer_widths: bool = False,
    draw_full: bool = False,
) -> tuple[Config, ...]:
    """The configurations of one step: the teacher, then the students from wide to narrow, the narrowest last.

    A function of its arguments alone, so that every process of a distributed run draws the same. With `layer_widths`
    the random students draw a width for every layer instead of one for all; with `draw_full` the teacher, too, is at a
    resolution and number of frames that are drawn.
    """
    draw = python_random(seed, step)
    low, high = widths
    students = sorted((Width(draw.uniform(low, high)) for _ in range(num_random)), reverse=True)
    if layer_widths:
        students = [Width.by_layer(low, high, draw.getrandbits(32)) for _ in students]

    def config(width: float | Width) -> Config:
        return Config(width, draw.choice(list(resolutions)), draw.choice(list(frames)) if frames else None)

    drawn = [config(width) for width in (*students, low)]
    # Drawn last: the students are those of the same step without it.
    full = config(high) if draw_full else Config(high, max(resolutions), max(frames, default=None))
    return (full, *drawn)


class MutualObjective(nn.Module):
    """The loss of one mutual learning step, with all its sub-networks inside one forward.

    Args:
        net: the elastic network; `objective.net` is what to save.
        num_random: random students, in addition to the narrowest.
        layer_widths: draw a width for every layer of a random student (US-Net's non-uniform networks), not one for all.
        draw_full: draw the resolution (and frames) of the full network, too, which the paper tried and found worse
            (section 3.2).
        seed: of the plan, together with the step.
        temperature: of teacher and students alike, the KL multiplied by its square; the paper's is 1.
        hard_labels: share of a student's loss that is cross-entropy with the labels; the paper's is 0.
        resolutions: those to train at, of which the highest must be the network's own; default all of the network's.
            The highest alone is US-Net, and its table at the others is what the paper calls US-Net+.
        teacher: another network, whose answers to the images as they come every sub-network learns instead of the full
            network's, which learns them and the labels. It is never trained and in no state dict.
        low_memory: differentiate one sub-network after the other (`part_by_part`), for the memory of one. Not for
            sharded parameters nor float16.

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
        draw_full: bool = False,
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
        self.net, self.seed = net, seed
        self.num_random, self.layer_widths, self.draw_full = num_random, layer_widths, draw_full
        self.temperature, self.hard_labels = float(temperature), float(hard_labels)
        self.low_memory = low_memory
        self.resolutions: tuple[int, ...] | None = None
        if resolutions is not None:
            self.resolutions = tuple(sorted({net.checked(None, side).resolution for side in resolutions}, reverse=True))
            if self.resolutions[:1] != net.resolutions[:1]:
                raise LeanconvError(
                    f"resolutions to train at must include {net.resolutions[0]}, at which the full network teaches, "
                    f"got {list(resolutions)}"
                )
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
        net, sides = self.net, self.resolutions or self.net.resolutions
        options = {"layer_widths": self.layer_widths, "draw_full": self.draw_full}
        return plan_step(self.seed, step, net.widths, sides, self.num_random, net.frames, **options)

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits (b, classes) of the full network at the highest resolution.

        In evaluation its BatchNorms use the running statistics that the teacher's forwards keep during training, or
        those of a calibration after it, so that validation is honest at any moment.
        """
        return self._logits(Config(self.net.widths[1], self.net.resolutions[0]), inputs)

    def _losses(
        self, inputs: Tensor, targets: Tensor, plan: tuple[Config, ...], parts: dict[str, Tensor]
    ) -> Iterator[Tensor]:
        """The loss of each configuration of `plan` in turn; nothing of one is held once the next is asked for."""

        def add(name: str, value: Tensor) -> Tensor:
            parts[name] = parts.get(name, 0) + value.detach()
            return value

        full, *students = plan
        with torch.no_grad():
            taught = [self._log_probs(teacher(inputs)) for teacher in self._teacher]
        logits = self._logits(full, inputs)
        loss = add("ce", F.cross_entropy(logits, targets))
        teacher_log_probs = taught[0] if taught else self._log_probs(logits.detach())
        if taught:
            loss = loss + add("kl", self._distance(logits, teacher_log_probs))
        else:
            parts["kl"] = torch.zeros_like(parts["ce"])
        del logits
        yield loss
        del loss
        for student in students:
            logits = self._logits(student, inputs)
            loss = add("kl", (1 - self.hard_labels) * self._distance(logits, teacher_log_probs))
            if self.hard_labels:
                loss = loss + add("student_ce", self.hard_labels * F.cross_entropy(logits, targets))
            del logits
            yield loss
            del loss

    def _logits(self, config: Config, inputs: Tensor) -> Tensor:
        with self.net.at(*config):
            logits = self.net(inputs)
        if not isinstance(logits, Tensor):
            raise LeanconvError(
                f"the network returns {type(logits).__name__} in training, and mutual learning distils one tensor of "
                "logits: build it without its heads for training only (aux_logits=False), or write the loss yourself"
            )
        return logits

    def _log_probs(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits / self.temperature, dim=1)

    def _distance(self, logits: Tensor, teacher_log_probs: Tensor) -> Tensor:
        if logits.shape != teacher_log_probs.shape:
            raise LeanconvError(
                f"the teacher's answer has shape {tuple(teacher_log_probs.shape)}, a student's {tuple(logits.shape)}: "
                "distilling compares them number by number, so a teacher needs the same classes, and a network whose "
                "outputs follow the size of its input a single resolution"
            )
        log_probs = self._log_probs(logits)
        return F.kl_div(log_probs, teacher_log_probs, reduction="batchmean", log_target=True) * self.temperature**2

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moving or casting the objective takes the teacher along."""
        for teacher in self._teacher:
            teacher._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call, no-any-return]


def together(parts: Iterable[Tensor]) -> Tensor:
    """The sum of scalar `parts`, to be differentiated at once."""
    first, *others = parts
    return sum(others, start=first)


def part_by_part(parts: Iterable[Tensor], parameters: Iterable[nn.Parameter]) -> Tensor:
    """The sum of scalar `parts`, each differentiated by `parameters` and let go before the next one is asked for.

    Only the activations of one part are alive, for one more copy of the gradients. The caller's one `backward` hands
    the gradients over, so whatever waits for them (DistributedDataParallel, accumulation, clipping) sees one backward.
    Raises `LeanconvError` under float16 autocast, where small gradients need a scale that only the caller has.

    >>> weight = nn.Parameter(torch.tensor(3.0))
    >>> part_by_part((weight**power for power in (1, 2)), [weight]).backward()
    >>> weight.grad
    tensor(7.)
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        return together(parts)
    kind = wanted[0].device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
        raise LeanconvError(
            "low memory mode computes gradients before the loss is scaled, and in float16 small ones would vanish: "
            "use bfloat16 (precision=bf16-mixed) or set low_memory=False"
        )
    total: Tensor | None = None
    gradients: list[Tensor | None] = [None] * len(wanted)
    for part in parts:
        value = part.detach()
        total = value if total is None else total + value
        for index, found in enumerate(torch.autograd.grad(part, wanted, allow_unused=True)):
            before = gradients[index]
            # Never in place: what autograd returns may be an expanded tensor, or shared with another parameter.
            gradients[index] = found if before is None or found is None else before + found
        del part, found
    loss: Tensor = _HandedOver.apply(total, gradients, *wanted)
    return loss


class _HandedOver(torch.autograd.Function):
    """The value as it is; its derivatives by the parameters are those given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *_: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        gradients: list[Tensor | None] | None = ctx.gradients
        if gradients is None:
            raise RuntimeError("low memory mode lets the gradients go with the first backward; there is no second one")
        ctx.gradients = None
        scaled: list[Tensor | None] = []
        while gradients:  # one by one, so that there is never a second copy of them all
            found = gradients.pop(0)
            scaled.append(None if found is None else found * scale)
        return (None, None, *scaled)
