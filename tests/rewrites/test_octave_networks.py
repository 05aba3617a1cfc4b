"""The five networks of the promise, rewritten: saved, loaded, compiled and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leanconv.build import create_model, load, save
from leanconv.rewrites import Octave, rewrite

NETWORKS = ("resnet50", "seresnet50", "densenet121", "mobilenetv2_100", "efficientnet_b0")

pytest.importorskip("timm")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_saves_loads_compiles_and_exports(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from leanconv.deploy import export

    torch.manual_seed(0)
    net = create_model(f"timm/{name}", num_classes=10)
    done = rewrite(net, Octave(alpha=0.5), size=(3, 224, 224))
    with torch.no_grad():
        for size in (96, 96, 97):  # statistics that are not those of a fresh network
            done.model.train()(torch.randn(4, 3, size, size))
    done.model.eval()
    save(done, tmp_path / "net")
    again = load(tmp_path / "net")
    x = torch.randn(2, 3, 97, 96)
    with torch.no_grad():
        wanted = done.model(x)
        assert torch.equal(again(x), wanted)
        compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted, rtol=0, atol=1e-4)
    report = export(done.model, tmp_path / "net.onnx", size=(3, 128, 128))
    assert report.max_abs_difference < 1e-4
    assert report.dynamic_batch
    print(f"{name}: ONNX difference {report.max_abs_difference:.2e}")
