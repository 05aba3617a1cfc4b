"""Where something runs out, a command says so in one line and ends, and goes on when there is more of it."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import kills
import pytest
from PIL import Image
from scenarios import SCENARIOS, check_readable, meaning

pytestmark = pytest.mark.slow

TRAIN = SCENARIOS["train"]
GO_ON = ("train", "--resume", "--out", "run")
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a small disk or become another user")


def refused(done: kills.Ended) -> str:
    """The one line of a command that was refused."""
    lines = done.err.splitlines()
    assert (done.code, len(lines)) == (2, 1), (done.code, done.err, done.out)
    assert lines[0].startswith("leanconv: ")
    return lines[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed training leaves."""
    folder = tmp_path_factory.mktemp("whole") / "train"
    TRAIN.begin(folder)
    done = kills.run(TRAIN.command, folder)
    assert done.code == 0, done.err
    return meaning(folder)


def goes_on(folder: Path, whole: dict[str, str]) -> None:
    check_readable(folder)
    done = kills.run(TRAIN.again(folder), folder)
    assert done.code == 0, done.err
    assert meaning(folder) == whole


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@AS_ROOT
@pytest.mark.parametrize("size", ["20k", "300k", "3m"])
def test_a_full_disk(tmp_path: Path, whole: dict[str, str], size: str) -> None:
    """Too small for the settings, for the first checkpoint, for the second one beside it."""
    with small_disk(tmp_path, size):
        line = refused(kills.run(TRAIN.command, tmp_path))
        assert "No space left on device" in line
        assert "nothing was left behind" in line
        subprocess.run(["mount", "-o", "remount,size=100m", str(tmp_path)], check=True)
        goes_on(tmp_path, whole)


def short_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_limit_on_the_size_of_files(tmp_path: Path, whole: dict[str, str]) -> None:
    assert "File too large" in refused(kills.run(TRAIN.command, tmp_path, before=short_files))
    goes_on(tmp_path, whole)


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


def test_sixty_four_open_files(tmp_path: Path, whole: dict[str, str]) -> None:
    done = kills.run(TRAIN.command, tmp_path, before=few_files)
    assert done.code == 0, done.err
    assert meaning(tmp_path) == whole


def little_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 150 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def test_little_memory(tmp_path: Path, whole: dict[str, str]) -> None:
    command = (*TRAIN.command, "--set", "model_args.multiplier=40")
    line = refused(kills.run(command, tmp_path, before=little_memory))
    assert "memory" in line.lower()


def nobody() -> None:
    os.setgid(65534)
    os.setuid(65534)


@AS_ROOT
@pytest.mark.parametrize("name", ["save", "rewrite"])
def test_a_folder_of_another_user(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    folder = tmp_path / "folder"
    scenario.begin(folder)
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o777)
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == 0 and parent != Path("/") and parent != Path("/tmp"):
            parent.chmod(0o755)
    before = meaning(folder)
    done = kills.run(scenario.command, folder, before=nobody)
    if name == "save":
        assert (done.code, "could not be saved: Permission denied" in done.err) == (1, True)
    else:
        assert "Permission denied" in refused(done)
    assert meaning(folder) == before


def little_shared_memory() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    private = 1 << 18 | 16384
    for step in (
        lambda: libc.unshare(0x00020000),  # a world of mounts of its own
        lambda: libc.mount(b"none", b"/", None, private, None),
        lambda: libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=4m"),
    ):
        assert step() == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for number in range(96):
        folder = tmp_path / "photos" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (260, 260), (number, 0, 0)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def with_workers(photographs: Path, *more: str) -> tuple[str, ...]:
    options = (
        "data.workers=1",
        "data.augment=imagenet",
        "accelerator=cpu",
        "data.resolution=224",
        "data.batch_size=32",
    )
    sets = [part for option in (*options, *more) for part in ("--set", option)]
    return ("train", "--model", "resnet20", "--data", f"folder:{photographs}", *sets, "--out", "run")


@AS_ROOT
def test_little_shared_memory(tmp_path: Path, photographs: Path) -> None:
    """A batch does not fit where workers put it; a smaller one does."""
    epochs = ("epochs=1", "steps_per_epoch=2")
    done = kills.run(with_workers(photographs, *epochs), tmp_path, before=little_shared_memory)
    worker, line = done.err.splitlines()  # the worker says what it met, the command what to do
    assert "No space left on device" in worker
    assert (done.code, line.startswith("leanconv: "), "/dev/shm" in line) == (2, True, True)
    small = (*with_workers(photographs, *epochs), "--set", "data.batch_size=4")
    done = kills.run(small, tmp_path, before=little_shared_memory)
    assert done.code == 0, done.err


def test_a_worker_that_is_killed(tmp_path: Path, photographs: Path) -> None:
    begun = kills.begin(with_workers(photographs, "epochs=1000", "data.batch_size=4", "data.resolution=32"), tmp_path)
    until = time.monotonic() + 300
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.1)
    while begun.process.is_alive() and time.monotonic() < until:  # whichever is at work: each epoch has others
        with suppress(OSError):
            for word in Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split():
                os.kill(int(word), signal.SIGKILL)
        time.sleep(0.1)
    done = begun.wait(60)
    line = done.err.splitlines()[-1]  # a process that is killed while it is forked leaves lines of Python's own
    assert (done.code, line.startswith("leanconv: ")) == (2, True), done.err
    # What torch says depends on what the worker did when it was killed.
    said = ("killed by signal: Killed", "ended while it sent what it had read", "exited unexpectedly")
    assert any(words in line for words in said), line
    assert "use fewer workers" in line
    check_readable(tmp_path)


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    first = kills.begin((*TRAIN.command, "--set", "epochs=1000"), tmp_path)
    until = time.monotonic() + 300
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.1)
    line = refused(kills.run(TRAIN.command, tmp_path))
    assert f"process {first.pid} on " in line
    assert "writes there since" in line
    os.kill(first.pid, signal.SIGTERM)
    done = first.wait()
    assert (done.code, len(done.err.splitlines())) == (143, 1), done.err
    assert done.err.rstrip().endswith("leanconv train --resume --out run")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    begun = kills.begin((*TRAIN.command, "--set", "epochs=1000"), tmp_path)
    until = time.monotonic() + 300
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(begun.pid, signal.SIGSTOP)  # so that both are there before it can do anything
    for _ in range(2):
        os.kill(begun.pid, signal.SIGINT)
        os.kill(begun.pid, signal.SIGCONT)
        time.sleep(0.002)
    done = begun.wait(20)
    assert done.code in (130, -signal.SIGINT)
