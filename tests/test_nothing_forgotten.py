"""No card, page, public name, verb or room is forgotten, and what README shows and links to is what there is."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml

import leanconv
from documents import ROOT
from leanconv.cli import app
from leanconv.rewrites.steps import STEPS
from test_architecture import MAY_IMPORT, SHARED

SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
CARDS = {path: path.read_text() for path in sorted(ROOT.glob("docs/methods/*.md"))}
REFERENCE = re.findall(
    r"^::: (\S+)", "".join(path.read_text() for path in sorted(ROOT.glob("docs/api/*.md"))), re.MULTILINE
)


def pages(nav: Any = None) -> Iterator[str]:
    """Every page of the site's contents."""
    for item in script("site_pages").with_every_card(SITE["nav"]) if nav is None else nav:
        entry = next(iter(item.values())) if isinstance(item, dict) else item
        if isinstance(entry, str):
            yield entry
        else:
            yield from pages(entry)


def script(name: str) -> ModuleType:
    """A module of the folder `docs`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_contents() -> None:
    there = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    there |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob("benchmarks/*.md")}
    there |= {"CONTRIBUTING.md", "CHANGELOG.md"}
    assert sorted(pages()) == sorted(there)


@pytest.mark.parametrize("stem", STEPS)
def test_every_operator_has_a_card(stem: str) -> None:
    found = [path for path, text in CARDS.items() if f"`{stem}`" in text.partition("\n")[0]]
    assert len(found) == 1, f"expected one card in docs/methods with (`{stem}`) in its heading, found {found}"
    assert f"methods/{found[0].name}" in list(pages())


@pytest.mark.parametrize("card", CARDS, ids=lambda path: path.name)
def test_every_card_says_the_same_things(card: Path) -> None:
    headings = re.findall(r"^## (.+)", CARDS[card], re.MULTILINE)
    assert headings[0] == "The idea"
    assert "When it helps, and when it does not" in headings
    assert "```python" in CARDS[card]


@pytest.mark.parametrize("name", leanconv.__all__)
def test_every_public_name_is_in_the_reference(name: str) -> None:
    if name == "__version__":
        assert "`leanconv.__version__`" in (ROOT / "docs/api/models.md").read_text()
    else:
        module = leanconv._operators().get(name)
        added = re.findall(r"^::: (\S+)", script("site_pages").other_operators(), re.MULTILINE)
        assert [*REFERENCE, *added].count(f"leanconv.{name}") + added.count(f"{module}.{name}") == 1


@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_is_about_what_exists(name: str) -> None:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return


def test_every_verb_is_in_the_documents() -> None:
    text = (ROOT / "docs/cli.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == list(VERBS)
    assert all(f"### leanconv {verb}\n" in script("site_pages").options_of_verbs() for verb in VERBS)


def test_every_room_is_in_the_picture() -> None:
    drawn = script("draw_architecture")
    assert sorted(drawn.words()) == sorted(set(MAY_IMPORT) - SHARED)
    assert drawn.picture() == (ROOT / "docs/architecture.svg").read_text(), (
        "the import table or docs/architecture.md has changed: python docs/draw_architecture.py"
    )


def test_the_pages_on_the_papers_are_current() -> None:
    pages = script("write_papers").pages()
    assert sorted(pages) == sorted(path.name for path in (ROOT / "docs/papers").glob("*.md"))
    for name, text in pages.items():
        assert text == (ROOT / "docs/papers" / name).read_text(), (
            "tests/papers/manifest.toml has changed: python docs/write_papers.py"
        )
    kept = script("write_papers").PRINTED.read_text()
    assert script("write_papers").printed() == kept, (
        "tests/papers/manifest.toml has changed: python docs/write_papers.py"
    )
    for card in ("osep", "igc", "csn", "octave", "mutual"):
        assert f"](../papers/{card}.md)" in (ROOT / f"docs/methods/{card}.md").read_text()


def test_the_measured_table_of_readme_was_measured() -> None:
    rows = [row for row in json.loads((ROOT / "benchmarks/speed.json").read_text()) if row["batch"] == 1]
    shown = re.findall(
        r"^\| .*\(`(.+)`\) \| ([\d.]+) ([GM]) \| (.+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(shown) >= 5
    for model, macs, unit, cells in shown:
        measured = {row["backend"]: row for row in rows if row["model"] == model}
        scale, digits = {"G": (1e9, 2), "M": (1e6, 1)}[unit]
        assert macs == f"{measured['eager']['macs'] / scale:.{digits}f}", model
        ours = [measured[name]["median_ms"] for name in ("leanconv", "onnxruntime_kernels")]
        best = min((one for one in ours if one is not None), default=None)
        times = [f"{measured[name]['median_ms']:.1f}" for name in ("eager", "onnxruntime", "openvino")]
        times.append("-" if best is None else f"{best:.1f}")
        assert cells.split(" | ") == times, model


def test_the_source_distribution_holds_what_readme_links_to() -> None:
    inside = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 10
    for link in links:
        assert any(fnmatch(link, entry) or link.startswith(f"{entry}/") for entry in inside), link


def test_the_project_says_the_same_everywhere() -> None:
    version = PROJECT["project"]["version"]
    assert leanconv.__version__ == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    makefile = (ROOT / "Makefile").read_text()
    for workflow in ROOT.glob(".github/workflows/*.yml"):
        for target in re.findall(r"run: make ([a-z -]+)", workflow.read_text()):
            for name in target.split():
                assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"{workflow.name}: make {name}"
    checked = re.search(r"^CODE +:= (.+)$", makefile, re.MULTILINE)
    assert checked is not None
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["files"] for hook in hooks if hook["id"].startswith("ruff")} == {f"^({'|'.join(checked[1].split())})/"}


def test_what_nobody_has_listed_is_added_to_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new operator has a card and its names: they are in the contents and the reference without being typed again."""
    module = script("site_pages")
    for folder in ("methods", "api"):
        (tmp_path / "docs" / folder).mkdir(parents=True)
    (tmp_path / "docs" / "methods" / "new.md").write_text("# A new idea (`new`)\n")
    (tmp_path / "docs" / "api" / "operators.md").write_text("::: leanconv.Grouped\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    nav = module.with_every_card([{"Home": "index.md"}, {"Method cards": [{"Old": "methods/old.md"}]}])
    assert nav[1] == {"Method cards": [{"Old": "methods/old.md"}, {"A new idea": "methods/new.md"}]}
    assert "::: leanconv.ops.separable.Depthwise\n" in module.other_operators()
    assert "Grouped" not in module.other_operators()
