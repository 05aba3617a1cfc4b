"""Every example in a docstring runs, and none is left out."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
PROMPT = re.compile(r"^\s*>>> ", re.MULTILINE)
FILES = [path for path in sorted(SRC.rglob("*.py")) if PROMPT.search(path.read_text())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC / "leanconv")))
def test_examples_are_true(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write a file
    name = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in doctest.DocTestFinder().find(importlib.import_module(name)):
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    written = len(PROMPT.findall(path.read_text()))
    assert runner.tries == written, f"{name}: {written} examples are written and {runner.tries} were run"
