"""The C library among the equal ways to compute a network for inference."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from forms_net import net
from torch import Tensor, nn

from kernels_library import library
from leanconv.build import create_model
from leanconv.deploy.forms import fastest, in_form
from leanconv.errors import LeanconvError, NothingToRewrite
from leanconv.kernels.library import NoLibrary, load
from leanconv.kernels.operator import ProgramModule
from leanconv.ops.igc import InterleavedGroup

SIZE = (3, 12, 12)


def on_library(model: nn.Module) -> bool:
    return any(isinstance(module, ProgramModule) for module in model.modules())


@contextmanager
def without_library(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanconv.kernels.library.load.__wrapped__.__defaults__", (folder / "none.so",))
        load.cache_clear()
        try:
            yield
        finally:
            load.cache_clear()


def assert_same(plain: nn.Module, fast: nn.Module, batch: int, size: tuple[int, ...] = SIZE) -> None:
    """To 1e-5 of the largest number."""
    x = torch.randn(batch, *size)
    with torch.inference_mode():
        wanted: Tensor = copy.deepcopy(plain).eval()(x)
        assert float((fast(x) - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_the_library_is_a_form_for_inference() -> None:
    library()
    plain = net(InterleavedGroup())
    before = copy.deepcopy(plain.state_dict())
    fast = in_form(plain, "library", SIZE)
    assert on_library(fast)
    assert not fast.training
    for batch in (1, 5):
        assert_same(plain, fast, batch)
    assert plain.training
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    octave = create_model("oct_resnet26", alpha=0.5, num_classes=10)
    assert_same(octave, in_form(octave, "library", (3, 64, 96)), 2, (3, 64, 96))


@pytest.mark.parametrize("compiled", [False, True])
def test_it_is_timed_with_the_others_and_kept_by_the_file(compiled: bool, tmp_path: Path) -> None:
    """The file says "library", whatever was fastest here: what it names is what is made."""
    library()
    plain, cache = net(InterleavedGroup()), tmp_path / "forms.json"

    found = partial(
        fastest, plain, SIZE, batch=2, forms=("library",), compiled=compiled, rounds=1, threads=2, cache=cache
    )
    first = found()
    assert {choice.form for choice in first.choices} == {"stages", "library"}
    (left,) = first.left
    assert left.startswith("library x8: the form 'library' fills no channels up")
    ((key, _),) = json.loads(cache.read_text()).items()
    known = {"form": "library", "multiple": 1, "median_ms": 1.0, "ratio": 0.5}
    cache.write_text(json.dumps({key: known}))
    again = found()
    assert [choice.form for choice in again.choices] == ["library"]
    assert on_library(again.model)
    for batch in (1, 3):
        assert_same(plain, again.model, batch)


def test_what_was_found_among_others_is_timed_again(tmp_path: Path) -> None:
    """Among fewer forms, and before there was a library."""
    library()
    plain, cache = net(InterleavedGroup()), tmp_path / "forms.json"
    fastest(plain, SIZE, forms=(), multiples=(1,), rounds=1, cache=cache)
    found = fastest(plain, SIZE, forms=("library",), multiples=(1,), rounds=1, cache=cache)
    assert len(found.choices) == 2
    with without_library(tmp_path):
        found = fastest(plain, SIZE, forms=("library",), multiples=(1,), rounds=1, cache=cache)
    assert [choice.form for choice in found.choices] == ["stages"]
    assert len(json.loads(cache.read_text())) == 3


def test_where_it_cannot_run_it_says_why(tmp_path: Path) -> None:
    library()
    with pytest.raises(LeanconvError, match="'library' fills no channels up"):
        in_form(net(InterleavedGroup()), "library", SIZE, multiple=8)
    with pytest.raises(LeanconvError, match=r"a CPU in float32: conv1\.weight of CifarResNet is float64 on cpu"):
        in_form(net(InterleavedGroup()).double(), "library", SIZE)
    with pytest.raises(LeanconvError, match=r"conv1\.weight of CifarResNet is float32 on meta"):
        in_form(net(InterleavedGroup()).to("meta"), "library", SIZE)
    with pytest.raises(NothingToRewrite, match="no part of Sequential gains by it"):
        in_form(nn.Sequential(nn.Flatten(), nn.Linear(432, 3)), "library", SIZE)
    with without_library(tmp_path):
        with pytest.raises(NoLibrary, match=r"python -m leanconv\.kernels\.build"):
            in_form(net(InterleavedGroup()), "library", SIZE)
        found = fastest(net(InterleavedGroup()), SIZE, forms=("library",), multiples=(1,), rounds=1)
    assert [choice.form for choice in found.choices] == ["stages"]
    assert "python -m leanconv.kernels.build" in found.left[0]
