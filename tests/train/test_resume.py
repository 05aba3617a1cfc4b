"""A run that is killed, at whatever moment, and resumed ends with the very bits of one that was not."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nets
import torch

from leanconv.errors import CheckpointError, LeanconvError
from leanconv.train import Classify, FitSettings, OptimSettings, fit


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run of three epochs of eleven steps."""
    out = tmp_path_factory.mktemp("reference") / "run"
    return out, tiny_nets.run(out)[1]


def killed(*arguments: object) -> None:
    """Run the program in another process, which must die by SIGKILL."""
    command = [sys.executable, tiny_nets.__file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == -9, done.stderr


def rows(out: Path) -> list[dict[str, str]]:
    timed = ("seconds", "images_per_second")
    with open(out / "metrics.csv") as file:
        return [{key: cell for key, cell in row.items() if key not in timed} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("moment", "finished"),
    [
        (("--kill-at", 5), 0),  # before there is a checkpoint
        (("--kill-at", 17), 1),  # in the middle of the second epoch
        (("--kill-in-save", 2), 1),  # while last.ckpt is being replaced
    ],
)
def test_killed_and_resumed(
    tmp_path: Path, reference: tuple[Path, str], moment: tuple[object, ...], finished: int
) -> None:
    out = tmp_path / "run"
    killed(out, *moment)
    if finished:
        assert torch.load(out / "last.ckpt", weights_only=True)["epoch"] + 1 == finished
    else:
        assert not (out / "last.ckpt").exists()
    result, weights = tiny_nets.run(out, resume=True)
    assert weights == reference[1]
    assert rows(out) == rows(reference[0])
    assert result.epochs == 3
    assert not list(out.glob(".*.tmp"))


def test_killed_and_resumed_in_another_folder_keeps_the_best(tmp_path: Path, reference: tuple[Path, str]) -> None:
    killed(tmp_path / "run", "--kill-at", 25)
    (tmp_path / "run").rename(tmp_path / "moved")
    result, weights = tiny_nets.run(tmp_path / "moved", resume=True)
    assert weights == reference[1]
    best = torch.load(tmp_path / "moved" / "best.ckpt", weights_only=True)
    assert best["epoch"] + 1 == result.best_epoch
    assert not (tmp_path / "run").exists()


def test_averaged_weights_survive_too(tmp_path: Path) -> None:
    whole = tiny_nets.run(tmp_path / "whole", ema=0.9)[1]
    killed(tmp_path / "run", "--ema", "--kill-at", 17)
    assert tiny_nets.run(tmp_path / "run", ema=0.9, resume=True)[1] == whole
    # Resumed once more, with nothing left to do: the averaged weights, not the raw ones.
    assert tiny_nets.run(tmp_path / "run", ema=0.9, resume=True)[1] == whole


def test_resume_of_a_finished_run_gives_its_weights(reference: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    result, weights = tiny_nets.run(tmp_path / "run", resume=True)
    assert weights == reference[1]
    assert result.history == tuple(tiny_nets.run(tmp_path / "run", resume=True)[0].history)


def test_another_seed_gives_other_weights(tmp_path: Path, reference: tuple[Path, str]) -> None:
    net = tiny_nets.tiny_net()
    settings = FitSettings(epochs=3, optim=OptimSettings(lr=0.1), seed=1)
    fit(Classify(net), tiny_nets.tiny_data(), settings, tmp_path / "run", progress=False)
    assert tiny_nets.digest(net) != reference[1]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_a_folder_with_a_run_is_not_overwritten(reference: tuple[Path, str]) -> None:
    with pytest.raises(LeanconvError, match=r"already holds a run, .* continue it with --resume, or choose another"):
        tiny_nets.run(reference[0])


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist, so there is nothing to resume"):
        tiny_nets.run(tmp_path / "none", resume=True)
    with pytest.raises(CheckpointError, match=r"holds no run \(no config.yaml\)"):
        tiny_nets.run(tmp_path, resume=True)


def test_resume_under_other_settings(tmp_path: Path, reference: tuple[Path, str]) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"cannot resume under other settings.*: epochs was 3 and is 5: set them"):
        tiny_nets.run(tmp_path / "run", resume=True, epochs=5)


def test_resume_with_another_network(tmp_path: Path, reference: tuple[Path, str]) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    settings = FitSettings(epochs=3, optim=OptimSettings(lr=0.1))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    with pytest.raises(CheckpointError, match=r"its weights are not those of this network \(\d+ differ"):
        fit(Classify(net), tiny_nets.tiny_data(), settings, tmp_path / "run", resume=True, progress=False)


def test_truncated_checkpoint(tmp_path: Path, reference: tuple[Path, str]) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    path = tmp_path / "run" / "last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        CheckpointError, match=r"last.ckpt: not a readable checkpoint \(truncated or foreign\)"
    ) as caught:
        tiny_nets.run(tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanconv.train.checkpoint_io import AtomicCheckpointIO, read_checkpoint

    tiny_nets.run(tmp_path / "run", epochs=1)
    before = read_checkpoint(tmp_path / "run" / "last.ckpt")
    path = tmp_path / "kept" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(before, path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LeanconvError, match=r"last.ckpt: the checkpoint cannot be written: .*No space left on device"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert read_checkpoint(path)["epoch"] == before["epoch"]
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


def _best(content: dict[str, Any]) -> dict[str, Any]:
    return next(state for state in content["callbacks"].values() if state.get("best_k_models"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.pop("loops"), "loops is missing"),
        (lambda c: c.update(epoch=-1), "epoch must be a whole number from 0 to 1e"),
        (lambda c: c["loops"]["fit_loop"].pop("epoch_progress"), "loops.fit_loop.epoch_progress is missing"),
        (lambda c: c["state_dict"].update(more=3), "state_dict.more must be a tensor, got 3"),
        (
            lambda c: _best(c).update(best_model_path="/precious"),
            "names '/precious', which is no checkpoint of this run",
        ),
        (
            lambda c: _best(c)["best_k_models"].update({f"{_best(c)['dirpath']}/../precious": torch.tensor(1.0)}),
            "precious', which is no checkpoint of this run",
        ),
        (
            lambda c: c["optimizer_states"][0]["state"][0].update(momentum_buffer=torch.ones(7)),
            r"optimizer_states\[0\].state\[0\].momentum_buffer has shape \(7,\), not \(8, 3, 3, 3\)",
        ),
        (lambda c: c["optimizer_states"][0]["param_groups"][0].pop("momentum"), r"param_groups\[0\] has no momentum"),
        (
            lambda c: c["loops"]["fit_loop"]["epoch_progress"]["current"].update(completed=11),
            r"loops.fit_loop.epoch_progress.current.completed is 11, in epoch 1",
        ),
        (
            lambda c: c["optimizer_states"][0]["param_groups"][0].update(momentum="0.9"),
            r"param_groups\[0\].momentum must be a number",
        ),
        (
            lambda c: c["optimizer_states"][0]["state"][0].update(momentum_buffer=3),
            r"state\[0\].momentum_buffer must be a tensor, got 3",
        ),
        (lambda c: c["lr_schedulers"][0].update(base_lrs=[0.1, 0.2]), r"base_lrs has 2 items, for 1 groups"),
        (lambda c: c["lr_schedulers"][0].update(last_epoch="a"), r"lr_schedulers\[0\].last_epoch must be a whole"),
        (lambda c: _best(c).update(kth_value="high"), r"kth_value'? must be a score, got 'high'"),
    ],
)
def test_a_checkpoint_is_what_a_run_writes(
    tmp_path: Path, reference: tuple[Path, str], change: Callable[[dict[str, Any]], Any], told: str
) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    content = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    content["epoch"] = 1  # of three, so it is to go on
    for counts in content["loops"]["fit_loop"]["epoch_progress"].values():
        counts.update({name: min(count, 2) for name, count in counts.items()})
    change(content)
    torch.save(content, tmp_path / "run" / "last.ckpt")
    with pytest.raises(CheckpointError, match=told) as caught:
        tiny_nets.run(tmp_path / "run", resume=True)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        (
            "metrics.csv",
            "epoch,val_accuracy\n1,0.5\n2,x\n",
            "metrics.csv: line 3 is no epoch of a run: invalid literal",
        ),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv: line 3 is no epoch of a run: epoch and val_accuracy are expected"),
        ("environment.json", "{}", "environment.json: no notes of a run: it must be a list"),
        ("environment.json", "[", "environment.json: no notes of a run: no JSON in line 1, column 2"),
    ],
)
def test_files_of_a_run_that_say_something_else(
    tmp_path: Path, reference: tuple[Path, str], name: str, text: str, told: str
) -> None:
    shutil.copytree(reference[0], tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    with pytest.raises(CheckpointError, match=told):
        tiny_nets.run(tmp_path / "run", resume=True)
