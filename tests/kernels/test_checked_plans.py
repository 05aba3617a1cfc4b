"""A plan that somebody sent cannot make the library read or write what is not its own, whatever stands in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checked_plans import Checked, check_damaged, over_time

from kernels_library import library, sanitized
from leanconv.kernels.pack import PLAN_VERSION, pack
from leanconv.kernels.program import Buffer, Conv, Program, Stage, Wire

LANES, REGISTERS = 8, 16


def small() -> Program:
    weight = np.ones((2, 2, 3, 3), np.float32)
    wires = (Wire(0, 0), Wire(0, 1))
    step = Conv(
        reads=wires,
        writes=1,
        order=(0, 1),
        stages=(Stage(weight=weight, bias=np.ones(2, np.float32), padding=(1, 1)),),
    )
    buffers = (Buffer(2, 6, 13), Buffer(2, 6, 13))
    return Program(buffers=buffers, steps=(step,), inputs=(0,), outputs=((Wire(1, 0), Wire(1, 1)),))


def test_damaged_plans_are_refused_or_stay_where_they_are() -> None:
    refused, ran = check_damaged(library().path, LANES, REGISTERS, examples=60)
    assert refused > 500
    assert ran > 300


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, PLAN_VERSION + 1, "it was written by another version of leanconv"),
        (1, 0, "a number in it is out of range"),  # no stamp: an arena would not be cleared
        (2, 16, "a step would read or write outside of its memory"),
        (2, 1 << 40, "a number in it is out of range"),
        (3, 0, "a number in it is out of range"),
        (3, 1 << 62, "a number in it is out of range"),
        (6, 5, "it needs vectors that this machine, or this build, does not have"),
        (7, 1, "it has a step of an unknown kind"),  # sums of gradients
        (9, 1 << 20, "a step would read or write outside of its memory"),  # what is each thread's own
        (10, 3, "a step would read or write outside of its memory|it is cut off"),  # channels of the input
        (13, 1 << 30, "a step would read or write outside of its memory"),  # its pitch
        (14, -1, "it is cut off, or refers to itself"),  # its table
        (14, 0, "a number in it is out of range|outside of its memory|it is cut off"),
        (22, -1, "it is cut off, or refers to itself"),  # where its step is
    ],
)
def test_what_is_wrong_is_said(at: int, value: int, words: str) -> None:
    checked, plan = Checked(library().path), pack(small(), lanes=LANES, registers=REGISTERS).plan
    assert checked.check(plan)[0] is None
    plan[at] = value
    problem, _ = checked.check(plan)
    assert problem is not None
    assert re.search(words, problem)


def test_a_step_of_another_kind() -> None:
    checked, plan = Checked(library().path), pack(small(), lanes=LANES, registers=REGISTERS).plan
    for kind in (2, 3, 99):  # those of gradients too
        plan[plan[22]] = kind
        assert checked.check(plan)[0] == "it has a step of an unknown kind"


def test_filters_of_no_channel_touch_nothing() -> None:
    """Nothing else of such a step is checked: its scratch may be anywhere."""
    program = over_time((3, 3, 3), 1, 4, 5, 13)
    checked, packed = Checked(library().path), pack(program, lanes=LANES, registers=REGISTERS)
    plan = packed.plan
    step = int(plan[10 + 6 * 2])
    assert plan[step] == 4
    plan[step + 2], plan[step + 29] = 0, -(1 << 20)  # its channels, its scratch
    assert checked.check(plan)[0] is None
    checked.run(plan, packed.weights)


def test_every_prefix_is_refused() -> None:
    checked, plan = Checked(library().path), pack(small(), lanes=LANES, registers=REGISTERS).plan
    for length in range(len(plan)):
        assert checked.check(plan[:length].copy())[0] is not None


def test_as_many_weights_as_are_read() -> None:
    checked, packed = Checked(library().path), pack(small(), lanes=LANES, registers=REGISTERS)
    problem, weights = checked.check(packed.plan)
    assert problem is None
    assert weights == 2 * 2 * 9 + 2 + 2  # and the two bounds of the activation; what follows is spare
    assert np.isfinite(checked.run(packed.plan, packed.weights[:weights].copy())[0]).all()


_UNDER = """
import sys
from pathlib import Path
from checked_plans import check_damaged
for number in range(int(sys.argv[4])):
    print(check_damaged(Path(sys.argv[1]), int(sys.argv[2]), 16, int(sys.argv[3]), number + 1))
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_damaged_plans_under_sanitizers(tmp_path: Path) -> None:
    """Reading too far leaves no trace in the test above."""
    path, asan = sanitized(tmp_path)
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _UNDER, str(path), "8", "8", "12"],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "LD_PRELOAD": asan,
            "ASAN_OPTIONS": "detect_leaks=0:redzone=2048",
            "OMP_NUM_THREADS": "1",
            "LEANCONV_EXACT": "1",
            "PYTHONPATH": ":".join([str(here), str(here.parent), str(here.parents[1] / "src")]),
        },
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "runtime error" not in done.stderr
    assert done.stdout.count("(") == 12
