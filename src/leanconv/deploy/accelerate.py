"""A network whose chains and small convolutions run in the C library of the kernels, everything else in torch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from leanconv.deploy.export import refuse_elastic
from leanconv.deploy.fold import eval_copy, fold
from leanconv.deploy.in_programs import in_programs
from leanconv.deploy.pieces import Left
from leanconv.deploy.verify import as_exact, compare
from leanconv.dryrun import ModelHolder, Size, as_module, check_sizes, default_size
from leanconv.errors import LeanconvError
from leanconv.kernels.library import NAMES, load
from leanconv.kernels.program import Program

__all__ = ["Accelerated", "accelerate"]


@dataclass(frozen=True, kw_only=True)
class Accelerated:
    """`model` computes what the network computes, for inputs of `size` in batches of any length, on the CPU.

    `programs` are the pieces that the library runs, `left` the convolutions that torch runs, with reasons, `vectors`
    what the library uses of this CPU. `max_abs_difference` is the largest absolute difference between the outputs of
    the two models. Every function that takes a network takes this as it is; it has no story, because none leads to
    folded weights.
    """

    model: nn.Module
    programs: tuple[Program, ...]
    left: tuple[Left, ...]
    vectors: str
    max_abs_difference: float
    story: None = None


def accelerate(
    model: nn.Module | ModelHolder, size: Size | None = None, *, tolerance: float = 1e-4, seed: int = 0
) -> Accelerated:
    """The network for inference on this CPU, its chains of grouped convolutions at the speed that their MACs promise.

    Works on a CPU copy in eval mode, in float32. BatchNorms are folded where that is exact; then every piece of the
    network that is made of grouped, depthwise, pointwise and small dense convolutions, activations (ReLU, ReLU6, SiLU,
    Hardswish, sigmoid, Hardsigmoid), additions, products of maps, norms, shuffles, pools and nearest up-sampling
    becomes one operator, `leanconv::run_program`, which `torch.compile`, `torch.export` and `measure` know. Networks of
    dense and depthwise convolutions, at two resolutions too, run there whole, whatever the size of their convolutions;
    of dense ones alone, parts with many 3 x 3, which are computed by Winograd's minimal filtering. It runs on as many
    threads as torch is set to use: each takes whole images, or pieces of one where there are fewer images. The outputs
    for random inputs of `size` are compared with the model's.

    Args:
        size: the shape of one input without the batch axis, (3, 224, 224), or a list of shapes. None takes what the
            model itself says. The result takes this size alone.
        tolerance: the largest difference that is accepted, as a share of the largest number of that output. A larger
            one is accepted of a network that itself, in float32, is as far from its outputs in float64.
        seed: draws the random inputs.

    Raises:
        NoLibrary: where the C library was not built, with what to do.
        NothingToRewrite: where there is no piece that the library would run, with the reasons.
        ExportError: where `torch.export` cannot follow the network.
        LeanconvError: where the outputs differ by more, or the network does not run on `size`.

    An example, where the library was built:

        fast = lc.accelerate(lc.create_model("o_resnet20", multiplier=3.625), (3, 32, 32))
        with torch.inference_mode():
            scores = fast.model(images)                  # (B, 3, 32, 32) to (B, 10)
    """
    from leanconv.kernels.operator import ProgramModule

    library = load()
    network = as_module(model)
    refuse_elastic(network, "accelerate")
    size = default_size(network) if size is None else size
    if size is None:
        raise LeanconvError(
            f"accelerate: {type(network).__name__} does not say which input it was made for: pass size, the shape of "
            "one input without the batch axis, such as size=(3, 224, 224)"
        )
    size = check_sizes(size)
    original = eval_copy(network)
    found = in_programs(fold(original, size).model, size, ProgramModule, "accelerate")
    difference = compare(original, found.model, size, seed=seed)
    if difference.beyond(tolerance) and not as_exact(original, found.model, size, seed=seed):
        raise LeanconvError(
            f"accelerate: outputs differ from torch's by up to {difference.max_abs:.1e}, more than {tolerance:.0e} of "
            "the largest: this is a fault of leanconv's kernels; the network as it was runs as before"
        )
    return Accelerated(
        model=found.model,
        programs=found.programs,
        left=found.left,
        vectors=NAMES[library.lanes],
        max_abs_difference=difference.max_abs,
    )
