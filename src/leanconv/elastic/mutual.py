"""Mutual learning from width and resolution (Yang et al., "MutualNet"): the training step as one module.

    loss_full  = CrossEntropy(N(W_{0:1}, I_R), y)                                         (eq. 2)
    loss_sub_i = KLDiv(N(W_{0:w_i}, I_{r_i}), N(W_{0:1}, I_R))                            (eq. 3)
    loss       = loss_full + sum_i loss_sub_i                                             (eq. 4)

Sandwich rule: the widths are the largest, the smallest and `num_random` uniform ones between; the largest is trained at
the highest resolution R with labels, every other at a resolution drawn for it and this batch, with the full network's
answer, detached. As the reference implementation: temperature 1, no labels for sub-networks, all weights 1, KL summed
over classes and averaged over the batch.
Deviation: one backward for all sub-networks instead of one each, which gives the same gradients for more memory.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.elastic.net import ElasticNet
from leanconv.elastic.width import Config
from leanconv.errors import LeanconvError

__all__ = ["MutualObjective", "plan_step"]


def plan_step(
    seed: int, step: int, widths: Sequence[float], resolutions: Sequence[int], num_random: int = 2
) -> tuple[Config, ...]:
    """The configurations of one step: the teacher, then the students from wide to narrow, the narrowest last.

    A function of its arguments alone, so that every process of a distributed run draws the same.

    >>> plan_step(0, 7, (0.25, 1.0), (224, 160)) == plan_step(0, 7, (0.25, 1.0), (224, 160))
    True
    """
    draw = random.Random(f"{seed}/{step}")
    low, high = widths
    students = sorted((draw.uniform(low, high) for _ in range(num_random)), reverse=True)
    teacher = Config(float(high), max(resolutions))
    return (teacher, *(Config(width, draw.choice(list(resolutions))) for width in (*students, float(low))))


class MutualObjective(nn.Module):
    """The loss of one mutual learning step, with all its sub-networks inside one forward.

    Args:
        net: the elastic network; `objective.net` is what to save.
        num_random: random students beside the narrowest.
        seed: of the plan, together with the step.
        temperature: of teacher and students alike, the KL multiplied by its square; the paper's is 1.

    Raises `LeanconvError` for a `net` that is not elastic, fewer than 0 random students and temperatures not above 0.
    """

    def __init__(self, net: ElasticNet, *, num_random: int = 2, seed: int = 0, temperature: float = 1.0) -> None:
        super().__init__()
        if not isinstance(net, ElasticNet):
            raise LeanconvError(
                f"mutual learning trains an elastic network, got {type(net).__name__}: pass make_elastic(model)"
            )
        if not isinstance(num_random, int) or num_random < 0:
            raise LeanconvError(f"num_random must be a whole number from 0, got {num_random!r}")
        if not temperature > 0:
            raise LeanconvError(f"temperature must be above 0, got {temperature!r}")
        self.net = net
        self.num_random = num_random
        self.seed = seed
        self.temperature = float(temperature)

    def forward(self, inputs: Tensor, targets: Tensor, step: int) -> dict[str, Tensor]:
        """Images (b, c, h, w) of any size and labels (b,) to `loss`, and its parts `ce` and `kl`, detached."""
        teacher, *students = plan_step(self.seed, step, self.net.widths, self.net.resolutions, self.num_random)
        with self.net.at(*teacher):
            logits = self.net(inputs)
        ce = F.cross_entropy(logits, targets)
        wisdom = F.log_softmax(logits.detach() / self.temperature, dim=1)
        kl = ce.new_zeros(())
        for student in students:
            with self.net.at(*student):
                answer = F.log_softmax(self.net(inputs) / self.temperature, dim=1)
            kl = kl + F.kl_div(answer, wisdom, reduction="batchmean", log_target=True) * self.temperature**2
        return {"loss": ce + kl, "ce": ce.detach(), "kl": kl.detach()}

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits (b, classes) of the full network at the highest resolution.

        In evaluation its BatchNorms use the running statistics that the teacher's forwards keep during training, or
        those of a calibration after it, so that validation is honest at any moment.
        """
        with self.net.at(self.net.widths[1], self.net.resolutions[0]):
            logits: Tensor = self.net(inputs)
        return logits
