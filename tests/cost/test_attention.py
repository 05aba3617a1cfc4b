"""Attention in every form: its projections are linear layers, its two products are `attention_macs`, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from leanconv.cost import Cost, measure
from leanconv.dryrun import record_flow

N, C, HEADS = 6, 8, 2  # tokens, channels, heads


class Call(nn.Module):
    """A module, and how a forward calls it."""

    def __init__(self, inner: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = inner
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.call(self.inner, x)


def both_ways(net: nn.Module, size: tuple[int, ...]) -> Cost:
    """The cost of `net`: the same in training and evaluation, on a CPU and on the meta device, for any batch."""
    cost = measure(net.eval(), size)
    for other in (measure(net.train(), size), measure(net, size, batch=3), measure(net.to("meta").eval(), size)):
        assert (other.macs, other.attention_macs, other.conv_params) == (
            cost.macs,
            cost.attention_macs,
            cost.conv_params,
        )
        assert other.params_not_counted == cost.params_not_counted
    assert cost.total_macs == cost.macs + cost.attention_macs
    return cost


def mha(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(C, HEADS, batch_first=True, **options)


def self_attention(**options: Any) -> Callable[[nn.Module, Tensor], Any]:
    return lambda layer, x: layer(x, x, x, **options)[0]


def mask() -> Tensor:
    return torch.ones(N, N, dtype=torch.bool).triu(1)


PROJECTIONS = N * 4 * C * C
PRODUCTS = 2 * N * N * C
MULTIHEAD: dict[str, tuple[nn.Module, Callable[..., Any], int, int, int]] = {
    "averaged weights": (mha(), self_attention(), PROJECTIONS, PRODUCTS, 4 * C * C),
    "no weights": (mha(), self_attention(need_weights=False), PROJECTIONS, PRODUCTS, 4 * C * C),
    "no bias": (mha(bias=False), self_attention(need_weights=False), PROJECTIONS, PRODUCTS, 4 * C * C),
    "weights of each head": (mha(), self_attention(average_attn_weights=False), PROJECTIONS, PRODUCTS, 4 * C * C),
    "masked": (
        mha(),
        lambda layer, x: layer(x, x, x, attn_mask=mask().to(x.device), need_weights=False)[0],
        PROJECTIONS,
        PRODUCTS,
        4 * C * C,
    ),
    "causal": (
        mha(),
        lambda layer, x: layer(x, x, x, attn_mask=mask().to(x.device), is_causal=True, need_weights=False)[0],
        PROJECTIONS,
        PRODUCTS,
        4 * C * C,
    ),
    "padded": (
        mha(),
        lambda layer, x: layer(x, x, x, key_padding_mask=torch.zeros(len(x), N, dtype=torch.bool, device=x.device))[0],
        PROJECTIONS,
        PRODUCTS,
        4 * C * C,
    ),
    # One more key and value each that are learned and one that is zero: they are attended to, and not projected.
    "more keys": (
        mha(add_bias_kv=True, add_zero_attn=True),
        self_attention(need_weights=False),
        PROJECTIONS,
        2 * N * (N + 2) * C,
        4 * C * C,
    ),
    # Keys of 6 and values of 4 channels: a projection each.
    "other keys": (
        mha(kdim=6, vdim=4),
        lambda layer, x: layer(x, x[..., :6], x[..., :4], need_weights=False)[0],
        N * (C * C + 6 * C + 4 * C + C * C),
        PRODUCTS,
        C * C + 6 * C + 4 * C + C * C,
    ),
    # Half of the tokens ask.
    "cross": (
        mha(),
        lambda layer, x: layer(x[:, : N // 2], x, x, need_weights=False)[0],
        N // 2 * 2 * C * C + N * 2 * C * C,
        PRODUCTS // 2,
        4 * C * C,
    ),
}


@pytest.mark.parametrize("kind", MULTIHEAD)
def test_multihead_attention(kind: str) -> None:
    layer, call, macs, attention, weights = MULTIHEAD[kind]
    net = Call(layer, call)
    cost = both_ways(net, (N, C))
    assert (cost.macs, cost.attention_macs, cost.conv_params) == (macs, attention, weights)
    beside = {"aten.cat": 2 * C} if kind == "more keys" else {}
    assert cost.params_not_counted == beside
    assert cost.params == weights + sum(p.numel() for n, p in net.named_parameters() if "bias" in n)
    assert cost.by_module()["inner"].attention_macs == attention


def encoder_layer(**options: Any) -> nn.Module:
    return nn.TransformerEncoderLayer(C, HEADS, 3 * C, batch_first=True, **options)


def decoder_layer() -> nn.Module:
    return nn.TransformerDecoderLayer(C, HEADS, 3 * C, batch_first=True)


ENCODER = PROJECTIONS + 2 * N * C * 3 * C
TRANSFORMERS = {
    "encoder layer": (encoder_layer(), ENCODER, PRODUCTS, 1),
    "gelu": (encoder_layer(activation="gelu", norm_first=True), ENCODER, PRODUCTS, 1),
    "encoder": (nn.TransformerEncoder(encoder_layer(), 2), 2 * ENCODER, 2 * PRODUCTS, 2),
    "decoder layer": (
        Call(decoder_layer(), lambda layer, x: layer(x, x)),
        ENCODER + PROJECTIONS,
        2 * PRODUCTS,
        1,
    ),
    "transformer": (
        Call(
            nn.Transformer(C, HEADS, 1, 2, 3 * C, batch_first=True),
            lambda net, x: net(x, x, tgt_mask=mask().to(x.device), tgt_is_causal=True),
        ),
        ENCODER + 2 * (ENCODER + PROJECTIONS),
        PRODUCTS + 2 * 2 * PRODUCTS,
        3,
    ),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformer_layers(kind: str) -> None:
    net, macs, attention, layers = TRANSFORMERS[kind]
    cost = both_ways(net, (N, C))
    assert (cost.macs, cost.attention_macs) == (macs, attention)
    norms = sum(p.numel() for m in net.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters())
    assert cost.params_not_counted == {"aten.native_layer_norm": norms}
    assert cost.conv_params == cost.macs // N
    assert layers <= cost.params_not_counted["aten.native_layer_norm"] // (4 * C)


def fused(**options: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(_: nn.Module, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x[:, :HEADS], x[:, :HEADS, :, :4], **options)

    return call


def written_out(_: nn.Module, x: Tensor) -> Tensor:
    keys, values = (t.repeat_interleave(2, 1) for t in (x[:, :HEADS], x[:, :HEADS, :, :4]))
    return torch.einsum("bhqk,bhkc->bhqc", torch.einsum("bhqc,bhkc->bhqk", x, keys).softmax(-1), values)


@pytest.mark.parametrize("form", ["flash", "math", "masked", "causal", "einsum"])
def test_one_number_fused_or_not(form: str) -> None:
    """Four heads of queries and two of keys and values, the values half as wide: 4 x N x N x (C + 4)."""
    calls = {
        "flash": fused(enable_gqa=True),
        "math": fused(enable_gqa=True),
        "masked": fused(enable_gqa=True, attn_mask=torch.zeros(N, N)),
        "causal": fused(enable_gqa=True, is_causal=True),
        "einsum": written_out,
    }
    net = Call(nn.Identity(), calls[form])
    with sdpa_kernel(SDPBackend.MATH if form == "math" else [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        cost = measure(net, (2 * HEADS, N, C))
        assert measure(net, (2 * HEADS, N, C), batch=3).attention_macs == cost.attention_macs
    assert (cost.macs, cost.attention_macs, cost.conv_params) == (0, 2 * HEADS * N * N * (C + 4), 0)


OPERATORS = {
    "_scaled_dot_product_flash_attention_for_cpu": lambda op, x: op(x, x, x)[0],
    "_scaled_dot_product_flash_attention": lambda op, x: op(x, x, x)[0],
    "_scaled_dot_product_efficient_attention": lambda op, x: op(x, x, x, None, False)[0],
    "_scaled_dot_product_cudnn_attention": lambda op, x: op(x, x, x, None, False)[0],
    "_scaled_dot_product_fused_attention_overrideable": lambda op, x: op(x, x, x)[0],
    "_flash_attention_forward": lambda op, x: op(*[x.transpose(1, 2)] * 3, None, None, N, N, 0.0, False, False)[0],
    "_efficient_attention_forward": lambda op, x: op(*[x.transpose(1, 2)] * 3, None, None, None, N, N, 0.0, 0)[0],
}


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_of_fused_attention(name: str) -> None:
    """Each on the meta device, where none needs its kernel."""
    operator = getattr(torch.ops.aten, name)
    net = Call(nn.Linear(1, 1, device="meta"), lambda _, x: OPERATORS[name](operator, x))
    cost = measure(net, (HEADS, N, C))
    assert (cost.macs, cost.attention_macs) == (0, 2 * HEADS * N * N * C)
    assert set(cost.not_counted) == {f"aten.{name}"}


class Direct(nn.Module):
    """Calls the operators of torch's fast path itself."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(C, HEADS, 3 * C, batch_first=True)
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        layer, attend = self.layer, self.layer.self_attn
        weights = (attend.in_proj_weight, attend.in_proj_bias, attend.out_proj.weight, attend.out_proj.bias)
        if not self.whole:
            return torch._native_multi_head_attention(x, x, x, C, HEADS, *weights)[0]  # type: ignore[no-any-return]
        norms = (layer.norm1.weight, layer.norm1.bias, layer.norm2.weight, layer.norm2.bias)
        parts = (layer.linear1.weight, layer.linear1.bias, layer.linear2.weight, layer.linear2.bias)
        return torch._transformer_encoder_layer_fwd(x, C, HEADS, *weights, False, False, 1e-5, *norms, *parts)


