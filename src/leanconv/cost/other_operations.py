"""The work of everything that is no convolution and no linear layer: norms, pools, sums and the like, by kind.

Papers mean different things by their totals, so these counts stand beside `macs` and never in them. An operation is one
multiply-add, or one addition, product, comparison or function where there is no pair of them:

    norms         one for every element of the result, and two more (a mean and a variance) where they are taken from
                  the input itself, as in layer and group norms
    pools         the positions of every window, cut by the border or not; of a mean or a maximum over axes its input
    sums          one for every element: residual and path sums, and what `sum` adds up
    products      one for every element: gates, scales, powers
    activations   one for every element, softmax included
    biases        one for every element that a weight is added to, inside a layer or behind it
    resampling    the points that are mixed into every element; nearest neighbours are copies and cost nothing
    others        one for every element of any other elementwise operator

Work on weights alone does not count. What an operator does inside, such as the gates of a fused recurrent layer, is not
seen; what no rule knows is listed by name and not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from leanconv.cost.metrics import MOVES, is_view
from leanconv.cost.products import Product
from leanconv.cost.records import OpRecord, TensorRef, aten

__all__ = ["other_operations"]

_COPIES = aten(
    "native_dropout dropout masked_fill where upsample_nearest1d upsample_nearest2d upsample_nearest3d",
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d",
)


def other_operations(record: OpRecord, made: Sequence[Product]) -> tuple[tuple[str, int], ...] | None:
    """What `record` does beside the products that were `made` of it; None where nobody knows.

    Each is a kind and how many of it the whole batch takes. An empty tuple where there is nothing to count: copies, and
    what does not depend on the input.
    """
    if made:
        bias = record.args.get("bias", record.args.get("self") if record.name in _WITH_BIAS else None)
        return (("biases", record.outputs[0].numel),) if isinstance(bias, TensorRef) else ()
    idle = not any(ref.active for ref in record.outputs) or is_view(record) or record.name in MOVES
    if idle or record.name in _COPIES:
        return ()
    rule = _RULES.get(record.name)
    if rule is not None:
        return (rule(record),)
    return (("others", record.outputs[0].numel),) if record.pointwise else None


_WITH_BIAS = aten("addmm _addmm_activation addmv baddbmm addbmm")


def _each(kind: str, times: int = 1) -> Callable[[OpRecord], tuple[str, int]]:
    """So many for every element of the result."""
    return lambda record: (kind, times * record.outputs[0].numel)


def _reads(kind: str, times: int = 1) -> Callable[[OpRecord], tuple[str, int]]:
    """So many for every element that is read."""
    return lambda record: (kind, times * next(record.inputs).numel)


def _sum(record: OpRecord) -> tuple[str, int]:
    """A sum of activations, or of activations and a weight, which is a bias."""
    weights = any(not ref.active and ref.parameters for ref in record.inputs)
    return "biases" if weights else "sums", record.outputs[0].numel


def _window(record: OpRecord) -> tuple[str, int]:
    """Pools of a fixed window, given as one number for all axes or one for each."""
    kernel: tuple[int, ...] = record.args["kernel_size"]
    maps = next(int(digit) for digit in record.name if digit.isdigit())
    return "pools", record.outputs[0].numel * prod(kernel if len(kernel) == maps else kernel * maps)


def _adaptive(record: OpRecord) -> tuple[str, int]:
    """Pools to a fixed number of windows, which may overlap where it does not divide the size."""
    image, output = next(record.inputs).shape, record.outputs[0].shape
    maps = next(int(digit) for digit in record.name if digit.isdigit())
    sides = zip(image[-maps:], output[-maps:], strict=True)
    return "pools", prod(output[:-maps]) * prod(_windows(whole, parts) for whole, parts in sides)


def _windows(whole: int, parts: int) -> int:
    """The lengths of `parts` windows over `whole` positions together, as torch lays them.

    >>> _windows(7, 1), _windows(6, 3), _windows(5, 2)
    (7, 6, 6)
    """
    return sum(-(-(part + 1) * whole // parts) - part * whole // parts for part in range(parts))


def _table() -> dict[str, Callable[[OpRecord], tuple[str, int]]]:
    rules = {
        "native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm batch_norm": _each("norms"),
        "_batch_norm_no_update miopen_batch_norm": _each("norms"),
        "native_layer_norm native_group_norm _native_batch_norm_legit _fused_rms_norm": _each("norms", 3),
        "linalg_vector_norm norm": _reads("norms"),
        "var std var_mean std_mean": _reads("norms", 2),
        "avg_pool1d avg_pool2d avg_pool3d": _window,
        "max_pool2d_with_indices max_pool3d_with_indices": _window,
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d": _adaptive,
        "mean amax amin max min": _reads("pools"),
        "add sub rsub": _sum,
        "sum cumsum": _reads("sums"),
        "mul div pow square prod": _each("products"),
        "addcmul addcdiv lerp": _each("products"),
        "relu sigmoid tanh silu gelu mish elu celu selu leaky_relu prelu _prelu_kernel": _each("activations"),
        "hardtanh hardswish hardsigmoid clamp clamp_min clamp_max softplus log_sigmoid_forward": _each("activations"),
        "threshold exp glu _softmax _safe_softmax _log_softmax": _each("activations"),
        "upsample_linear1d": _each("resampling", 2),
        "upsample_bilinear2d _upsample_bilinear2d_aa grid_sampler_2d": _each("resampling", 4),
        "upsample_trilinear3d grid_sampler_3d": _each("resampling", 8),
        "upsample_bicubic2d _upsample_bicubic2d_aa": _each("resampling", 16),
    }
    return {f"aten.{name}": rule for names, rule in rules.items() for name in names.split()}


_RULES = _table()
