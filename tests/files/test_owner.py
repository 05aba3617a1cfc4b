"""Names on disk say which process they belong to, and whether it is gone can be told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leanconv.files import owner
from leanconv.files.owner import Owner, is_gone, named, this_owner


def test_a_name_and_back() -> None:
    mine = this_owner()
    assert mine.process == os.getpid()
    assert named(f"{mine.name}-0a1b2c3d") == mine
    assert named("0a1b2c3d-17-00112233-44556677.tmp") == Owner("0a1b2c3d", 17, "00112233")
    assert named("0a1b2c3d-17-44556677") == Owner("0a1b2c3d", 17, "")  # as before processes had a start
    assert named("17") == Owner("", 17, "")
    assert named("notes") is None


def test_who_is_gone() -> None:
    mine = this_owner()
    assert not is_gone(mine)
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = owner._owner(process.pid)
    assert not is_gone(other)
    process.kill()
    until = time.monotonic() + 10
    while not is_gone(other) and time.monotonic() < until:  # a zombie by now: nobody has waited for it
        time.sleep(0.01)
    assert is_gone(other)
    process.communicate()
    assert is_gone(other)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux, which tells when a process began")
def test_a_number_that_was_given_again() -> None:
    mine = this_owner()
    assert is_gone(Owner(mine.world, mine.process, "00000000"))
    assert not is_gone(Owner(mine.world, mine.process, ""))  # of whom only the number is known
    assert not is_gone(Owner("00000000", mine.process, "00000000"))  # another machine's, or another container's


def test_a_fork_is_another_process() -> None:
    this_owner()
    child = os.fork()
    if child == 0:
        os._exit(0 if this_owner().process == os.getpid() else 1)
    assert os.waitpid(child, 0)[1] == 0
