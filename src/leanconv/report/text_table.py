"""Every table of leanconv in one look: numbers to the right, units in the headers, no line wrapped.

A `TextTable` is plain text cells. `print_table` fits it to the terminal: what is too wide is first shortened in its
text columns, then broken into blocks that repeat the first column. Piped, it is printed as wide as it is, one line per
row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import StringIO
from typing import IO, TYPE_CHECKING, Literal

from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Column", "TextTable", "print_table"]

_GAP = 2
_SHORTEST = 10
"""A text column is never shortened below this."""


@dataclass(frozen=True)
class Column:
    """A header, with its unit, and how the cells below it stand."""

    header: str
    align: Literal["left", "right"] = "right"
    cut: int = 0
    """Whether cells may be shortened, with an ellipsis in the middle, where the table is too wide: 2 first, then 1."""


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of text: `rows` of as many cells as there are `columns`; `notes` are printed below, one per line.

    Rows whose index is in `strong` stand out on a terminal.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    strong: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise LeanconvError(
                    f"table {self.title!r}: {len(self.columns)} columns, but a row has {len(row)} cells"
                )

    def widths(self) -> list[int]:
        """The widths at which no cell is cut."""
        cells = zip(*([column.header for column in self.columns], *self.rows), strict=True)
        return [max(map(_width, column)) for column in cells]

    def to_rich(self) -> Table:
        """A rich table of the same content, as wide as it needs to be."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(self.title, style="bold") if self.title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),  # the box adds one column
            header_style="bold",
        )
        for column in self.columns:
            # Text, not markup: a layer may be called "conv[1]".
            table.add_column(Text(column.header), justify=column.align, no_wrap=True, overflow="ellipsis")
        for index, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold green" if index in self.strong else None)
        return table

    def fit(self, width: int) -> list[TextTable]:
        """The table in pieces that are at most `width` wide, unless its first two columns alone are wider."""
        table = self._shorten(width)
        widths = table.widths()
        blocks: list[list[int]] = [[]]
        used = widths[0]
        for index in range(1, len(widths)):
            if blocks[-1] and used + _GAP + widths[index] > width:
                blocks.append([])
                used = widths[0]
            blocks[-1].append(index)
            used += _GAP + widths[index]
        return [table._choose([0, *block], first=number == 0) for number, block in enumerate(blocks)]

    def _shorten(self, width: int) -> TextTable:
        """The table with cells cut where that is allowed, the widest first, until it fits or they are short."""
        wanted = self.widths()
        for level in (2, 1):
            text = [index for index, column in enumerate(self.columns) if column.cut == level]
            while sum(wanted) + _GAP * (len(wanted) - 1) > width:
                widest = max(text, key=lambda index: wanted[index], default=None)
                if widest is None or wanted[widest] <= _SHORTEST:
                    break
                wanted[widest] -= 1
        rows = tuple(tuple(_cut(cell, wide) for cell, wide in zip(row, wanted, strict=True)) for row in self.rows)
        return replace(self, rows=rows)

    def _choose(self, indices: list[int], *, first: bool) -> TextTable:
        columns = tuple(self.columns[index] for index in indices)
        rows = tuple(tuple(row[index] for index in indices) for row in self.rows)
        return replace(self, columns=columns, rows=rows, title=self.title if first else "", notes=())


def print_table(table: TextTable, *, console: Console | None = None, file: IO[str] | None = None) -> None:
    """Print `table`, fitted to the terminal; to a pipe or a `file`, as wide as it is.

    >>> print_table(TextTable(title="", columns=(Column("model", "left"), Column("MACs")), rows=(("a", "1.00 M"),)))
    model    MACs
    ─────────────
    a      1.00 M
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console(file=file, highlight=False)
    if not console.is_terminal:
        wide = sum(table.widths()) + _GAP * len(table.columns) + _width(table.title)
        plain = Console(file=StringIO(), width=wide, color_system=None, legacy_windows=False)
        with plain.capture() as capture:
            plain.print(table.to_rich())
        lines = [line.rstrip() for line in capture.get().splitlines()]
        console.file.write("\n".join([*lines, *table.notes]) + "\n")
        return
    for number, piece in enumerate(table.fit(console.width)):
        if number:
            console.print()
        console.print(piece.to_rich())
    for note in table.notes:
        console.print(Text(note, style="dim"))


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    """`text` in `width` cells; the middle goes, since names differ at their ends ("layer3.1.conv2")."""
    if _width(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"