@pytest.mark.parametrize("whole", [False, True])
def test_the_fast_path_called_by_name(whole: bool) -> None:
    cost = measure(Direct(whole), (N, C))
    assert (cost.macs, cost.attention_macs) == (ENCODER if whole else PROJECTIONS, PRODUCTS)
    assert cost.conv_params == cost.macs // N


def test_the_fast_path_is_there_again_afterwards() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        measure(encoder_layer(), (N, C))
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    measure(encoder_layer(), (N, C))
    assert torch.backends.mha.get_fastpath_enabled()


class Learned(nn.Module):
    """Three learned queries read the tokens: repeated along the batch, they are activations like any other."""

    def __init__(self, *, fused: bool, heads: int, repeat: str) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, C))
        self.to_q, self.to_kv, self.out = nn.Linear(C, C), nn.Linear(C, 2 * C), nn.Linear(C, C)
        self.fused, self.heads, self.repeat = fused, heads, repeat

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        queries = self.queries.expand(batch, -1, -1) if self.repeat == "expand" else self.queries.repeat(batch, 1, 1)
        parts = (self.to_q(queries), *self.to_kv(x).chunk(2, -1))
        q, k, v = (t.view(batch, -1, self.heads, C // self.heads).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("repeat", ["expand", "repeat"])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("fused", [True, False])
def test_learned_queries(fused: bool, heads: int, repeat: str) -> None:
    net = Learned(fused=fused, heads=heads, repeat=repeat)
    for batch in (1, 3):
        cost = measure(net, (N, C), batch=batch)
        assert (cost.macs, cost.attention_macs) == (3 * C * C + N * 2 * C * C + 3 * C * C, 2 * 3 * N * C)
        assert cost.conv_params == 4 * C * C
        assert cost.params_not_counted == {}
        assert cost.by_module()["to_q"].macs == 3 * C * C


def test_queries_that_attend_to_each_other_first() -> None:
    """As in a detection transformer: nothing in the first attention depends on the image."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Embedding(5, C)
            self.layer = nn.TransformerDecoderLayer(C, HEADS, C, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            queries = self.queries.weight.unsqueeze(0).repeat(len(x), 1, 1)
            return self.layer(torch.zeros_like(queries) + queries, x)  # type: ignore[no-any-return]

    for batch in (1, 2):
        cost = measure(Decoder(), (N, C), batch=batch)
        assert cost.macs == 5 * 4 * C * C + (5 * 2 + N * 2) * C * C + 5 * 2 * C * C
        assert cost.attention_macs == 2 * 5 * 5 * C + 2 * 5 * N * C
        assert cost.conv_params == 4 * C * C + 4 * C * C + 2 * C * C


def test_a_learned_position_that_queries_multiply_is_a_layer() -> None:
    """Relative positions as a product of the queries with a table of weights (as in BoTNet or SAM)."""

    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(N, C))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("bnc,mc->bnm", x, self.table)

    cost = measure(Relative(), (N, C))
    assert (cost.macs, cost.attention_macs, cost.conv_params) == (N * N * C, 0, N * C)


def test_a_network_of_convolutions_and_attention_agrees_with_torch_on_real_tensors() -> None:
    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 4, 4)
            self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).flatten(2).transpose(1, 2)
            return self.head(self.layers(x).mean(1))  # type: ignore[no-any-return]

    net = Hybrid()
    cost = measure(net, (3, 16, 16))
    for training in (True, False):
        counter = FlopCounterMode(display=False)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
                net.train(training)(torch.randn(1, 3, 16, 16))
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
        assert counter.get_total_flops() == 2 * cost.total_macs
    tokens = 16
    assert cost.macs == tokens * 16 * 48 + 2 * tokens * (4 * 16 * 16 + 2 * 16 * 32) + 160
    assert cost.attention_macs == 2 * 2 * tokens * tokens * 16


def test_heads_that_a_kernel_is_given_padded() -> None:
    """On a GPU flash attention takes widths of 8, 16, ...: torch adds zeros, which the network has not asked for."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            wide = F.pad(x, (0, 4))
            return torch.ops.aten._scaled_dot_product_flash_attention(wide, wide, wide)[0][..., :20]  # type: ignore[no-any-return]

    assert measure(Padded(), (HEADS, N, 20)).attention_macs == 2 * HEADS * N * N * 20


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_attention_with_a_rule_for_its_scores() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention")

    def near(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score - (query - key).abs()

    net = Call(nn.Identity(), lambda _, x: flex.flex_attention(x, x, x, score_mod=near))
    for batch in (1, 3):
        cost = measure(net, (HEADS, N, 16), batch=batch)
        assert (cost.macs, cost.attention_macs) == (0, 2 * HEADS * N * N * 16)
    calls = [call for call in record_flow(net, (HEADS, N, 16)).calls if str(call.function) == "flex_attention"]
    assert len(calls) <= 1  # or its own function was seen
