"""From the operators of one forward to numbers: multiply-adds, interactions, weights and activation bytes.

What counts, decided by operators and by where their numbers come from, never by module types:

* A *convolution* is every `aten.convolution`: 1D, 2D, 3D, grouped, transposed, dilated, with a kernel of any origin.
  Padding positions count, biases do not, as in the papers.
* A *linear layer* is a matrix product with at most one operand that depends on the image. A product of two such
  operands is attention and is listed as not counted. A layer that runs on weights or constants alone (a table of
  relative positions, a learned query) counts once per forward, not per image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from math import comb, prod

from leanconv.cost.records import OpRecord, Origin, TensorRef, aten

__all__ = ["Product", "activation_bytes", "not_counted", "product", "weights"]

_PRODUCTS = {
    "aten.mm": ("self", "mat2"),
    "aten.bmm": ("self", "mat2"),
    "aten.addmm": ("mat1", "mat2"),
    "aten._addmm_activation": ("mat1", "mat2"),
    "aten.baddbmm": ("batch1", "batch2"),
    "aten.addbmm": ("batch1", "batch2"),
    "aten.mv": ("self", "vec"),
    "aten.addmv": ("mat", "vec"),
}
# Operators that only make, move or rename numbers: no arithmetic to miss. Views are recognised by sharing memory.
_MOVES = aten(
    "empty empty_strided empty_like zeros zeros_like ones ones_like full full_like fill zero arange linspace eye",
    "new_empty new_empty_strided new_zeros new_ones new_full scalar_tensor lift_fresh lift_fresh_copy",
    "clone copy contiguous _to_copy detach view _unsafe_view _reshape_alias cat stack constant_pad_nd flip roll repeat",
    "index_select split_with_sizes_copy pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
)


@dataclass(frozen=True, slots=True)
class Product:
    """One executed convolution or linear layer, from its actual shapes.

    `macs` are multiply-adds of the whole batch, `interactions` pairs of input channels that meet in an output channel
    (CSN, eq. 3: C_out * binom(C_in / G, 2); 0 for linear layers), `weight` the operand that plays the kernel, `batch`
    the leading size of the other one; `per_image` is False when the result does not depend on the image.
    """

    macs: int
    interactions: int
    weight: TensorRef
    batch: int
    per_image: bool


def product(record: OpRecord) -> Product | None:
    """The convolution or linear layer that `record` is; None for anything else."""
    if record.name == "aten.convolution":
        return _convolution(record)
    if record.name in _PRODUCTS:
        return _linear(record)
    return None


def _convolution(record: OpRecord) -> Product:
    image: TensorRef = record.args["input"]
    weight: TensorRef = record.args["weight"]
    output = record.outputs[0]
    # A kernel of (C_out, C_in / g, *K) meets every output; the transposed one, (C_in, C_out / g, *K), every input.
    walked = image if record.args["transposed"] else output
    macs = walked.numel * prod(weight.shape[1:])
    interactions = output.shape[1] * comb(image.shape[1] // record.args["groups"], 2)
    return Product(macs, interactions, weight, image.shape[0], output.origin is Origin.IMAGE)


def _linear(record: OpRecord) -> Product | None:
    left, right = (record.args[name] for name in _PRODUCTS[record.name])
    origins = {left.origin, right.origin}
    if origins in ({Origin.IMAGE}, {Origin.CONSTANT}):
        return None
    columns = right.shape[-1] if len(right.shape) > 1 else 1
    # The weight is what comes from parameters; of two such operands the right one, as in x W^T.
    kernel, other = (right, left) if right.origin is Origin.WEIGHT or left.origin is Origin.IMAGE else (left, right)
    return Product(left.numel * columns, 0, kernel, other.shape[0], Origin.IMAGE in origins)


def weights(products: Iterable[Product]) -> dict[Hashable, int]:
    """The kernels that were used, each once however often, with the number of their elements.

    Only what comes from parameters is a weight: fixed kernels such as a blur, and kernels that the network computes
    from the image, are not.
    """
    used: dict[Hashable, int] = {}
    for one in products:
        if one.weight.origin is Origin.WEIGHT:
            used[one.weight.identity] = max(used.get(one.weight.identity, 0), one.weight.weight_numel)
    return used


def activation_bytes(record: OpRecord) -> int:
    """Bytes of floating-point memory that `record` newly fills with numbers that depend on the image.

    Views and in-place operators fill none; indices (of max pooling) and computed weights do not count.
    """
    return sum(
        ref.storage_bytes
        for ref, fresh in zip(record.outputs, record.fresh, strict=True)
        if fresh and ref.floating and ref.origin is Origin.IMAGE
    )


def not_counted(records: Iterable[OpRecord]) -> dict[str, int]:
    """Operators that compute something and are in no `macs`, with how often they ran, the most frequent first."""
    missed: Counter[str] = Counter()
    for record in records:
        is_view = not record.writes and not any(record.fresh)
        if not is_view and record.name not in _MOVES and product(record) is None:
            missed[record.name] += 1
    return dict(missed.most_common())
