"""The picture of the house, drawn from the import table of `tests/test_architecture.py` and the words of
`docs/architecture.md`.

    python docs/draw_architecture.py      writes docs/architecture.svg

A room stands on the level above the highest one it imports. Within a level rooms are ordered so that arrows are short.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import mean

DOCS = Path(__file__).parent
PICTURE = DOCS / "architecture.svg"

WIDE, HIGH = 128, 46  # a box
GAP, BEND, STEP = 24, 38, 84  # between boxes, for an arrow that passes, from level to level
MARGIN = 14
PALE, DARK, INK, PAPER = "#c3ccd6", "#2f5d8a", "#1c2733", "#ffffff"
FILL, GROUND = "#eef3f8", "#f4efe3"

Table = Mapping[str, set[str]]


def import_table() -> tuple[dict[str, set[str]], list[str]]:
    """Room -> the rooms it may import, without the ground, which every room may; and the ground."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    from test_architecture import MAY_IMPORT, SHARED

    rooms = {room: set(allowed) - SHARED for room, allowed in MAY_IMPORT.items() if room not in SHARED}
    parts = {room: {name.partition(".")[0] for name in allowed} for room, allowed in rooms.items()}
    return {room: allowed & rooms.keys() for room, allowed in parts.items()}, sorted(SHARED)


def words() -> dict[str, str]:
    """Room -> what it is, in short."""
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", (DOCS / "architecture.md").read_text(), re.MULTILINE))


def levels(table: Table) -> dict[str, int]:
    """Room -> one more than the highest level it imports; one that imports none right under the lowest that uses it."""
    found: dict[str, int] = {}

    def level(room: str) -> int:
        if room not in found:
            found[room] = 1 + max((level(other) for other in sorted(table[room])), default=-1)
        return found[room]

    for room in table:
        level(room)
    users = {room: [found[other] for other in table if room in table[other]] for room in table}
    return {room: max(0, min(users[room], default=1) - 1) if not table[room] else found[room] for room in table}


def steps(table: Table) -> set[tuple[str, str]]:
    """The imports that no way over other rooms makes up for."""

    def reached(room: str) -> set[str]:
        return table[room].union(*(reached(other) for other in table[room]))

    return {
        (room, other)
        for room, allowed in table.items()
        for other in allowed
        if not any(other in reached(between) for between in allowed - {other})
    }


def routed(needed: set[tuple[str, str]], heights: Mapping[str, int]) -> dict[tuple[str, str], list[str]]:
    """Each arrow as the places it goes through: the room, a bend on every level between, the other room."""
    return {
        (room, other): [
            room,
            *(f"{room}>{other}@{level}" for level in range(heights[room] - 1, heights[other], -1)),
            other,
        ]
        for room, other in sorted(needed)
    }


def arranged(rooms: Table, routes: Mapping[tuple[str, str], list[str]], heights: Mapping[str, int]) -> list[list[str]]:
    """The rooms and bends of every level from left to right: each near those that it is joined to."""
    height = {name: heights[way[0]] - step for way in routes.values() for step, name in enumerate(way)}
    height |= {room: heights[room] for room in rooms}
    joined: dict[str, set[str]] = {name: set() for name in height}
    for way in routes.values():
        for upper, lower in pairwise(way):
            joined[upper].add(lower)
            joined[lower].add(upper)
    rows = [sorted(name for name in height if height[name] == level) for level in range(max(height.values()) + 1)]
    for _ in range(40):
        for row in (*rows, *reversed(rows)):
            x = {name: place for line in rows for name, place in zip(line, spread(line, 1.0), strict=True)}
            row.sort(key=lambda name: (round(mean([x[other] for other in joined[name]] or [0.5]), 6), name))
    return rows


def spread(row: list[str], width: float) -> list[float]:
    """The middles of a level's places over `width`; a bend takes a quarter of a room's place."""
    sizes = [0.25 if "@" in name else 1.0 for name in row]
    total, middles, at = sum(sizes), [], 0.0
    for size in sizes:
        middles.append((at + size / 2) / total * width)
        at += size
    return middles


def draw(table: Table, ground: list[str], captions: Mapping[str, str]) -> str:
    """The picture as SVG. The room that may import all others, and the ground, are bars without arrows."""
    everything = [room for room in table if table[room] | {room} == set(table)]
    inner = {room: allowed for room, allowed in table.items() if room not in everything}
    heights = levels(inner)
    routes = routed(steps(inner), heights)
    rows = arranged(inner, routes, heights)
    width = 2 * MARGIN + max(sum(WIDE + GAP if name in inner else BEND for name in row) for row in rows)
    height = 2 * MARGIN + (len(rows) + 1) * STEP + HIGH
    at = {
        name: (MARGIN + x, MARGIN + (len(rows) - level) * STEP)
        for level, row in enumerate(rows)
        for name, x in zip(row, spread(row, width - 2 * MARGIN), strict=True)
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="Helvetica, Arial, sans-serif">',
        "<title>The rooms of leanconv and who may import whom</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        f"<defs>{_tip('pale', PALE)}{_tip('dark', DARK)}</defs>",
    ]
    for room, allowed in inner.items():
        parts += [_arrow([at[room], at[other]], dark=False) for other in sorted(allowed) if (room, other) not in routes]
    parts += [_arrow([at[name] for name in way], dark=True) for way in routes.values()]
    for room in everything:
        parts += _bar(MARGIN, width, FILL, room, f"{captions[room]}; may import every room, nobody imports it")
    parts += _bar(height - MARGIN - HIGH, width, GROUND, ", ".join(ground), "the ground: every room may import it")
    for room in inner:
        x, y = at[room]
        parts += _box(x - WIDE / 2, y, WIDE, FILL, room, captions[room])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _tip(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
    )


def _arrow(way: list[tuple[float, float]], *, dark: bool) -> str:
    """From the foot of the first place to the head of the last, straight down beside the boxes between."""
    (x, y), *rest = way
    y += HIGH
    path = f"M{x:.0f} {y:.0f}"
    for number, (x1, y1) in enumerate(rest, 1):
        y1 -= 1
        bend = (y1 - y) * 0.5
        path += f" C{x:.0f} {y + bend:.0f} {x1:.0f} {y1 - bend:.0f} {x1:.0f} {y1:.0f}"
        x, y = x1, y1
        if number < len(rest):
            y += HIGH
            path += f" V{y:.0f}"
    colour, name, line = (DARK, "dark", 1.6) if dark else (PALE, "pale", 1.1)
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{line}" marker-end="url(#{name})"/>'


def _box(x: float, y: float, wide: float, fill: str, name: str, caption: str) -> list[str]:
    middle = x + wide / 2
    return [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{wide:.0f}" height="{HIGH}" rx="6" fill="{fill}" stroke="{DARK}"/>',
        f'<text x="{middle:.0f}" y="{y + 20:.0f}" text-anchor="middle" font-size="14" font-weight="bold"'
        f' fill="{INK}">{name}</text>',
        f'<text x="{middle:.0f}" y="{y + 36:.0f}" text-anchor="middle" font-size="11" fill="{INK}">{caption}</text>',
    ]


def _bar(y: float, width: float, fill: str, name: str, caption: str) -> list[str]:
    return _box(MARGIN, y, width - 2 * MARGIN, fill, name, caption)


def picture() -> str:
    """The picture of today's table."""
    table, ground = import_table()
    return draw(table, ground, words())


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
