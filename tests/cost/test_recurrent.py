"""Recurrent layers: each matrix meets every step once, whether torch fuses the layer or runs it step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from leanconv.cost import measure
from leanconv.errors import LeanconvError

T, I, H = 4, 5, 7  # steps, inputs, hidden


class Sequence(nn.Module):
    """A recurrent layer on (batch, steps, inputs)."""

    def __init__(self, layer: nn.Module, call: Callable[[nn.Module, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.call = call

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0] if self.call is None else self.call(self.layer, x)


def with_states(layer: nn.Module, x: Tensor) -> Tensor:
    state = x.new_zeros(1, len(x), H)
    return layer(x, (state, state))[0]  # type: ignore[no-any-return]


def time_first(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(0, 1))[0]  # type: ignore[no-any-return]


def cells(layer: nn.Module, x: Tensor) -> Any:
    """Step by step: the first step has a state of zeros, which torch makes itself."""
    state = None
    for step in x.unbind(1):
        state = layer(step) if state is None else layer(step, state)
    return state


# Weights of one step; every layer runs T of them.
KINDS: dict[str, tuple[nn.Module, Callable[[nn.Module, Tensor], Any] | None, int]] = {
    "lstm": (nn.LSTM(I, H, batch_first=True), None, 4 * H * (I + H)),
    "lstm with states": (nn.LSTM(I, H, batch_first=True), with_states, 4 * H * (I + H)),
    "lstm time first": (nn.LSTM(I, H), time_first, 4 * H * (I + H)),
    "lstm no bias": (nn.LSTM(I, H, bias=False, batch_first=True), None, 4 * H * (I + H)),
    "lstm deep": (nn.LSTM(I, H, 2, batch_first=True), None, 4 * H * (I + H) + 4 * H * 2 * H),
    "lstm both directions": (
        nn.LSTM(I, H, 2, batch_first=True, bidirectional=True),
        None,
        2 * 4 * H * (I + H) + 2 * 4 * H * (2 * H + H),
    ),
    "lstm projected": (nn.LSTM(I, H, batch_first=True, proj_size=3), None, 4 * H * (I + 3) + H * 3),
    "gru": (nn.GRU(I, H, batch_first=True), None, 3 * H * (I + H)),
    "gru both directions": (nn.GRU(I, H, batch_first=True, bidirectional=True), None, 2 * 3 * H * (I + H)),
    "rnn": (nn.RNN(I, H, batch_first=True), None, H * (I + H)),
    "rnn relu": (nn.RNN(I, H, 2, batch_first=True, nonlinearity="relu", dropout=0.5), None, H * (I + H) + 2 * H * H),
    "lstm cell": (nn.LSTMCell(I, H), cells, 4 * H * (I + H)),
    "gru cell": (nn.GRUCell(I, H), cells, 3 * H * (I + H)),
    "rnn cell": (nn.RNNCell(I, H), cells, H * (I + H)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_recurrent_layers(kind: str) -> None:
    layer, call, weights = KINDS[kind]
    net = Sequence(layer, call)
    for training, batch, device in ((False, 1, "cpu"), (True, 1, "cpu"), (False, 3, "cpu"), (False, 2, "meta")):
        cost = measure(net.to(device).train(training), (T, I), batch=batch)
        assert (cost.macs, cost.attention_macs, cost.conv_params) == (T * weights, 0, weights)
        assert cost.by_module()["layer"].macs == T * weights
        assert (cost.params_not_counted, cost.params_not_run) == ({}, 0)


def test_a_convolutional_recurrent_network() -> None:
    """As for text in images: convolutions, then a bidirectional LSTM over the columns, then a linear layer."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 8, 3, padding=1)
            self.read = nn.LSTM(8, 16, bidirectional=True)
            self.head = nn.Linear(32, 11)

        def forward(self, x: Tensor) -> Tensor:
            columns = self.conv(x).mean(2).permute(2, 0, 1)
            return self.head(self.read(columns)[0])  # type: ignore[no-any-return]

    cost = measure(Reader(), (1, 8, 12))
    assert cost.macs == 96 * 8 * 9 + 12 * (2 * 4 * 16 * (8 + 16) + 32 * 11)
    assert cost.conv_params == 8 * 9 + 2 * 4 * 16 * (8 + 16) + 32 * 11


def test_packed_sequences_are_refused_in_one_line() -> None:
    """Their lengths are values."""

    def packed(layer: nn.Module, x: Tensor) -> Tensor:
        lengths = torch.full((len(x),), T)
        return layer(pack_padded_sequence(x, lengths, batch_first=True))[1][0]  # type: ignore[no-any-return]

    with pytest.raises(LeanconvError, match="the forward of Sequence reads tensor values") as caught:
        measure(Sequence(nn.LSTM(I, H, batch_first=True), packed), (T, I))
    assert "\n" not in str(caught.value)


class CuDNN(nn.Module):
    """Calls cuDNN's operator as torch does on a GPU, here on the meta device, where it needs no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(I, H, 2, batch_first=True, bidirectional=True, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        weights = list(self.layer._flat_weights)
        state = x.new_zeros(4, len(x), H)
        settings = (H, 0, 2, True, 0.0, False, True, [], None)  # ..., layers, batch first, dropout, train, both ways
        return torch.ops.aten._cudnn_rnn(x, weights, 4, None, state, state, 2, *settings)[0]  # type: ignore[no-any-return]


def test_fused_recurrent_layers_of_a_gpu() -> None:
    weights = 2 * 4 * H * (I + H) + 2 * 4 * H * (2 * H + H)
    for batch in (1, 3):
        cost = measure(CuDNN(), (T, I), batch=batch)
        assert (cost.macs, cost.conv_params, cost.params_not_counted) == (T * weights, weights, {})
        assert cost.by_operator() == {"aten._cudnn_rnn": T * weights}


@pytest.mark.parametrize("kind", ["lstm"])  # that of the GRU has no form without a GPU
def test_fused_cells_of_a_gpu(kind: str) -> None:
    """There the gates are fused and take the biases, the two products are not."""
    gates = {"lstm": 4, "gru": 3}[kind]

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(I, H, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            cell, state = self.cell, x.new_zeros(len(x), H)
            products = x @ cell.weight_ih.T, state @ cell.weight_hh.T
            fused = getattr(torch.ops.aten, f"_thnn_fused_{kind}_cell")
            return fused(*products, state, cell.bias_ih, cell.bias_hh)[0]  # type: ignore[no-any-return]

    for batch in (1, 3):
        cost = measure(Cell(), (I,), batch=batch)
        assert (cost.macs, cost.conv_params) == (gates * H * (I + H), gates * H * (I + H))
        assert (cost.params_not_counted, cost.params_not_run) == ({}, 0)


def test_weights_that_are_slices_of_one_memory() -> None:
    """As cuDNN lays out a layer, and as flat parameters do a whole network: each still is a weight of its own."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
    apart = measure(net, (3, 8, 8))
    flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.set_(flat[: parameter.numel()].view_as(parameter))
            flat = flat[parameter.numel() :]
    assert measure(net, (3, 8, 8)) == apart
    assert apart.params_not_counted == {"aten.native_batch_norm": 18}
