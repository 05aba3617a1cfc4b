"""A stem over clips as a convolution of pictures: the same numbers, and only where that is so."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from leanconv.deploy.frame_by_frame import frame_by_frame

SIZE = (3, 5, 13, 10)


def followed(model: nn.Module) -> fx.GraphModule:
    """The graph of a model, its batch axis free."""
    x = torch.randn(2, *SIZE)
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model.eval(), (x,), dynamic_shapes=({0: batch},))
    return exported.run_decompositions({}).module()  # type: ignore[return-value]


def targets(graph: fx.GraphModule) -> list[str]:
    names = [str(node.target).split(".")[1] for node in graph.graph.nodes if node.op == "call_function"]
    return [name for name in names if name.startswith(("conv", "relu", "max_pool"))]


@pytest.mark.parametrize(
    ("layers", "made"),
    [
        (
            [
                nn.Conv3d(3, 4, (3, 7, 5), (1, 2, 2), (1, 3, 2)),
                nn.ReLU(),
                nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            ],
            ["conv2d", "relu", "max_pool2d"],
        ),
        ([nn.Conv3d(3, 4, (1, 3, 3), bias=False), nn.SiLU(), nn.ReLU()], ["conv2d", "relu"]),
        ([nn.Conv3d(3, 4, 3, padding=1, dilation=(1, 2, 1)), nn.MaxPool3d(2)], ["conv2d", "max_pool3d"]),
        ([nn.Conv3d(3, 4, (5, 3, 3), padding=(2, 0, 0)), nn.MaxPool3d((1, 2, 2))], ["conv2d", "max_pool3d"]),
    ],
)
def test_the_same_numbers(layers: list[nn.Module], made: list[str]) -> None:
    """A pool that says all of its kernel, stride and padding is taken along, others stay behind."""
    torch.manual_seed(0)
    graph = followed(nn.Sequential(*layers))
    x = torch.randn(3, *SIZE)
    wanted = graph(x)
    frame_by_frame(graph)
    assert targets(graph) == made
    torch.testing.assert_close(graph(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(3, 4, 3, padding=(0, 1, 1)),  # fewer frames come out
        nn.Conv3d(3, 4, 3, stride=2, padding=1),
        nn.Conv3d(3, 3, 3, padding=1, groups=3),
        nn.Sequential(nn.Conv3d(3, 8, (3, 1, 1), stride=(2, 1, 1)), nn.Conv3d(8, 4, 3, padding=1)),  # no picture
    ],
)
def test_others_stay(layer: nn.Module) -> None:
    graph = followed(nn.Sequential(layer))
    frame_by_frame(graph)
    assert set(targets(graph)) == {"conv3d"}


def test_what_is_no_graph_stays() -> None:
    frame_by_frame(nn.Identity())
