"""The import table of the house, as a test: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "leanconv"

SHARED = {
    "errors", "ends", "intervals", "spec", "story", "files", "machine", "modes", "ranks", "seeds",
    "schema", "plain_text", "pickles", "offline", "stored_zip", "trust",
}  # fmt: skip
EVERY_ROOM = {
    "plan", "kernels", "dryrun", "ops", "rewrites", "cost", "elastic", "query", "serve", "nets", "weights", "zoo",
    "build", "data", "train", "recipes", "deploy", "report", "jobs", "cli",
}  # fmt: skip

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "ends": set(),
    "intervals": set(),
    "spec": set(),
    "story": set(),
    "files": set(),
    "machine": set(),
    "modes": set(),
    "ranks": set(),
    "seeds": set(),
    "schema": set(),
    "plain_text": set(),
    "pickles": set(),
    "offline": set(),
    "stored_zip": set(),
    "trust": set(),
    "plan": set(),
    "kernels": set(),
    "dryrun": set(),
    "ops": {"plan"},
    "cost": {"dryrun"},
    "nets": set(),
    "weights": set(),
    "data": set(),
    "jobs": set(),
    "rewrites": {"ops", "dryrun", "data.contract"},
    "elastic": {"plan", "ops", "rewrites", "dryrun", "data.contract"},  # a chain at a width is a part of its plan
    "zoo": {"nets", "ops", "rewrites", "elastic"},
    "build": {"zoo", "nets", "ops", "rewrites", "elastic", "weights", "dryrun", "data.contract"},
    "train": {"elastic", "dryrun"},
    "deploy": {"ops", "rewrites", "elastic", "cost", "dryrun", "kernels", "data.contract"},
    # average precision is what training tests by, too; parts of a detector are followed one by one
    "query": {"elastic", "cost", "deploy", "dryrun", "train.precision"},
    "serve": {"elastic", "query", "deploy"},
    "report": {"cost", "query", "serve", "deploy"},
    # what a rewrite returned is asked as it is (dryrun), and so is an exported file (deploy); a study prices what it
    # has trained (cost)
    "recipes": {"build", "zoo", "data", "train", "elastic", "rewrites", "query", "report", "jobs"}
    | {"dryrun", "deploy", "cost"},
    "cli": EVERY_ROOM,
}

NO_TORCH = {
    "jobs", "errors", "ends", "intervals", "files", "machine", "spec", "story", "plan", "seeds",
    "schema", "plain_text", "pickles", "offline", "stored_zip", "trust",
}  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(SRC).with_suffix("").parts[0]


def imports_of(path: Path) -> list[tuple[int, str]]:
    """Every absolute module name that the file imports, also inside functions, with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found += [(node.lineno, node.module or "")]
            if node.module == "leanconv":
                found += [(node.lineno, f"leanconv.{alias.name}") for alias in node.names]
    return found


FILES = sorted(path for path in SRC.rglob("*.py") if path != SRC / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_follow_the_table(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"{room} is not in the import table"
    legal = MAY_IMPORT[room] | SHARED | {room}
    if room in SHARED:
        legal = {"errors", room}
    for line, name in imports_of(path):
        if name.startswith("leanconv."):
            target = name.split(".")[1]
            if target == "__version__":
                continue
            part = ".".join(name.split(".")[1:3])
            assert {target, part} & legal, f"{path}:{line}: {room} may not import {target}"


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in NO_TORCH], ids=lambda p: p.name)
def test_plain_rooms_do_not_need_torch(path: Path) -> None:
    top_level = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top_level]
    assert not [name for name in names if name and name.split(".")[0] == "torch"]


def test_every_room_exists_and_is_in_the_table() -> None:
    rooms = {path.stem if path.is_file() else path.name for path in SRC.iterdir() if not path.name.startswith("__")}
    rooms -= {"py"}  # py.typed
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_files_are_about_one_thing(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 420


def file_of(name: str) -> Path | None:
    """The file of a module of ours; None for anything else."""
    path = SRC.joinpath(*name.split(".")[1:])
    found = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    return found[0] if found and name.startswith("leanconv.") else None


def files_imported_by(path: Path) -> set[Path]:
    """Imports at the top, inside functions and under TYPE_CHECKING alike; a package counts where it is named itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {file_of(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = [file_of(f"{node.module}.{alias.name}") for alias in node.names]
            found |= {part or file_of(node.module) for part in parts}
    return {file for file in found if file is not None}


def circles(arrows: dict[Path, set[Path]]) -> list[list[Path]]:
    """The sets of files that all reach each other, several in each."""
    order: list[Path] = []
    seen: set[Path] = set()
    backwards: dict[Path, set[Path]] = {file: set() for file in arrows}
    for file, targets in arrows.items():
        for target in targets:
            backwards[target].add(file)

    def walk(start: Path, graph: dict[Path, set[Path]], out: list[Path]) -> None:
        seen.add(start)
        for target in sorted(graph[start] - seen):
            if target not in seen:
                walk(target, graph, out)
        out.append(start)

    for file in arrows:
        if file not in seen:
            walk(file, arrows, order)
    seen.clear()
    found = []
    for file in reversed(order):
        if file not in seen:
            walk(file, backwards, together := [])
            if len(together) > 1 or file in arrows[file]:
                found.append(sorted(together))
    return found


def test_no_circles() -> None:
    arrows = {path: files_imported_by(path) for path in FILES}
    found = [" <-> ".join(str(path.relative_to(SRC)) for path in files) for files in circles(arrows)]
    assert not found, "\n".join(found)


def test_circles_are_found() -> None:
    a, b, c, d = (Path(name) for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {a}, d: {a, d}}) == [[d], [a, b, c]]
    assert circles({a: {b, c}, b: {c}, c: set(), d: {a}}) == []
