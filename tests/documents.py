"""The documents as data: their blocks, and how each is run or checked.

A page is run from top to bottom in one empty folder and one namespace, its Python and its command lines alike. A comment
directly above a block, invisible on the page, says what the reader cannot be shown:

    <!-- hidden python          a block that is run and not shown: tiny data, an untrained network
    net = ...
    -->
    <!-- add: --tiny -->        further options for every `leanconv` line of the block below
    <!-- parse only: why -->    the block below is checked and not run

A `text` block directly below a block is what it prints; `...` stands for anything, as in a doctest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["PAGES", "REPORTS", "ROOT", "Block", "blocks", "commands", "is_shell", "lines_of"]

ROOT = Path(__file__).parent.parent

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
"""Documents whose blocks are run."""

REPORTS = sorted(ROOT.glob("benchmarks/*.md"))
"""Documents whose commands took hours; they are checked."""

SHELL = ("", "bash", "sh")
LANGUAGES = (*SHELL, "python", "text", "yaml", "json")

_COMMENT = re.compile(r"<!--\s*(?:(hidden) (\w+)|(add|parse only):)\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is that of its first line of text, counted from 1."""

    path: Path
    line: int
    language: str
    text: str
    hidden: bool = False
    add: tuple[str, ...] = ()
    parse_only: str | None = None
    expected: str | None = None

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def lines_of(path: Path) -> list[str]:
    """The lines of a document."""
    return path.read_text(encoding="utf-8").splitlines()


def is_shell(block: Block) -> bool:
    """Whether the block holds command lines."""
    return block.language in SHELL


def blocks(path: Path) -> list[Block]:
    """Every block of a document, the hidden ones included, with what the comments above and the text below say of it."""
    found: list[Block] = []
    above: dict[str, str] = {}
    last: Block | None = None  # the block that a following `text` block would be the output of
    for piece in _pieces(path):
        if isinstance(piece, Block):
            if piece.language == "text" and last is not None and not above:
                found[-1] = replace(last, expected=piece.text)
                last = None
                continue
            piece = replace(piece, add=tuple(shlex.split(above.get("add", ""))), parse_only=above.get("parse only"))
            found.append(piece)
            above, last = {}, None if piece.hidden or piece.language == "text" else piece
            continue
        comment = _COMMENT.fullmatch(piece[1].strip())
        if comment is None:
            assert not above, f"{path.relative_to(ROOT)}:{piece[0]}: the comment above belongs to no block"
            last = None
            continue
        hidden, language, kind, text = comment.groups()
        if hidden:
            start = piece[0] + piece[1].count("\n", 0, piece[1].index(text)) if text else piece[0]
            found.append(Block(path, start, language, text + "\n", hidden=True))
            last = None
        else:
            above[kind] = text
    return found


def _pieces(path: Path) -> Iterator[Block | tuple[int, str]]:
    """Blocks, comments and other lines that are not blank, in order."""
    lines = lines_of(path)
    at = 0
    while at < len(lines):
        line = lines[at]
        if fence := re.match(r"( *)```(\w*)", line):
            indent, language = fence.groups()
            end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == "```"), None)
            assert end is not None, f"{path.relative_to(ROOT)}:{at + 1}: the block is not closed"
            assert language in LANGUAGES, f"{path.relative_to(ROOT)}:{at + 1}: a block in {language!r} is not checked"
            text = "".join(part.removeprefix(indent) + "\n" for part in lines[at + 1 : end])
            yield Block(path, at + 2, language, text)
            at = end + 1
        elif line.startswith("<!--"):
            end = next((n for n in range(at, len(lines)) if "-->" in lines[n]), len(lines) - 1)
            yield at + 1, "\n".join(lines[at : end + 1])
            at = end + 1
        else:
            if line.strip():
                yield at + 1, line
            at += 1


def commands(text: str, first: int = 1) -> Iterator[tuple[int, list[str]]]:
    """The words of every command line in `text`, with its line number; continued lines are one, comments none."""
    number, waiting, start = first, "", first
    for line in text.splitlines():
        start = start if waiting else number
        number += 1
        if line.rstrip().endswith("\\"):
            waiting += line.rstrip()[:-1] + " "
            continue
        words = shlex.split(waiting + line, comments=True)
        waiting = ""
        if words:
            yield start, words
