"""Octave on somebody else's networks: one smallest model of every convolutional family of timm.

The walk (slow) prints how many families there are and which are refused, with reasons; the list is in the card.
"""

from __future__ import annotations

import pytest
import torch
from octave_walk import Walked, runs, walk
from timm_families import FAMILIES, NOT_CONVOLUTIONAL

from leanconv.errors import LeanconvError

timm = pytest.importorskip("timm")

SIZES = (224, 225, 320)

REFUSED = {"nfnet": "ScaledStdConv2d is not a plain nn.Conv1d/2d/3d"}
"""Family -> why it is refused."""

FAST = ("starnet", "vovnet")


def check(family: str, wanted: tuple[int, ...] = SIZES) -> Walked:
    """Rewrite the family's smallest model and hold the result against the dense one."""
    torch.manual_seed(0)
    dense = timm.create_model(FAMILIES[family], num_classes=7).eval()
    native = dense.pretrained_cfg["input_size"][-1]
    return walk(dense, [size for size in wanted if runs(dense, size)] or [native])


@pytest.mark.parametrize("family", FAST)
def test_some_families(family: str) -> None:
    check(family, (64, 65))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_convolutional_family(capsys: pytest.CaptureFixture[str]) -> None:
    refused: dict[str, str] = {}
    passed: dict[str, Walked] = {}
    for family in FAMILIES:
        if FAMILIES[family] not in timm.list_models():
            continue  # an older timm
        try:
            passed[family] = check(family)
        except LeanconvError as error:
            refused[family] = str(error)
        with capsys.disabled():
            print(f"  {family}: {FAMILIES[family]}, {passed.get(family, refused.get(family))}", flush=True)
    total = len(passed) + len(refused)
    with capsys.disabled():
        print(f"{len(passed)} of {total} convolutional families of timm {timm.__version__} rewritten and run")
    assert set(refused) <= set(REFUSED)
    assert all(REFUSED[family] in reason for family, reason in refused.items())
    assert len(passed) >= 0.95 * total


@pytest.mark.slow
def test_no_family_is_forgotten() -> None:
    from timm.models._registry import _module_to_models

    assert set(_module_to_models) <= set(FAMILIES) | NOT_CONVOLUTIONAL
