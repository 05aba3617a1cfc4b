"""The dense kernel that the stages of a plan stand for, and the stage weights that come nearest to a dense kernel.

Pure functions of a plan and tensors; weights are lists of (C_out, C_in / groups, *K), one for each stage.

Fitting, by least squares. One stage: the answer is the kernel's own block diagonal.

Two stages whose slots are wired one to one: the dense kernel falls into g_2 x g_1 blocks (the outputs of one secondary
group, the inputs of one primary group), each of them a sum over the few channels that run from that primary group to
that secondary group and over nothing else. So every block is a low-rank approximation on its own, and the truncated
singular value decomposition of the blocks is the global optimum.

Anything else (more stages, slots that repeat): the kernel is linear in each stage's weights with the others held, so
the stages are solved in turn by conjugate gradients on the normal equations: a local optimum, started from the tensor
train of the kernel.

Kernels of stages that convolve the same axis are not fitted: convolved with each other they have many local optima, and
no start that we tried is good for all (from half of the kernel missed to none, on kernels that the chain can express).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leanconv.errors import PlanError
from leanconv.ops.operator import CONVOLVE
from leanconv.plan import Plan
from leanconv.spec import ConvSpec

__all__ = ["compose", "project", "relative_error", "weight_shape"]

_SWEEPS = 200  # kernels that a chain can express exactly are reached slowly; others stop long before
_CG_STEPS = 8
_WORTHWHILE = 0.999  # another sweep must take at least a thousandth off the distance


def behind(kernel: Tensor, after: Tensor) -> Tensor:
    """The dense kernel (O, I, *K) of a convolution by `kernel` (M, I, *K1) and one by `after` (O, M, *K2) behind it.

    K is K1 + K2 - 1: where both have several taps along an axis, the kernels are convolved with each other.
    """
    ndim = kernel.ndim - 2
    if any(min(a, b) > 1 for a, b in zip(after.shape[2:], kernel.shape[2:], strict=True)):
        ends = [size - 1 for size in after.shape[2:]]
        return CONVOLVE[ndim](kernel.transpose(0, 1), after.flip(*range(2, after.ndim)), padding=ends).transpose(0, 1)
    product = torch.einsum("omb,mia->oiba", after.flatten(2), kernel.flatten(2))
    product = product.reshape(*product.shape[:2], *after.shape[2:], *kernel.shape[2:])
    axes = [2 + axis + part * ndim for axis in range(ndim) for part in (0, 1)]
    sizes = [a * b for a, b in zip(after.shape[2:], kernel.shape[2:], strict=True)]
    return product.permute(0, 1, *axes).reshape(*product.shape[:2], *sizes)


def compose(plan: Plan, weights: Sequence[Tensor]) -> Tensor:
    """The dense kernel (C_out, C_in, *K) of `plan` with these stage weights; differentiable in them."""
    kernel: Tensor | None = None
    for index, (stage, weight) in enumerate(zip(plan.stages, weights, strict=True)):
        dense = _block_diagonal(weight, stage.conv.groups)
        if kernel is None:
            kernel = dense[:, : plan.spec.in_channels]
        else:
            kernel = behind(kernel, dense)
        kernel = kernel[list(plan.wiring(index))]
    assert kernel is not None  # a plan has at least one stage
    return kernel


@torch.no_grad()
def project(plan: Plan, kernel: Tensor) -> list[Tensor]:
    """The stage weights whose composed kernel is nearest to `kernel` (C_out, C_in, *K); float32 or wider.

    Raises `PlanError` where several stages convolve the same axis.
    """
    for axis in range(plan.spec.ndim):
        if sum(stage.conv.kernel_size[axis] > 1 for stage in plan.stages) > 1:
            raise PlanError(
                f"{plan}: several stages convolve axis {axis}, and such a chain is not fitted to a kernel: draw its"
                " weights with init='fresh'"
            )
    target = kernel.detach().to(torch.promote_types(kernel.dtype, torch.float32))
    stages = plan.stages
    if len(stages) == 1:
        return [_diagonal(_on_slots(plan, target), stages[0].conv.groups)]
    if len(stages) == 2 and _one_to_one(plan):
        return _two_stages(plan, target)
    return _alternate(plan, target)


@torch.no_grad()
def relative_error(plan: Plan, weights: Sequence[Tensor], kernel: Tensor) -> float:
    """||W - W'|| / ||W|| of the kernel W and the one W' that `weights` compose; 0 for a kernel of zeros."""
    target = kernel.detach().to(torch.promote_types(kernel.dtype, torch.float32))
    norm = target.norm()
    if norm == 0:
        return 0.0
    return float((compose(plan, [weight.to(target) for weight in weights]) - target).norm() / norm)


def _block_diagonal(weight: Tensor, groups: int) -> Tensor:
    """A grouped kernel (O, I / g, *K) as the dense kernel (O, I, *K) with zeros off the blocks."""
    if groups == 1:
        return weight
    out, per_in, *kernel = weight.shape
    blocks = weight.new_zeros(groups, out // groups, groups, per_in, *kernel)
    index = torch.arange(groups, device=weight.device)
    blocks[index, :, index] = weight.reshape(groups, out // groups, per_in, *kernel)
    return blocks.reshape(out, groups * per_in, *kernel)


def weight_shape(conv: ConvSpec) -> tuple[int, ...]:
    """The shape of the weight of a convolution."""
    return (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)


def _one_to_one(plan: Plan) -> bool:
    wiring = plan.wiring(0)
    return len(set(wiring)) == len(wiring)


def _on_slots(plan: Plan, target: Tensor) -> Tensor:
    """`target` with its rows and columns moved to the last stage's output slots and the first stage's input slots."""
    slots = target.new_zeros(plan.stages[-1].conv.out_channels, plan.stages[0].conv.in_channels, *target.shape[2:])
    rows = torch.tensor(plan.wiring(len(plan.stages) - 1), device=target.device)
    slots[rows, : target.shape[1]] = target
    return slots


def _two_stages(plan: Plan, target: Tensor) -> list[Tensor]:
    first, second = (stage.conv for stage in plan.stages)
    groups1, groups2 = first.groups, second.groups
    ins, outs = first.in_channels // groups1, second.out_channels // groups2
    taps1 = torch.Size(first.kernel_size).numel()
    taps2 = torch.Size(second.kernel_size).numel()

    # (O, I, K_1, .., K_n) -> (O, I, taps2, taps1): an axis belongs to the stage whose kernel is longer there.
    slots = _on_slots(plan, target)
    mine = [axis for axis, size in enumerate(second.kernel_size) if size > 1]
    theirs = [axis for axis in range(len(first.kernel_size)) if axis not in mine]
    slots = slots.permute(0, 1, *(2 + axis for axis in (*mine, *theirs)))
    blocks = slots.reshape(groups2, outs, groups1, ins, taps2, taps1).permute(0, 2, 1, 4, 3, 5)
    blocks = blocks.reshape(groups2 * groups1, outs * taps2, ins * taps1)

    # A channel between the stages belongs to one block; its rank in the block says which singular pair it carries.
    per_out1 = first.out_channels // groups1
    per_in2 = second.in_channels // groups2
    wiring = plan.wiring(0)
    block_of = [(slot // per_in2) * groups1 + source // per_out1 for slot, source in enumerate(wiring)]
    used: dict[int, int] = {}
    rank_of = []
    for block in block_of:
        rank_of.append(used.get(block, 0))
        used[block] = rank_of[-1] + 1

    left, values, right = torch.linalg.svd(blocks, full_matrices=False)
    weight1 = target.new_zeros(first.out_channels, ins * taps1)
    weight2 = target.new_zeros(groups2, outs * taps2, per_in2)
    for slot, (source, block, rank) in enumerate(zip(wiring, block_of, rank_of, strict=True)):
        if rank < values.shape[1]:
            scale = values[block, rank].sqrt()
            weight1[source] = scale * right[block, rank]
            weight2[slot // per_in2, :, slot % per_in2] = scale * left[block, :, rank]
    weight2 = weight2.reshape(groups2, outs, taps2, per_in2).transpose(2, 3)
    return [
        weight1.reshape(weight_shape(first)),
        weight2.reshape(weight_shape(second)),
    ]


def _alternate(plan: Plan, target: Tensor) -> list[Tensor]:
    weights = _peel(plan, target)
    best = _distance(plan, weights, target)
    for _ in range(_SWEEPS):
        for index in range(len(weights)):
            weights[index] = _solve_stage(plan, weights, index, target)
        error = _distance(plan, weights, target)
        if error > _WORTHWHILE * best:
            break
        best = error
    # Share the scale, so that no stage starts training with weights of another magnitude.
    norms = [weight.norm().clamp_min(1e-30) / weight.numel() ** 0.5 for weight in weights]
    mean = torch.stack(norms).log().mean().exp()
    return [weight * (mean / norm) for weight, norm in zip(weights, norms, strict=True)]


def _distance(plan: Plan, weights: list[Tensor], target: Tensor) -> float:
    return float((compose(plan, weights) - target).norm())


def _peel(plan: Plan, target: Tensor) -> list[Tensor]:
    """A start for the alternation: split off one stage after the other, as if all that follow it were one dense stage.

    Each split is the best low-rank approximation within the groups of its stage (the tensor-train decomposition, for
    groups); for ungrouped chains it is within a factor sqrt(N - 1) of the optimum already.
    """
    ndim = plan.spec.ndim
    rest = target.new_zeros(target.shape[0], plan.stages[0].conv.in_channels, *target.shape[2:])
    rest[:, : target.shape[1]] = target
    weights = []
    for index, stage in enumerate(plan.stages[:-1]):
        conv = stage.conv
        groups, ins, outs = conv.groups, conv.in_channels // conv.groups, conv.out_channels // conv.groups
        later = [2 + axis for axis in range(ndim) if conv.kernel_size[axis] == 1]
        mine = [2 + axis for axis in range(ndim) if conv.kernel_size[axis] > 1]
        sizes = [rest.shape[axis] for axis in later]
        # (O, g ins, later taps, my taps) -> g x (O later) x (ins mine)
        moved = rest.permute(0, 1, *later, *mine).reshape(rest.shape[0], groups, ins, *sizes, -1)
        blocks = moved.movedim(1, 0).movedim(2, -2).flatten(-2).flatten(1, -2)
        left, values, right = torch.linalg.svd(blocks, full_matrices=False)
        rank = min(outs, values.shape[1])
        scale = values[:, :rank].sqrt()
        weight = target.new_zeros(groups, outs, blocks.shape[2])
        weight[:, :rank] = scale[:, :, None] * right[:, :rank]
        weights.append(weight.reshape(weight_shape(conv)))
        remainder = target.new_zeros(groups, blocks.shape[1], outs)
        remainder[:, :, :rank] = left[:, :, :rank] * scale[:, None]
        # Back to (O, slots of this stage, *K), with this stage's axes used up; then as the next stage reads the slots.
        kernel = [1 if axis in mine else rest.shape[axis] for axis in range(2, 2 + ndim)]
        remainder = remainder.reshape(groups, rest.shape[0], *sizes, outs).movedim(-1, 1).flatten(0, 1)
        rest = remainder.transpose(0, 1).reshape(rest.shape[0], conv.out_channels, *kernel)
        wiring = torch.tensor(plan.wiring(index), device=target.device)
        # A slot that is read twice gives each reader its share.
        counts = torch.bincount(wiring, minlength=conv.out_channels).to(rest)
        rest = (rest / counts.clamp_min(1).view(1, -1, *(1,) * ndim))[:, wiring]
    last = plan.stages[-1].conv
    slots = target.new_zeros(last.out_channels, *rest.shape[1:])
    slots[torch.tensor(plan.wiring(len(plan.stages) - 1), device=target.device)] = rest
    weights.append(_diagonal(slots, last.groups))
    return weights


def _diagonal(dense: Tensor, groups: int) -> Tensor:
    """The blocks (O, I / g, *K) on the diagonal of a dense kernel (O, I, *K): what a grouped convolution can hold."""
    out, inputs, *kernel = dense.shape
    blocks = dense.reshape(groups, out // groups, groups, inputs // groups, *kernel)
    index = torch.arange(groups, device=dense.device)
    return blocks[index, :, index].reshape(out, inputs // groups, *kernel)


def _solve_stage(plan: Plan, weights: list[Tensor], index: int, target: Tensor) -> Tensor:
    """Conjugate gradients on the normal equations of the stage `index`, from where it is."""
    point = weights[index]

    def kernel(value: Tensor) -> Tensor:
        return compose(plan, [*weights[:index], value, *weights[index + 1 :]])

    def transpose(residual: Tensor) -> Tensor:
        with torch.enable_grad():
            probe = torch.zeros_like(point, requires_grad=True)
            return torch.autograd.grad(kernel(probe), probe, residual)[0]

    gradient = transpose(target - kernel(point))
    direction, power = gradient, gradient.square().sum()
    for _ in range(_CG_STEPS):
        if power <= 1e-24:
            break
        image = kernel(direction)
        step = power / image.square().sum().clamp_min(1e-30)
        point = point + step * direction
        gradient = gradient - step * transpose(image)
        previous, power = power, gradient.square().sum()
        direction = gradient + (power / previous) * direction
    return point
