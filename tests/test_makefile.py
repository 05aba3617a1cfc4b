"""`make` finds a Python that will do, and says in one line where there is none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A Python that answers the Makefile's question with `code`, and makes an environment that can do nothing.
FAKE = """#!/bin/sh
if [ "$1" = -c ]; then exit {code}; fi
mkdir -p "$3/bin" && echo {name} > "$3/made_by" && printf '#!/bin/sh\\n' > "$3/bin/python" && chmod +x "$3/bin/python"
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with what make needs, as the only one that has programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("make", "sh", "touch", "mkdir", "chmod"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    return programs


def install(machine: Path, name: str, code: int) -> None:
    path = machine / name
    path.write_text(FAKE.format(code=code, name=name))
    path.chmod(0o755)


def setup(machine: Path, *more: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    venv = machine.parent / "venv"
    done = subprocess.run(
        [str(machine / "make"), "--no-print-directory", "-C", str(ROOT), "setup", f"VENV={venv}", *more],
        env={"PATH": str(machine)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done, venv


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        ({"python3.11": 0, "python3.12": 0, "python3": 0}, "python3.11"),
        ({"python3.13": 0, "python3": 0}, "python3.13"),
        ({"python3.11": 127, "python3": 1, "python": 0}, "python"),  # a name that only complains, and an old Python
    ],
)
def test_any_python_will_do(machine: Path, there: dict[str, int], taken: str) -> None:
    for name, code in there.items():
        install(machine, name, code)
    done, venv = setup(machine)
    assert done.returncode == 0, done.stderr
    assert (venv / "made_by").read_text().strip() == taken
    assert (venv / ".ready").exists()


def test_the_one_that_is_named_is_taken(machine: Path) -> None:
    install(machine, "python3.11", 0)
    install(machine, "mine", 0)
    done, venv = setup(machine, "PYTHON=mine")
    assert done.returncode == 0, done.stderr
    assert (venv / "made_by").read_text().strip() == "mine"


@pytest.mark.parametrize(("more", "blamed"), [((), "none of python3.11 python3.12"), (("PYTHON=old",), "old is")])
def test_none_is_said_in_one_line(machine: Path, more: tuple[str, ...], blamed: str) -> None:
    install(machine, "python3", 1)
    install(machine, "old", 1)
    done, venv = setup(machine, *more)
    assert done.returncode != 0
    first, last = done.stderr.strip().splitlines()
    assert first.startswith("leanconv needs Python 3.11 or later with its venv module")
    assert blamed in first
    assert last.startswith("make: ***")
    assert not venv.exists()
