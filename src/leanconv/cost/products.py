"""Which executed operators are convolutions, linear layers or products of activations, and their multiply-adds.

What counts, decided by operators and by where their numbers come from, never by module types:

* A *convolution* is every convolution operator: 1D, 2D, 3D, grouped, transposed, dilated, deformable, with a kernel of
  any origin. Padding positions count; biases, and what a deformable one interpolates, do not, as in the papers.
* A *linear layer* is a matrix product with one operand that is an activation, and the matrices inside operators that
  torch fuses: recurrent layers, `nn.Bilinear`, the projections of attention.
* An operator that no rule knows and that says itself what it does, by an argument `macs` (of one image) beside a tensor
  `weights`, is a convolution of as many: a part of a network in one operator.
* A product of two *activations* is no layer: the two of attention (queries with keys, their weights with the values),
  non-local blocks, bilinear pooling. In every form, fused or written out, its multiply-adds are `attention_macs`.
* A product of weights that makes a kernel (a norm of the weights, a low-rank kernel multiplied out) is not counted: it
  is no work on the input. Other layers that run on weights or constants alone (a table of relative positions) count,
  once per forward.

An activation is what depends on the input, or is repeated for every image of the batch before anything is computed
of it (an initial state, learned queries).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import comb, prod

from leanconv.cost.records import OpRecord, Origin, TensorRef, aten
from leanconv.dryrun.axes import FUSED_ATTENTION

__all__ = ["Product", "bias_of", "products"]


@dataclass(frozen=True, slots=True)
class Product:
    """One matrix product or convolution, from its actual shapes.

    `macs` are multiply-adds of the whole batch, `interactions` pairs of input channels that meet in an output channel
    (CSN, eq. 3: C_out * binom(C_in / G, 2); 0 for linear layers). `weight` is the operand that plays the kernel, None
    for a product of activations; `batch` the leading size of the other one. `per_image` is False when the result is
    the same for every image.
    """

    macs: int
    interactions: int
    weight: TensorRef | None
    batch: int
    per_image: bool


def products(records: Sequence[OpRecord]) -> list[tuple[Product, ...]]:
    """What each record multiplies, in the order of `records`; an empty tuple for most.

    Read backwards, so that what makes a kernel is found before it is seen: everything without input that its memory
    was filled from.
    """
    found: list[tuple[Product, ...]] = [_found(record) for record in _unpadded(records)]
    kernels: set[int] = set()
    for index in range(len(records) - 1, -1, -1):
        record = records[index]
        if any(ref.storage in kernels for ref in record.outputs if ref.origin is not Origin.IMAGE):
            found[index] = ()
            kernels.update(ref.storage for ref in record.inputs if ref.origin is not Origin.IMAGE)
        else:
            kernels.update(one.weight.storage for one in found[index] if one.weight is not None)
    return found


def bias_of(record: OpRecord, widths: dict[int, int]) -> bool:
    """Whether `record` adds a bias to the result of a layer, which torch does on its own for some shapes.

    `widths` has the output channels of every layer so far, by the memory that holds its result.
    """
    if record.name not in _ADDS:
        return False
    found = {widths.get(ref.storage) for ref in record.inputs}
    return all(ref.numel in found for ref in record.inputs if not ref.active and ref.parameters)


_ADDS = aten("add _thnn_fused_lstm_cell _thnn_fused_gru_cell")


def _found(record: OpRecord) -> tuple[Product, ...]:
    rule = _RULES.get(record.name)
    if rule is not None:
        return rule(record)
    return _declared(record) if record.outputs and not record.name.startswith("aten.") else ()


def _unpadded(records: Sequence[OpRecord]) -> list[OpRecord]:
    """Attention as the network asked for it: some kernels are given heads with zeros added up to a multiple of 8."""
    true: dict[int, int] = {}
    out = []
    for record in records:
        if record.name == "aten.constant_pad_nd" and len(record.args["pad"]) == 2:
            true[record.outputs[0].serial] = record.args["self"].shape[-1]
        elif true and _RULES.get(record.name) is _attention:
            args = {
                name: replace(value, shape=(*value.shape[:-1], true[value.serial]))
                if isinstance(value, TensorRef) and value.serial in true
                else value
                for name, value in record.args.items()
            }
            record = replace(record, args=args)
        out.append(record)
    return out


def _pair(macs: int, left: TensorRef, right: TensorRef) -> tuple[Product, ...]:
    """A product of two operands, whichever it is; nothing where both are constants."""
    if left.active and right.active:
        return (Product(macs, 0, None, left.shape[0], per_image=True),)
    if left.origin is Origin.CONSTANT and right.origin is Origin.CONSTANT:
        return ()
    kernel, other = (left, right) if _suits(left) > _suits(right) else (right, left)
    return (Product(macs, 0, kernel, other.shape[0], per_image=other.active or left.spread or right.spread),)


def _suits(ref: TensorRef) -> tuple[bool, bool, bool]:
    """How well an operand plays the kernel, for comparison; of two equals it is the right one, as in x W^T."""
    is_weight = ref.origin is Origin.WEIGHT
    return not ref.active, is_weight and not ref.spread, is_weight and len(ref.parameters) == 1 and ref.untouched


def _matrices(left_name: str, right_name: str) -> Callable[[OpRecord], tuple[Product, ...]]:
    def rule(record: OpRecord) -> tuple[Product, ...]:
        left, right = record.args[left_name], record.args[right_name]
        return _pair(left.numel * (right.shape[-1] if len(right.shape) > 1 else 1), left, right)

    return rule


def _convolution(record: OpRecord) -> tuple[Product, ...]:
    image: TensorRef = record.args["input"]
    weight: TensorRef = record.args["weight"]
    output = record.outputs[0]
    # A kernel of (C_out, C_in / g, *K) meets every output; the transposed one, (C_in, C_out / g, *K), every input.
    walked = image if record.args.get("transposed") else output
    macs = walked.numel * prod(weight.shape[1:])
    groups = record.args.get("groups", image.shape[1] // weight.shape[1])
    interactions = output.shape[1] * comb(image.shape[1] // groups, 2)
    return (Product(macs, interactions, weight, image.shape[0], output.active or image.spread),)


def _declared(record: OpRecord) -> tuple[Product, ...]:
    """What an operator says of itself, for one image or one position of its output; or that it is a convolution."""
    args, output = record.args, record.outputs[0]
    if {"input", "weight", "stride", "padding"} <= args.keys():
        return _convolution(record)
    if "macs" not in args and "position_macs" not in args:
        return ()
    images = output.shape[0]
    macs = args["macs"] * images if "macs" in args else args["position_macs"] * (output.numel // output.shape[1])
    return (Product(macs, args["interactions"], args["weights"], images, output.active),)


def _time_first_convolution(record: OpRecord) -> tuple[Product, ...]:
    """`aten.conv_tbc`: maps of (T, N, C), a kernel of (K, C_in, C_out)."""
    image, weight, output = record.args["self"], record.args["weight"], record.outputs[0]
    length, inputs, outputs = weight.shape
    macs = output.numel * length * inputs
    return (Product(macs, outputs * comb(inputs, 2), weight, image.shape[1], output.active),)


def _trilinear(record: OpRecord) -> tuple[Product, ...]:
    """`nn.Bilinear`: every weight of (C_out, C_1, C_2) meets every pair of rows."""
    left, weight, right = (record.args[name] for name in ("i1", "i2", "i3"))
    rows = left.numel // left.shape[-1]
    return (Product(rows * weight.numel, 0, weight, left.shape[0], left.active or right.active),)


def _recurrent(record: OpRecord) -> tuple[Product, ...]:
    """Fused LSTM, GRU and RNN: each matrix (input, hidden and projection) meets every step of every sequence once."""
    image: TensorRef = record.args["input"]
    rows = prod(image.shape[:-1])
    names = ("weight", "weight0", "weight1")  # of oneDNN the other two are biases, or zeros in the shape of weights
    weights = [ref for name in names for ref in _refs(record.args.get(name)) if len(ref.shape) == 2]
    return tuple(Product(rows * ref.numel, 0, ref, image.shape[0], image.active) for ref in weights)


def _refs(value: object) -> tuple[TensorRef, ...]:
    refs = value if isinstance(value, tuple) else (value,)
    return tuple(ref for ref in refs if isinstance(ref, TensorRef))


def _attention(record: OpRecord) -> tuple[Product, ...]:
    """Fused attention on (N, heads, length, width): queries with keys, and their weights with the values.

    Masked positions count, as they do in the other forms; keys and values of fewer heads serve several queries.
    """
    query, key, value = (record.args[name] for name in ("query", "key", "value"))
    if len(query.shape) != 4:
        return ()  # sequences of different lengths packed into one axis
    across = _LENGTH_FIRST if record.name in _LENGTH_FIRST_NAMES else _HEADS_FIRST
    pairs = query.numel // query.shape[-1] * key.shape[across]
    weights = max(query, key, key=lambda ref: (ref.origin, ref.spread))
    weights = replace(weights, origin=Origin.STATE) if weights.spread else weights
    return (*_pair(pairs * query.shape[-1], query, key), *_pair(pairs * value.shape[-1], weights, value))


_HEADS_FIRST, _LENGTH_FIRST = 2, 1
_LENGTH_FIRST_NAMES = frozenset(("aten._flash_attention_forward", "aten._efficient_attention_forward"))


def _attention_layer(record: OpRecord) -> tuple[Product, ...]:
    """The whole of `nn.MultiheadAttention`, or of `nn.TransformerEncoderLayer`, as one operator of torch's fast path.

    Their modules do not use it in a dry run; this is for networks that call it themselves.
    """
    query: TensorRef = record.args["query" if "query" in record.args else "src"]
    key: TensorRef = record.args.get("key", query)
    weight, out = record.args["qkv_weight"], record.args["proj_weight"]
    width = weight.shape[-1]
    rows, others = query.numel // query.shape[-1], key.numel // key.shape[-1]
    layers = [((rows + 2 * others) * width * weight.shape[0] // 3, weight), (rows * out.numel, out)]
    layers += [(rows * ref.numel, ref) for ref in map(record.args.get, ("ffn_weight_1", "ffn_weight_2")) if ref]
    attention = 2 * rows * key.shape[-2] * width
    return (
        *(Product(macs, 0, ref, query.shape[0], query.active) for macs, ref in layers),
        Product(attention, 0, None, query.shape[0], query.active),
    )


def _table() -> dict[str, Callable[[OpRecord], tuple[Product, ...]]]:
    rules = {
        "convolution _convolution": _convolution,
        "conv_tbc": _time_first_convolution,
        "mm bmm _int_mm _scaled_mm": _matrices("self", "mat2"),
        "addmm _addmm_activation": _matrices("mat1", "mat2"),
        "baddbmm addbmm": _matrices("batch1", "batch2"),
        "mv": _matrices("self", "vec"),
        "addmv": _matrices("mat", "vec"),
        "dot": _matrices("self", "tensor"),
        "vdot": _matrices("self", "other"),
        "_trilinear": _trilinear,
        "mkldnn_rnn_layer _cudnn_rnn miopen_rnn": _recurrent,
        f"{' '.join(FUSED_ATTENTION)} _flash_attention_forward _efficient_attention_forward": _attention,
        "_native_multi_head_attention _transformer_encoder_layer_fwd": _attention_layer,
    }
    found = {f"aten.{name}": rule for names, rule in rules.items() for name in names.split()}
    return found | {"torchvision.deform_conv2d": _convolution, "flex_attention": _attention}


_RULES = _table()
