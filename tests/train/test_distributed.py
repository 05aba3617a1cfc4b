"""Two processes do together what one does with the batches of both: gradients, statistics, the table, a whole run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import two_ranks
from torch import nn

from leanconv.elastic import MutualObjective, calibrate
from leanconv.query import QueryTable
from leanconv.train import Classify, is_main_process

CLI = ("-c", "from leanconv.cli import main; main()")


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Start two processes of the program, as `torchrun` does."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(two_ranks.__file__, "steps", out)
    assert done.returncode == 0, done.stderr
    return out, [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("step", two_ranks.STEPS)
@pytest.mark.parametrize("low_memory", [False, True])
def test_gradients_are_the_mean_over_both_batches(ranks, low_memory: bool, step: int) -> None:
    objective = MutualObjective(two_ranks.elastic_net().train(), seed=3)
    for rank in (0, 1):  # each batch normalised by its own statistics
        (objective(*two_ranks.batch(10 * step + rank), step)["loss"] / 2).backward()
    for found in ranks[1]:
        for name, parameter in objective.net.named_parameters():
            torch.testing.assert_close(found[f"{low_memory} {step}"][name], parameter.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_gradients_of_plain_training_too(ranks, accumulated: int) -> None:
    """Also accumulated over two batches, of which the last one is not full."""
    objective = Classify(two_ranks.elastic_net().model.train())
    for part in range(accumulated):
        for rank in (0, 1):
            (objective(*two_ranks.batch(10 * part + rank, two_ranks.PARTS[part]), part)["loss"] / 2).backward()
    for found in ranks[1]:
        for name, parameter in objective.net.named_parameters():
            torch.testing.assert_close(found[f"plain {accumulated}"][name], parameter.grad, rtol=0, atol=1e-6)


def test_plans_are_the_same_everywhere(ranks) -> None:
    objective = MutualObjective(two_ranks.elastic_net(), seed=3)
    for step in two_ranks.STEPS:
        plan = [tuple(config) for config in objective.plan(step)]
        assert [found[f"plan {step}"] for found in ranks[1]] == [plan, plan]


def test_calibration_is_that_of_one_process(ranks) -> None:
    whole = two_ranks.loader(0, 1)
    expected, _ = two_ranks.measured([whole, whole], latency=False)
    half, _ = two_ranks.measured([two_ranks.loader(0, 2), whole], latency=False)
    for found in ranks[1]:
        for name, reference in (("state", expected), ("state of one", half)):
            assert list(found[name]) == list(reference)
            for key, tensor in reference.items():
                torch.testing.assert_close(found[name][key], tensor, rtol=1e-6, atol=1e-6)
    first, second = (found["state"] for found in ranks[1])
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_table_is_that_of_one_process(ranks) -> None:
    whole = two_ranks.loader(0, 1)
    _, expected = two_ranks.measured([whole, whole], latency=False)
    first, second = (QueryTable.load(ranks[0] / f"rank{rank}.json") for rank in (0, 1))
    assert first.rows == second.rows  # latencies included: they are the first process's
    assert first.about["images"] == sum(two_ranks.SIZES) == expected.about["images"]
    assert (first.about["processes"], expected.about["processes"]) == (2, 1)
    for row, alone in zip(first.rows, expected.rows, strict=True):
        assert row.latency_ms is not None
        assert (row.config, row.accuracy, row.macs, row.peak_bytes) == (
            alone.config, alone.accuracy, alone.macs, alone.peak_bytes
        )  # fmt: skip


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, False),
        ({"SLURM_PROCID": "0"}, True),
    ],
)
def test_who_writes_files(monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str], main: bool) -> None:
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == main


def test_synchronised_norms_are_sliced_like_others() -> None:
    """Converted before the network is made elastic; on a CPU torch has no group to synchronise with."""
    plain = two_ranks.elastic_net().train()
    synced = two_ranks.elastic_net(synced=True).train()
    images, targets = two_ranks.batch(0)
    both = [MutualObjective(net, seed=3) for net in (plain, synced)]
    for objective in both:
        objective(images, targets, 0)["loss"].backward()
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in synced.norms)
    assert not any(isinstance(norm, nn.SyncBatchNorm) for norm in plain.norms)
    for one, other in zip(plain.parameters(), synced.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    plain.load_state_dict(synced.state_dict())
    for net in (plain, synced):
        calibrate(net, two_ranks.loader(0, 1), two_ranks.CONFIGS)
        assert len(net.calibrated) == 3
    for (name, one), other in zip(plain.state_dict().items(), synced.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=name)


# ----------------------------------------------------------------------------------------------------------- whole runs


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "metrics.csv") as file:
        return [
            {key: cell for key, cell in row.items() if key not in ("seconds", "images_per_second")}
            for row in csv.DictReader(file)
        ]


def digests(out: Path) -> list[str]:
    return [(out / f"digest{rank}").read_text() for rank in (0, 1)]


@pytest.mark.slow
def test_whole_runs_are_those_of_one_process(tmp_path: Path) -> None:
    """To rounding; in bf16, to that of products in it, over all the steps of an epoch."""
    (tmp_path / "two").mkdir()
    done = torchrun(two_ranks.__file__, "fits", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    for name in two_ranks.FITS:
        alone = two_ranks.fitted(tmp_path / "one", name)
        first, second = (torch.load(tmp_path / "two" / f"{name} {rank}.pt", weights_only=True) for rank in (0, 1))
        allowed = 2e-3 if "bf16" in name else 1e-6
        for key, wanted in alone.items():
            assert torch.equal(first[key], second[key])
            torch.testing.assert_close(first[key], wanted, rtol=0, atol=allowed, msg=f"{name}, {key}")
    exact = two_ranks.fitted(tmp_path / "exact", "plain")
    half = two_ranks.fitted(tmp_path / "half", "plain bf16-mixed")
    gaps = [float((half[key] - value).abs().max()) for key, value in exact.items()]
    assert 0 < max(gaps) < 0.02  # another precision, and the same training


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path: Path) -> None:
    done = torchrun(two_ranks.__file__, "fit", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    stopped = torchrun(two_ranks.__file__, "fit", tmp_path / "run", "--stop-at", 8)
    assert stopped.returncode != 0
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    assert (state["epoch"], state["leanconv_mid_epoch"]["batch"], len(state["leanconv_mid_epoch"]["ranks"])) == (
        1,
        4,
        2,
    )
    assert "in epoch 2, and everything is in" in stopped.stderr
    done = torchrun(two_ranks.__file__, "fit", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("low_memory", [False, True])
def test_a_rank_killed_and_the_job_restarted_resumes(tmp_path: Path, low_memory: bool) -> None:
    options = ["--low-memory"] * low_memory
    done = torchrun(two_ranks.__file__, "fit", tmp_path / "whole", *options)
    assert done.returncode == 0, done.stderr
    assert len(set(digests(tmp_path / "whole"))) == 1
    killed = torchrun(two_ranks.__file__, "fit", tmp_path / "run", *options, "--kill-at", 8)
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0
    done = torchrun(two_ranks.__file__, "fit", tmp_path / "run", *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def checked(out: Path, told: Sequence[str]) -> None:
    """A run folder of the tiny demo on two processes, and that only one of them spoke."""
    table = QueryTable.load(out / "table.json")
    assert table.about["processes"] == 2
    assert table.about["images"] == 32  # of both together: what --tiny tests
    assert all(row.latency_ms is not None for row in table.rows)
    assert (out / "model" / "story.json").exists()
    assert json.loads((out / "environment.json").read_text())[0]["event"] == "started"
    # One line of the epoch, one at the end.
    assert sum("  test " in line or "test accuracy" in line for line in told) == 2


@pytest.mark.slow
def test_a_recipe_under_torchrun(tmp_path: Path) -> None:
    done = torchrun("--no-python", sys.executable, *CLI, "train", "demo", "--tiny", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    checked(tmp_path / "run", done.stdout.splitlines())


def tasks_of_slurm(out: Path, *options: str) -> list[subprocess.Popen[str]]:
    """The demo with the variables that `srun --ntasks-per-node 2` gives its two tasks on one node."""
    job = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "leanconv",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0",
    }
    command = [sys.executable, *CLI, "train", "demo", "--tiny", "--set", "devices=2", *options, "--out", str(out)]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]


@pytest.mark.slow
def test_a_recipe_under_slurm(tmp_path: Path) -> None:
    tasks = tasks_of_slurm(tmp_path / "run")
    told = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], told
    checked(tmp_path / "run", "".join(out for out, _ in told).splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_has_lost_the_other_says_so_in_a_line(tmp_path: Path, victim: int) -> None:
    tasks = tasks_of_slurm(tmp_path / "run", "--set", "epochs=1000")
    until = time.monotonic() + 300
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.1)
    tasks[victim].kill()
    tasks[victim].communicate()
    _, told = tasks[1 - victim].communicate(timeout=60)
    assert tasks[1 - victim].returncode == 2, told
    lines = [line for line in told.splitlines() if line.startswith("leanconv: ")]
    assert len(lines) == 1, told
    assert "Traceback" not in told
    assert f"process {1 - victim} of 2 has lost another one, whose own output says why it ended (" in lines[0]
    assert lines[0].endswith(f"; to go on: leanconv train --resume --out {tmp_path / 'run'}")
