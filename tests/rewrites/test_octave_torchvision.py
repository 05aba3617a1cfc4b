"""Octave on every classification network of torchvision.

The walk (slow) prints which are rewritten and which are left alone, with reasons; the list is in the card.
"""

from __future__ import annotations

import gc

import pytest
import torch
from octave_walk import Walked, runs, walk

from leanconv.errors import LeanconvError

models = pytest.importorskip("torchvision.models")

SIZES = (224, 225)

REFUSED = {
    **dict.fromkeys(("vit_b_16", "vit_b_32", "vit_h_14", "vit_l_16", "vit_l_32"), "no convolution would emit"),
    **dict.fromkeys(("swin_b", "swin_s", "swin_t", "swin_v2_b", "swin_v2_s", "swin_v2_t"), "no convolution would emit"),
    **dict.fromkeys(
        ("convnext_base", "convnext_large", "convnext_small", "convnext_tiny"), "no convolution would emit"
    ),
    "alexnet": "no convolution would emit",
}
"""Network -> why it is refused: a transformer has one convolution, which makes its patches; ConvNeXt's are the stem,
patches and depthwise ones, which follow their input; all of AlexNet's behind the stem are its last stage."""

FAST = ("squeezenet1_1",)
NATIVE = {"inception_v3": 299}


def check(name: str, wanted: tuple[int, ...] = SIZES) -> Walked:
    """Rewrite the network and hold the result against the dense one; the largest are not doubled in precision."""
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    dense = models.get_model(name, weights=None, num_classes=7, **options).eval()
    sizes = [size for size in (*wanted, NATIVE.get(name, wanted[0])) if runs(dense, size)]
    count = sum(p.numel() for p in dense.parameters())
    return walk(dense, list(dict.fromkeys(sizes)), double=count < 60e6)


@pytest.mark.parametrize("name", FAST)
def test_some_networks(name: str) -> None:
    check(name, (64, 65))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_classification_network(capsys: pytest.CaptureFixture[str]) -> None:
    refused: dict[str, str] = {}
    passed: dict[str, Walked] = {}
    for name in models.list_models(module=models):
        try:
            passed[name] = check(name)
        except LeanconvError as error:
            refused[name] = str(error)
        gc.collect()
        with capsys.disabled():
            print(f"  {name}: {passed.get(name, refused.get(name))}", flush=True)
    with capsys.disabled():
        print(f"{len(passed)} of {len(passed) + len(refused)} classification networks of torchvision rewritten and run")
    assert refused.keys() == REFUSED.keys()
    assert all(REFUSED[name] in reason for name, reason in refused.items())
