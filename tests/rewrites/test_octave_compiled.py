"""The zoo's octave networks under torch.compile, without a graph break, and exported; the quick ones stand for all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leanconv.build import create_model, list_models

QUICK = {"oct_mobilenet_v1": {"multiplier": 0.125}}
ZOO = sorted(name for name in list_models("*oct_*"))
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ZOO]


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network whose norms are not those of a fresh one, and an image or a clip for it."""
    torch.manual_seed(0)
    net = create_model(name, num_classes=5, **QUICK.get(name, {}))
    size = (2, 3, 4, 64, 64) if name.endswith(("c2d_resnet50", "i3d_resnet50")) else (2, 3, 64, 64)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    x = torch.randn(size)
    with torch.no_grad():
        net.train()(x)
    return net.eval(), x


def close(got: Tensor, wanted: Tensor) -> None:
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.fixture(autouse=True)
def compiled_afresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", EACH)
@pytest.mark.timeout(3600)
def test_compiles_whole(name: str) -> None:
    net, x = network(name)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        close(torch.compile(net, fullgraph=True, backend=backend)(x), net(x))
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.timeout(3600)
def test_trains_alike_compiled(name: str) -> None:
    net, x = network(name)
    outputs, gradients = [], []
    for compiles in (False, True):
        twin = copy.deepcopy(net).double().train()
        for module in twin.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
        y = (torch.compile(twin, fullgraph=True, backend="aot_eager") if compiles else twin)(x.double())
        y.square().mean().backward()
        outputs.append(y.detach())
        gradients.append({name: p.grad for name, p in twin.named_parameters()})
    close(outputs[1], outputs[0])
    for name, wanted in gradients[0].items():
        assert (gradients[1][name] - wanted).abs().max() <= 1e-6 * wanted.abs().max() + 1e-12, name


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.timeout(3600)
def test_is_exported(name: str, tmp_path: Path) -> None:
    net, x = network(name)
    with torch.no_grad():
        program = torch.export.export(net, (x,))
        torch.export.save(program, tmp_path / "net.pt2")
        close(torch.export.load(tmp_path / "net.pt2").module()(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
@pytest.mark.timeout(3600)
def test_is_exported_to_onnx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from leanconv.deploy import export

    net, x = network(name)
    report = export(net, tmp_path / "net.onnx", size=tuple(x.shape[1:]))
    assert report.max_abs_difference <= 1e-4 * max(1.0, float(net(x).detach().abs().max()))
