"""Killed at any moment, `push` leaves the old or the new model on the hub, and the next one ends as ever."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import kills
import pytest
import torch

import hub_server
import leanconv as lc
from leanconv.cli import main

MOMENTS = int(os.environ.get("LEANCONV_MOMENTS", "12"))
"""How many random moments are tried."""


def push_model(url: str, home: str) -> None:
    """`leanconv push model her/lean` to the server at `url`; what the hub's library keeps is kept in `home`."""
    from huggingface_hub import constants

    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = url + "/{repo_id}/resolve/{revision}/{filename}"
    constants.HF_HUB_DISABLE_XET = True
    constants.HF_HOME, constants.HF_HUB_CACHE = home, f"{home}/hub"
    constants.HF_TOKEN_PATH = f"{home}/token"
    os.environ["HF_TOKEN"] = hub_server.TOKEN
    main(["push", "model", "her/lean"])


def kill_at(number: int, process: int, now: int) -> None:
    """Kill the process when the hub meets its `number`-th request."""
    if now == number:
        os.kill(process, signal.SIGKILL)


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.serving() as served:
        yield served


def begin(folder: Path, hub: hub_server.Hub) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """An old model on the hub and another in `folder`; the hub's tree before, and what the folder holds."""
    folder.mkdir()
    for seed in (0, 1):
        torch.manual_seed(seed)
        lc.save(lc.create_model("resnet20", num_classes=4), folder / "model")
        if seed == 0:
            done = kills.run(push_model, folder, hub.url, str(folder / "home"))
            assert done.code == 0, done.err
    return hub.repositories["her/lean"].commits[-1][1], here(folder)


def here(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "model").rglob("*"))}


def check(hub: hub_server.Hub, folder: Path, old: dict[str, bytes], new: dict[str, bytes], at: object) -> None:
    """The old or the new model is on the hub, whole, the folder is as it was, and the next push ends as ever."""
    tree = hub.repositories["her/lean"].commits[-1][1]
    assert tree in (old, {**old, **new}), at
    assert here(folder) == new, at
    again = kills.run(push_model, folder, hub.url, str(folder / "home"))
    assert again.code == 0, f"{at}: {again.err}"
    assert hub.repositories["her/lean"].commits[-1][1] == {**old, **new}, at
    assert here(folder) == new, at
    left = [path for path in (folder / "tmp").rglob("*") if path.is_file()]
    assert not left, at


@pytest.mark.slow
def test_pushing_killed_at_every_request(hub: hub_server.Hub, tmp_path: Path) -> None:
    old, new = begin(tmp_path / "a", hub)
    hub.asked.clear()
    assert kills.run(push_model, tmp_path / "a", hub.url, str(tmp_path / "home")).code == 0
    count = len(hub.asked)
    assert count >= 5  # make the repository, ask for its card, announce, upload, commit
    for number in range(1, count + 1):
        hub.repositories["her/lean"].commit(old)
        hub.large.clear()
        hub.asked.clear()
        begun = kills.begin(push_model, tmp_path / "a", hub.url, str(tmp_path / "home"))
        hub.meets = partial(kill_at, number, begun.pid)
        assert begun.wait().code == -signal.SIGKILL
        hub.meets = lambda now: None
        check(hub, tmp_path / "a", old, new, f"request {number}: {hub.asked}")
    print(f"push: {count} of {count} requests")


@pytest.mark.slow
def test_pushing_killed_at_every_file_operation_and_at_random_moments(hub: hub_server.Hub, tmp_path: Path) -> None:
    old, new = begin(tmp_path / "a", hub)
    home = str(tmp_path / "a" / "home")
    hub.repositories["her/lean"].commit(old)
    start = time.perf_counter()
    whole = kills.run(push_model, tmp_path / "a", hub.url, home)
    seconds = time.perf_counter() - start
    assert whole.code == 0
    draw = random.Random("push")
    ways: list[dict[str, float]] = [{"kill_at": number} for number in range(1, len(whole.operations) + 1)]
    ways += [{"kill_after": draw.uniform(0.1, 1) * seconds} for _ in range(MOMENTS)]
    for way in ways:
        hub.repositories["her/lean"].commit(old)
        hub.large.clear()
        done = kills.run(push_model, tmp_path / "a", hub.url, home, **way)  # type: ignore[arg-type]
        assert done.code in (0, -signal.SIGKILL), done.err
        check(hub, tmp_path / "a", old, new, f"{way}, after {done.operations[-1:]}")
    print(f"push: {len(whole.operations)} operations ({whole.operations}), {MOMENTS} moments within {seconds:.0f} s")
