"""The documents are true: every block runs, or is checked where it cannot, and all they name exists.

`documents.py` says how a block that needs preparation is written.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import leanconv
from documents import PAGES, REPORTS, ROOT, Block, blocks, commands, is_shell, lines_of, runs
from leanconv.cli import app, main
from leanconv.recipes import get_recipe
from leanconv.rewrites.steps import parse_step

VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
every_document = pytest.mark.parametrize("path", [*PAGES, *REPORTS], ids=lambda path: str(path.relative_to(ROOT)))


# ------------------------------------------------------------------------------------------------------------ running


@every_page
def test_the_page_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # tables are as wide as the terminal
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])  # as where somebody types
    before = set(sys.modules)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(path):
        capsys.readouterr()
        if block.language == "python":
            _run_python(block, namespace)
        elif is_shell(block):
            _run_shell(block)
        if block.expected is not None and not block.idle:
            _compare(block, capsys.readouterr().out)
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]  # the next page may have a module of that name


def _run_python(block: Block, namespace: dict[str, Any]) -> None:
    tree = ast.parse(block.text, block.place)
    ast.increment_lineno(tree, block.line - 1)
    code = compile(tree, str(block.path), "exec")  # a traceback shows the line of the document
    if runs(block):
        exec(code, namespace)


def _run_shell(block: Block) -> None:
    for line, words in commands(block.text, block.line):
        place = f"{block.path.relative_to(ROOT)}:{line}"
        check(place, words)
        if words[0] == "leanconv" and runs(block, words[1]):
            with pytest.raises(SystemExit) as ended:
                main([*words[1:], *block.add.get(words[1], ())])
            assert ended.value.code in (0, None), f"{place}: ended with {ended.value.code}"


def _compare(block: Block, printed: str) -> None:
    rules = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    example = doctest.Example(block.text, str(block.expected))
    checker = doctest.OutputChecker()
    if not checker.check_output(example.want, printed, rules):
        pytest.fail(f"{block.place}: {checker.output_difference(example, printed, rules)}")


# ----------------------------------------------------------------------------------------------------------- checking


def check(place: str, words: list[str]) -> None:
    """Fail unless every program in a command line is one of those below, called as it can be called."""
    while words and re.fullmatch(r"\w+=\S*", words[0]):  # a variable for the command
        words = words[1:]
    for program, check_it in PROGRAMS.items():
        if words[:1] == [program]:
            check_it(place, words[1:])
            return
    assert not words, f"{place}: no check here for {words[0]!r}; leanconv, {', '.join(PROGRAMS)} have one"


def _leanconv(place: str, words: list[str]) -> None:
    if not words or words[0] in ("--help", "--version"):
        return
    verb, *rest = words
    assert verb in VERBS, f"{place}: there is no verb {verb!r}"
    try:
        found = VERBS[verb].make_context(verb, list(rest)).params
    except typer.Exit:  # --help of a verb
        return
    except typer.TyperException as error:
        pytest.fail(f"{place}: leanconv {verb}: {getattr(error, 'format_message', error.__str__)()}")
    for step in found.get("rewrites") or ():
        parse_step(step)
    if verb == "train" and found["recipe"]:
        get_recipe(found["recipe"], tiny=found["tiny"], overrides=found["settings"])


def _make(place: str, words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for word in words:
        assert "=" in word or word in targets, f"{place}: no target {word!r} in the Makefile"


def _pip(place: str, words: list[str]) -> None:
    assert words[0] == "install", f"{place}: pip {words[0]}"
    for word in words[1:]:
        package = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
        assert package, f"{place}: leanconv is not published, so only this folder can be installed, got {word!r}"
        for extra in (package[1] or "").split(","):
            assert not extra or extra in EXTRAS, f"{place}: there is no extra {extra!r}"


def _python(place: str, words: list[str]) -> None:
    script = ROOT / words[0]
    assert script.is_file(), f"{place}: there is no {words[0]}"
    for word in words[1:]:
        assert not word.startswith("--") or f'"{word}"' in script.read_text(), f"{place}: {words[0]} has no {word}"


def _pytest(place: str, words: list[str]) -> None:
    for word in words:
        if "/" in word:
            assert (ROOT / word.split("::")[0]).exists(), f"{place}: there is no {word}"


def _around(place: str, words: list[str]) -> None:
    """A program that starts another one."""
    script = next((number for number, word in enumerate(words) if word.endswith(".py")), None)
    if script is not None:
        return _python(place, words[script:])
    assert "leanconv" in words, f"{place}: expected a leanconv command or a script"
    return _leanconv(place, words[words.index("leanconv") + 1 :])


def _fine(place: str, words: list[str]) -> None:
    """Nothing of ours."""


PROGRAMS: dict[str, Callable[[str, list[str]], None]] = {
    "leanconv": _leanconv,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "pytest": _pytest,
    "torchrun": _around,
    "srun": _around,
    "git": _fine,
    "find": _fine,
    "if": _fine,
    "else": _fine,
    "fi": _fine,
}


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.name)
def test_commands_of_reports_exist(path: Path) -> None:
    indented = "\n".join(line[4:] if line.startswith("    ") else "" for line in lines_of(path))
    fenced = [(block.line, block.text) for block in blocks(path) if is_shell(block)]
    for first, text in [(1, indented), *fenced]:
        if re.search(r"^(leanconv|python) ", text, re.MULTILINE):
            for line, words in commands(text, first):
                check(f"benchmarks/{path.name}:{line}", words)


@every_document
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@every_document
def test_public_names_exist(path: Path) -> None:
    """`lc.name` in code and in prose, and whole dotted names."""
    text = path.read_text()
    for name in re.findall(r"\blc\.(\w+)", text):
        assert name in leanconv.__all__, f"{path.name}: lc.{name}"
    for name in re.findall(r"`(leanconv(?:\.\w+)+)", text):
        assert _is_there(name), f"{path.name}: {name}"


def _is_there(name: str) -> bool:
    *parts, last = name.split(".")
    try:
        importlib.import_module(name)
    except ImportError:
        return bool(parts) and _is_there(".".join(parts)) and hasattr(importlib.import_module(".".join(parts)), last)
    return True


@every_document
def test_files_exist(path: Path) -> None:
    """A file named in prose stands where it is said to: from the root, beside the page, in the package or in tests."""
    prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(r"`([\w*/.-]+\.(?:py|md|json))(?:::\w+)?`", prose):
        if "/" in name and "foo" not in name:
            places = (ROOT, path.parent, ROOT / "src/leanconv", ROOT / "tests")
            assert any(list(place.glob(name)) for place in places), f"{path.name}: there is no {name}"
