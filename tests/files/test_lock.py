"""One process at a time writes to a folder."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from leanconv.errors import LeanconvError
from leanconv.files import LOCK, held, lock
from leanconv.files.owner import this_owner

HOLDS = """
import sys
from pathlib import Path
from leanconv.files import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDS, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        pattern = rf"run: process {process.pid} on {platform.node()} writes there since 20.*: wait for it, stop it, or"
        with pytest.raises(LeanconvError, match=pattern), held(tmp_path / "run"):
            pass
        process.communicate("")
    with held(tmp_path / "run"):  # it has ended
        assert json.loads((tmp_path / "run" / LOCK).read_text())["host"] == platform.node()
    assert not (tmp_path / "run").exists()  # nothing has come of it


def test_what_a_killed_process_held_is_taken_over(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        draft = tmp_path / "run" / ".last.ckpt.00000000-1-00000001-00000002.tmp"
        draft.write_text("of whatever machine: nobody else writes here")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with held(tmp_path / "run"):
        assert not draft.exists()
        assert json.loads((tmp_path / "run" / LOCK).read_text())["owner"] == f"{this_owner().name}-"
    assert not (tmp_path / "run" / LOCK).exists()


def left_by(folder: Path, **said: str) -> None:
    folder.mkdir(exist_ok=True)
    usual = {"owner": "00000000-1-00000001-", "host": "elsewhere", "since": "2026-11-27T10:00:00+00:00", "job": ""}
    (folder / LOCK).write_text(json.dumps({**usual, **said}))


def test_another_machine_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_by(tmp_path, job="4711")
    pattern = r"process 1 on elsewhere began to write there at 2026-11-27.*nobody can tell.* remove .*/\.lock"
    for restarts in (None, "1"):
        if restarts:  # but not by itself: a job that a batch system has started anew
            monkeypatch.setenv("SLURM_JOB_ID", "17")
            monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        with pytest.raises(LeanconvError, match=pattern), held(tmp_path):
            pass
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with held(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["job"] == "4711"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": "x", "host": "", "since": "", "job": ""}'])
def test_a_file_that_says_nothing_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK).write_text(content)
    with held(tmp_path):
        pass


def test_the_same_thread_may_ask_again_and_another_may_not(tmp_path: Path) -> None:
    said = []

    def other() -> None:
        try:
            with held(tmp_path):
                said.append("held")
        except LeanconvError as error:
            said.append(str(error))

    with held(tmp_path):
        with held(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert said == [f"{tmp_path}: another thread of this process writes there: choose another folder"]
    with held(tmp_path):
        pass


def test_a_forked_process_does_not_hold_it(tmp_path: Path) -> None:
    with held(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                with held(tmp_path):
                    os._exit(1)
            except LeanconvError:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(LeanconvError, match="writes there since"):
            raise_in_another_process(tmp_path)


def raise_in_another_process(folder: Path) -> None:
    code = f"from pathlib import Path\nfrom leanconv.files import held\nwith held(Path({str(folder)!r})): pass"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LeanconvError(done.stderr.splitlines()[-1])


def test_without_locks_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    with held(tmp_path):
        assert (tmp_path / LOCK).exists()
    left_by(tmp_path)
    with pytest.raises(LeanconvError, match="process 1 on elsewhere began"), held(tmp_path):
        pass
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    world = this_owner().world
    left_by(tmp_path, owner=f"{world}-{gone.pid}-00000001-", host=platform.node())
    with held(tmp_path):
        pass
    left_by(tmp_path, owner=f"{world}-{os.getppid()}-", host=platform.node())
    with (
        pytest.raises(LeanconvError, match=f"process {os.getppid()} on {platform.node()} writes there"),
        held(tmp_path),
    ):
        pass


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(LeanconvError, match=f"{place}: cannot be written: "), held(place):
            pass
