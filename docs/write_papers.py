"""The pages on the papers, written from `tests/papers/manifest.toml`.

python docs/write_papers.py      writes docs/papers/*.md, and the accuracies of recipes for `leanconv study`
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests" / "papers"))
from paper_rows import COUNTS, PAPERS, Row, amount, read_rows  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterable

_HEAD = """\
# {title}

Every row of every table and every curve of every figure, and what stands behind it here. Written from
`tests/papers/manifest.toml` by `python docs/write_papers.py`; `tests/papers/test_manifest.py` counts every network.

{count} rows: {told}. Accuracies are the paper's: none of these runs was repeated in full here.
Counts are multiply-adds of convolutions and linear layers, all parameters, and weights of these layers alone. See the
[card](../methods/{paper}.md) for how it works.
"""


def pages() -> dict[str, str]:
    """The text of every page by its name."""
    rows = read_rows()
    return {f"{paper}.md": _page(paper, [row for row in rows if row.paper == paper]) for paper in PAPERS}


def _page(paper: str, rows: Sequence[Row]) -> str:
    kinds = Counter("present" if row.present or row.tested else "absent" if row.absent else "open" for row in rows)
    told = ", ".join(f"{kinds[kind]} {kind}" for kind in ("present", "absent", "open"))
    parts = [_HEAD.format(title=PAPERS[paper], count=len(rows), told=told, paper=paper)]
    for place, members in groupby(rows, key=lambda row: row.place):
        parts += [f"## {place}", "", *_table(list(members)), ""]
    return "\n".join(parts).rstrip() + "\n"


def _table(rows: Sequence[Row]) -> Iterable[str]:
    yield "| row | here | printed | ours | remark |"
    yield "|---|---|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in _cells(row))} |"


def _cells(row: Row) -> tuple[str, ...]:
    printed = ", ".join(f"{name} {value}" for name, value in row.printed.items())
    ours = ", ".join(
        f"{name} {_like(row.counted[name], row.printed.get(name))}" for name in COUNTS if name in row.counted
    )
    remarks = [row.absent or "", row.open or "", row.rule or ""]
    if row.beside:
        remarks.append(f"macs with {' and '.join(row.beside)}: {_like(row.total, row.printed['macs'])}")
    remarks += [f"{name}: {why}" for name, why in row.differs.items()]
    return row.row, _behind(row), printed, ours, "; ".join(text for text in remarks if text)


def _behind(row: Row) -> str:
    """What stands behind a row, as somebody would name it."""
    if row.tested:
        return "a test"
    if not row.present:
        return "absent" if row.absent else "open"
    options = [f"{name}={value}" for name, value in row.options.items()]
    options += [f"{name} {value:g}" for name, value in (("width", row.width),) if value is not None]
    sizes = [row.resolution] if row.resolution else list(row.size[1:]) if row.size else []
    at = f" at {' x '.join(map(str, sizes))}" if sizes else ""
    return f"`{row.recipe or row.network}`" + (f" ({', '.join(options)})" if options else "") + at


def _like(counted: int, printed: str | None) -> str:
    """A count in the unit in which the paper prints it, one digit finer, or in whole numbers."""
    if printed is None:
        return f"{counted:,}"
    unit = printed.partition(" ")[2]
    digits = len(printed.partition(" ")[0].partition(".")[2])
    return f"{counted / amount(f'1 {unit}'.strip())[0]:,.{digits + 1}f} {unit}".strip()


PRINTED = DOCS.parent / "src" / "leanconv" / "recipes" / "study" / "printed.json"
_ACCURACIES = {"accuracy": 1, "top1": 1, "video@1": 1, "error": -1}


def printed() -> str:
    """What the papers print for the accuracy of a recipe, in percent, as JSON: recipe -> its rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in read_rows():
        if row.recipe is None or row.options:
            continue
        for name, sign in _ACCURACIES.items():
            match = re.fullmatch(r"(\d+\.\d+)(?: ± (\d+\.\d+))?", row.printed.get(name, ""))
            if match is None:
                continue
            value = float(match[1]) if sign > 0 else round(100 - float(match[1]), 2)
            entry: dict[str, Any] = {"paper": row.paper, "place": row.place, "row": row.row, "accuracy": value}
            entry |= {} if match[2] is None else {"spread": float(match[2])}
            entry |= {} if row.width is None else {"width": row.width, "resolution": row.resolution}
            entry |= {} if row.size is None else {"size": list(row.size)}
            others = found.setdefault(row.recipe, [])
            same = {"accuracy", "spread", "width", "resolution", "size"}
            if not any(all(other.get(key) == entry.get(key) for key in same) for other in others):
                others.append(entry)
    lines = [f"{json.dumps(name)}: {json.dumps(found[name], ensure_ascii=False)}" for name in sorted(found)]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    PRINTED.write_text(printed())
    (DOCS / "papers").mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / "papers" / name).write_text(text)
