"""What a long measurement has done so far, in a file, so that it goes on there where it was stopped."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

__all__ = ["KeptTables", "sources"]

Rows = list[dict[str, Any]]


class KeptTables:
    """The tables that were made under the same conditions, by name; `out` is where all are written in the end.

    Until then they are beside it, in a file whose name ends in `.part`, which is whole at any moment; without an `out`
    nothing is kept. `date` is the day of the first.

    Exits, with what to do, where that file cannot be read or was made under other conditions: on another machine, with
    other versions, or by other options.
    """

    def __init__(self, out: Path | None, conditions: dict[str, Any]) -> None:
        self.out, self.path = out, out and out.with_name(f"{out.name}.part")
        self.conditions: dict[str, Any] = json.loads(json.dumps(conditions))
        self.tables: dict[str, Rows] = {}
        self.date = date.today().isoformat()
        if self.path is not None and self.path.exists():
            self._read(self.path)
        else:
            self._write()  # where nothing can be written, it is said now and not after an hour

    def _read(self, path: Path) -> None:
        way_out = f"delete {path} to begin anew, or give another --out"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            before, self.tables, self.date = kept["conditions"], kept["tables"], kept["date"]
            names = dict.fromkeys([*before, *self.conditions])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path} is no file of tables that were measured ({error!r}): {way_out}") from error
        for name in names:
            if before.get(name) != self.conditions.get(name):
                raise SystemExit(
                    f"{path} is of a run under other conditions, {name} was {before.get(name)} and is "
                    f"{self.conditions.get(name)}: {way_out}"
                )

    def _write(self) -> None:
        from leanconv.files import write_text

        if self.path is not None:
            kept = {"conditions": self.conditions, "date": self.date, "tables": self.tables}
            write_text(self.path, json.dumps(kept, indent=2) + "\n")

    def keep(self, name: str, rows: Rows) -> None:
        """A table is made."""
        self.tables[name] = rows
        self._write()

    def finish(self, rows: Rows) -> None:
        """All are made: `rows` go to `out`, and the file beside it goes."""
        from leanconv.files import write_text

        if self.out is not None and self.path is not None:
            write_text(self.out, json.dumps(rows, indent=2) + "\n")
            self.path.unlink()


def sources() -> str:
    """Which sources of leanconv these are: a version says little of what is worked on."""
    import leanconv

    root = Path(leanconv.__file__).parent
    files = sorted(path for path in root.rglob("*") if path.suffix in (".py", ".h", ".cpp"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
