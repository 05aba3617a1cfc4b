"""What the count leaves out is said: which operators, how many parameters are theirs, and which nothing reads."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanconv.cost import measure
from leanconv.report import comparison_table, cost_table, modules_table


class Mixed(nn.Module):
    """A layer of each sort: counted, a norm, an embedding, a position, a local one, and a head for training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.position = nn.Parameter(torch.randn(1, 8, 6, 6))
        self.local = nn.Parameter(torch.randn(8, 6, 6))
        self.words = nn.Embedding(10, 8)
        self.head, self.auxiliary = nn.Linear(8, 4), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        word = (x[:, 0, 0, 0] > 0).long()
        x = self.norm(self.conv(x)) + self.position
        x = (x * self.local).mean((2, 3)) + self.words(word)
        return self.head(x) + (self.auxiliary(x).sum() if self.training else 0)  # type: ignore[no-any-return]


def test_parameters_by_the_operator_that_reads_them() -> None:
    cost = measure(Mixed(), (3, 6, 6))
    assert cost.params_not_counted == {
        "aten.add": 8 * 36,
        "aten.mul": 8 * 36,
        "aten.embedding": 80,
        "aten.native_batch_norm": 16,
    }
    assert cost.params_not_run == 8 * 5 + 5
    inside = 8 * 27 + 8 + 8 * 4 + 4
    assert cost.params == inside + sum(cost.params_not_counted.values()) + cost.params_not_run
    assert cost.share_not_counted == (2 * 8 * 36 + 80 + 16) / cost.params
    assert measure(Mixed().train(), (3, 6, 6)).params_not_counted == cost.params_not_counted
    told = cost.to_json()
    assert json.loads(json.dumps(told)) == told
    assert told["params_not_counted"] == cost.params_not_counted
    assert told["share_not_counted"] == cost.share_not_counted
    assert told["params_not_run"] == cost.params_not_run


@pytest.mark.parametrize("shape", [(4,), (6, 4), (2, 3, 4), (2, 3, 2, 4)])
def test_biases_belong_to_their_layer_however_torch_adds_them(shape: tuple[int, ...]) -> None:
    cost = measure(nn.Linear(4, 7), shape)
    assert (cost.params_not_counted, cost.params_not_run) == ({}, 0)
    cost = measure(nn.ConvTranspose3d(2, 3, 2), (2, 3, 3, 3))
    assert cost.params_not_counted == {}


def test_a_position_of_as_many_numbers_as_channels_is_a_bias_and_others_are_not() -> None:
    class Positions(nn.Module):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__()
            self.conv, self.position = nn.Conv2d(3, 8, 1), nn.Parameter(torch.randn(shape))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.position  # type: ignore[no-any-return]

    assert measure(Positions((8, 1, 1)), (3, 4, 4)).params_not_counted == {}
    assert measure(Positions((8, 4, 4)), (3, 4, 4)).params_not_counted == {"aten.add": 128}
    assert measure(Positions((1, 4, 4)), (3, 4, 4)).params_not_counted == {"aten.add": 16}


def test_a_parameter_is_outside_only_where_no_layer_reads_it() -> None:
    class Tied(nn.Module):
        """The table of words is also the head, as in language models."""

        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            read = self.words(torch.arange(3)).mean(0)
            return F.linear(x + read, self.words.weight)

    cost = measure(Tied(), (4,))
    assert (cost.macs, cost.conv_params, cost.params_not_counted) == (40, 40, {})


def test_slices_count_as_slices_here_too() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            n = self.norm
            x = F.batch_norm(x, n.running_mean[:4], n.running_var[:4], n.weight[:4], n.bias[:4])
            return x * self.scale[:2].repeat(2) * self.scale[:3].sum()

    assert measure(Half(), (4,)).params_not_counted == {"aten.native_batch_norm": 8, "aten.mul": 5}


def test_every_table_says_it() -> None:
    net = Mixed()
    cost = measure(net, (3, 6, 6))
    share = f"parameters of operations that are not counted: {100 * cost.share_not_counted:.1f} %"
    for table in (cost_table("mixed", cost), modules_table("mixed", cost), comparison_table({"mixed": cost})):
        notes = [note for note in table.notes if note.startswith(share)]
        assert notes == [f"{share} (aten.add (288), aten.mul (288), aten.embedding (80), aten.native_batch_norm (16))."]
        assert f"parameters that this input does not reach: {100 * 45 / cost.params:.1f} %." in table.notes
    plain = measure(nn.Conv2d(3, 8, 3), (3, 6, 6))
    assert not any("parameters" in note for note in cost_table("plain", plain).notes)
    both = comparison_table({"plain": plain, "mixed": cost}).notes
    assert any(note.startswith("parameters of operations that are not counted: mixed ") for note in both)
    assert not any("attention" in note for note in both)


def test_attention_has_a_row_and_a_note() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    cost = measure(layer, (5, 8))
    assert ("attention MACs", "400", "400") in cost_table("layer", cost).rows
    notes = comparison_table({"layer": cost}).notes
    assert "products of two activations (attention), not in MACs: 400." in notes
    assert cost.to_json()["attention_macs"] == 400
    assert cost.to_json(modules=True)["modules"][0]["attention_macs"] == 400
