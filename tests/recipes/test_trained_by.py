"""Which runs train on the C library: asked, measured or left to torch, in one sentence, and the same when resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels_library import library
from leanconv.build import create_model
from leanconv.deploy.forms.measured import TrainingOnKernels
from leanconv.errors import LeanconvError
from leanconv.recipes import change, get_recipe, read_recipe, run_recipe
from leanconv.recipes.settings import Recipe
from leanconv.recipes.trained_by import choose_kernels, training_form


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    library()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def recipe(**settings: object) -> Recipe:
    return replace(get_recipe("o_resnet20_cifar10"), **settings)  # type: ignore[arg-type]


def result(ratio: float, difference: float = 1e-5) -> TrainingOnKernels:
    return TrainingOnKernels(
        convs=36, of=39, batch=8, median_ms=1.0, ratio=ratio, difference=difference, saved_mb=5.5, plain_mb=10.1
    )


def chosen(
    one: Recipe, batches: int = 1000, net: str = "o_resnet20", resume: bool = False, out: str = "nowhere"
) -> tuple[str, str]:
    decided, sentence = choose_kernels(one, create_model(net), batches, Path(out), resume=resume)
    return decided.kernels, sentence or ""


@pytest.mark.parametrize(
    ("found", "kernels", "words"),
    [
        (result(0.31), "always", "36 of 39 convolutions train on leanconv's C library"),
        (result(0.31), "always", "in 0.31 of torch's time for a step of 8 images here; 5.5 MB an image are kept"),
        (result(1.2), "never", "takes 1.20 of torch's time for a step of 8 images here; kernels=always takes it all"),
        (result(0.3, 0.5), "never", "gradients on leanconv's C library"),
    ],
)
def test_measured(found: TrainingOnKernels, kernels: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanconv.deploy.forms.measured.measure_training", lambda *given, **more: found)
    decided, sentence = chosen(recipe())
    assert decided == kernels
    assert words in sentence


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (recipe(accelerator="cuda"), "training is not on the CPU"),
        (recipe(precision="bf16-mixed"), "precision=bf16-mixed, the library's kernels are float32"),
        (recipe(composed=True), "composed=true"),
        (recipe(devices=2), "with several processes nothing is timed"),
    ],
)
def test_left_to_torch_by_rule(one: Recipe, words: str) -> None:
    assert chosen(one) == ("auto", f"kernels: torch's own convolutions ({words})")


def test_short_runs_dense_networks_and_what_was_asked() -> None:
    assert chosen(recipe(epochs=2), batches=5) == (
        "auto", "kernels: torch's own convolutions (a run of 10 steps is not worth timing)"
    )  # fmt: skip
    assert chosen(recipe(), net="resnet20") == ("auto", "")
    assert chosen(recipe(kernels="never")) == ("never", "")
    decided, sentence = chosen(recipe(kernels="always"), batches=2)
    assert decided == "always"
    assert "36 convolutions train on leanconv's C library" in sentence
    with pytest.raises(LeanconvError, match="kernels must be auto, always or never, got"):
        recipe(kernels="on")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leanconv.deploy.forms.measured.missing", lambda: "it was not built")
    assert chosen(recipe())[1] == "kernels: torch's own convolutions (it was not built)"
    net = create_model("o_resnet20")
    with training_form(recipe(kernels="always"), net):
        assert not any(type(module).__name__ == "KernelChain" for module in net.modules())


@pytest.mark.parametrize("kernels", ["always", "never"])
def test_a_run_keeps_what_was_decided(kernels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny run, resumed for another epoch with nothing said: nothing is measured again."""
    monkeypatch.setattr("leanconv.recipes.trained_by._LEAST_STEPS", 0)
    monkeypatch.setattr(
        "leanconv.deploy.forms.measured.measure_training",
        lambda *given, **more: result(0.3 if kernels == "always" else 2),
    )
    tiny = change(get_recipe("o_resnet20_cifar10").tiny(), ["steps_per_epoch=1", "epochs=1"])
    done = run_recipe(tiny, tmp_path / "run", progress=False)
    assert done.recipe.kernels == read_recipe(tmp_path / "run" / "config.yaml").kernels == kernels
    assert not any(type(module).__name__.startswith("Kernel") for module in done.net.modules())
    monkeypatch.setattr("leanconv.deploy.forms.measured.measure_training", None)
    again = run_recipe(tiny, tmp_path / "run", resume=True, progress=False)
    assert again.recipe.kernels == kernels
