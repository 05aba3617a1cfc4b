"""What the documents say exists: names, verbs, options and links."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer

import leanconv
from leanconv.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
)

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def blocks(path: Path, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@every_document
def test_python_is_python_and_names_are_public(path: Path) -> None:
    for block in blocks(path, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lc":
                assert node.attr in leanconv.__all__, f"{path.name}: lc.{node.attr}"


@every_document
def test_verbs_and_options_exist(path: Path) -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in "\n".join(blocks(path)).splitlines():
        words = line.split("#")[0].split()
        if not words or words[0] != "leanconv" or len(words) < 2:
            continue
        assert words[1] in verbs, f"{path.name}: {line}"
        known = {option for parameter in verbs[words[1]].params for option in parameter.opts}
        for word in words[2:]:
            if word.startswith("--"):
                assert word in known, f"{path.name}: {line}"
