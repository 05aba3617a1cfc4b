"""The documents as data: their blocks, and how each is run or checked.

A page is run from top to bottom in one empty folder and one namespace, its Python and its command lines alike. A
comment directly above a block, invisible on the page, says what the reader need not see:

    <!-- hidden python              a block that is run and not shown: tiny data, an untrained network
    net = ...
    -->
    <!-- add to train: --tiny -->   further options for the lines `leanconv train ...` of the block below
    <!-- parse only: why -->        the block below is checked and not run
    <!-- parse only (export, bench): why -->        only the lines of these verbs are not run

A `text` block directly below a block is what it prints; `...` stands for anything, as in a doctest.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

__all__ = ["PAGES", "REPORTS", "ROOT", "Block", "blocks", "commands", "is_shell", "lines_of", "runs"]

ROOT = Path(__file__).parent.parent

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
"""Documents whose blocks are run."""

REPORTS = sorted(ROOT.glob("benchmarks/*.md"))
"""Documents whose commands took hours; they are checked."""

SHELL = ("", "bash", "sh")
LANGUAGES = (*SHELL, "python", "text", "yaml", "json")

EVERYTHING = frozenset({"*"})

_COMMENT = re.compile(
    r"<!--\s*(?:hidden (\w+)|add to ([\w-]+):|(parse only)(?: \(([\w, -]+)\))?:)\s*(.*?)\s*-->", re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is that of its first line of text, counted from 1."""

    path: Path
    line: int
    language: str
    text: str
    add: Mapping[str, Sequence[str]] = field(default_factory=dict)
    idle: frozenset[str] = frozenset()  # verbs that are only parsed
    expected: str | None = None

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def lines_of(path: Path) -> list[str]:
    """The lines of a document."""
    return path.read_text(encoding="utf-8").splitlines()


def runs(block: Block, verb: str = "*") -> bool:
    """Whether the block, or in it the lines of a verb, are run."""
    return not block.idle & {verb, "*"}


def is_shell(block: Block) -> bool:
    """Whether the block holds command lines."""
    return block.language in SHELL


def blocks(path: Path) -> list[Block]:
    """Every block of a document, the hidden ones too, with what the comments above it and the text below it say."""
    found: list[Block] = []
    add: dict[str, list[str]] = {}
    idle: frozenset[str] = frozenset()
    last: Block | None = None  # the block that a following `text` block would be the output of
    for piece in _pieces(path):
        if isinstance(piece, Block):
            if piece.language == "text" and last is not None and not add and not idle:
                found[-1] = replace(last, expected=piece.text)
                last = None
                continue
            last = replace(piece, add=add, idle=idle)
            found.append(last)
            add, idle = {}, frozenset()
            continue
        last = None
        place = f"{path.relative_to(ROOT)}:{piece[0]}"
        if comment := _COMMENT.fullmatch(piece[1].strip()):
            language, verb, _, verbs, text = comment.groups()
            if language:
                first = piece[0] + piece[1].count("\n", 0, piece[1].index(text))
                found.append(Block(path, first, language, text + "\n"))
            elif verb:
                add[verb] = shlex.split(text)
            else:
                assert text, f"{place}: say why the block is not run"
                idle = frozenset(re.findall(r"[\w-]+", verbs)) if verbs else EVERYTHING
        else:
            assert not piece[1].startswith("<!--"), f"{place}: this comment says nothing that is understood"
            assert (add, idle) == ({}, frozenset()), f"{place}: the comment above belongs to no block"
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
