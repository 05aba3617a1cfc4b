"""Killed at any moment, a command leaves what was there or what it was to make, and the next one ends as ever.

Continuous integration kills saving at every file operation and training at one. The long form kills every scenario at
every operation (`LEANCONV_KILLS` of them at most, spread evenly) and at random moments; its counts are in
benchmarks/reliability.md.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import kills
import pytest
from scenarios import SCENARIOS, Scenario, check_readable, meaning

MOST = int(os.environ.get("LEANCONV_KILLS", "1000"))
"""How many operations of a scenario are tried at most."""

MOMENTS = int(os.environ.get("LEANCONV_MOMENTS", "12"))
"""How many random moments of a scenario are tried."""


@dataclass(frozen=True)
class Whole:
    """A scenario that nobody disturbed: what was there, what it left, what it did and for how long."""

    before: Path
    after: dict[str, str]
    operations: tuple[str, ...]
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    """Every scenario that is asked for, once."""
    root = tmp_path_factory.mktemp("whole")
    known: dict[str, Whole] = {}

    def of(scenario: Scenario) -> Whole:
        if scenario.name not in known:
            before, folder = root / f"{scenario.name} before", root / scenario.name
            scenario.begin(before)
            shutil.copytree(before, folder)
            begin = time.perf_counter()
            done = kills.run(scenario.command, folder, timeout=600)
            assert done.code == 0, done.err
            known[scenario.name] = Whole(before, meaning(folder), done.operations, time.perf_counter() - begin)
        return known[scenario.name]

    return of


def killed_and_gone_on(scenario: Scenario, found: Whole, folder: Path, *, look: bool, **kill: float) -> str:
    """Kill it, see that what is there can be read (`look`), go on, and compare; where it died."""
    shutil.copytree(found.before, folder)
    done = kills.run(scenario.command, folder, timeout=600, **kill)  # type: ignore[arg-type]
    assert done.code in (0, -signal.SIGKILL), done.err
    at = f"{kill}, after {done.operations[-1:]}"
    if look:  # otherwise the next writer is the first who meets it
        check_readable(folder)
    again = kills.run(scenario.again(folder), folder, timeout=600)
    assert again.code == 0, f"{at}: {again.err}"
    assert meaning(folder) == found.after, at
    shutil.rmtree(folder)
    return at


def spread(count: int, most: int) -> list[int]:
    """The numbers from 1 to `count`, `most` of them at most, the last ones first among them."""
    return list(range(count, 0, -max(1, -(-count // most))))[::-1]


def test_saving_killed_at_every_operation(whole, tmp_path: Path) -> None:
    scenario = SCENARIOS["save"]
    found = whole(scenario)
    assert {line.partition(" ")[0] for line in found.operations} >= {"os.mkdir", "flush", "os.rename", "os.remove"}
    for number in range(1, len(found.operations) + 1):
        killed_and_gone_on(scenario, found, tmp_path / str(number), look=number % 2 == 0, kill_at=number)


@pytest.mark.slow
def test_training_killed_where_it_keeps_a_checkpoint(whole, tmp_path: Path) -> None:
    scenario = SCENARIOS["train"]
    found = whole(scenario)
    renamed = [number for number, line in enumerate(found.operations, 1) if line.startswith("os.rename")]
    first = next(number for number in renamed if "ckpt" in found.operations[number - 1])
    killed_and_gone_on(scenario, found, tmp_path / "killed", look=True, kill_at=first)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_operation(whole, tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    found = whole(scenario)
    numbers = spread(len(found.operations), MOST)
    for number in numbers:
        killed_and_gone_on(scenario, found, tmp_path / str(number), look=number % 2 == 0, kill_at=number)
    print(f"{name}: {len(numbers)} of {len(found.operations)} operations")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_random_moments(whole, tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    found = whole(scenario)
    draw = random.Random(name)
    for number in range(MOMENTS):
        after = draw.uniform(0.1, 1) * found.seconds
        killed_and_gone_on(scenario, found, tmp_path / str(number), look=number % 2 == 0, kill_after=after)
    print(f"{name}: {MOMENTS} moments within {found.seconds:.0f} s")
