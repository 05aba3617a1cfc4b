"""How often networks are right, as tables: by class, and on whole videos; every share with its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from leanconv.report.text_table import Column, TextTable
from leanconv.report.units import NONE, percent, percent_interval

__all__ = ["INTERVAL_NOTE", "classes_table", "predictions_table", "sizes_table", "videos_table"]

INTERVAL_NOTE = "95 %: where the share of ever more of such items lies (Wilson's interval)."


def videos_table(figures: Sequence[Mapping[str, Any]], *, unread: str = "") -> TextTable:
    """Tests of networks on the same videos, a row each as `video_figures` gives them and its `model`, and chance.

    `unread` says how many more could not be read.
    """
    first = figures[0]
    chance = first["chance"]
    five = None if first["video5"] is None else 5 * chance
    rows = [*figures, {"model": "chance", "clip1": chance, "video1": chance, "video5": five}]
    clips = "1 clip" if first["clips"] == 1 else f"{first['clips']} clips"
    crops = "the centre of each" if first["crops"] == 1 else f"{first['crops']} crops of each"
    return TextTable(
        title="",
        columns=(
            Column("model", "left", cut=1),
            Column("clip@1 [%]"),
            Column("video@1 [%]"),
            Column("95 %"),
            Column("video@5 [%]"),
            Column("95 %"),
        ),
        rows=tuple(
            (
                row["model"],
                percent(row["clip1"]),
                percent(row["video1"]),
                _interval(row.get("video1_interval")),
                percent(row["video5"]),
                _interval(row.get("video5_interval")),
            )
            for row in rows
        ),
        notes=(f"{first['videos']} videos, {clips} of each, {crops}{unread}.", INTERVAL_NOTE),
    )


def sizes_table(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    """One network at several sizes of its input, a row each as `image_figures` or `video_figures` and its `size`."""
    images = "top1" in rows[0]
    kinds = (("top1", "top-1"), ("top5", "top-5")) if images else (("video1", "video@1"), ("video5", "video@5"))
    columns = [column for _, called in kinds for column in (Column(f"{called} [%]"), Column("95 %"))]
    what = "images" if images else "videos"
    unread = max(row["unreadable"] for row in rows)
    told = f"{', '.join(map(str, sorted({row[what] for row in rows})))} {what}"
    told += f"; {unread} more could not be read." if unread else "."
    return TextTable(
        title=rows[0]["model"],
        columns=(Column("input", "left"), *columns),
        rows=tuple(
            (
                "x".join(map(str, row["size"])),
                *(text for key, _ in kinds for text in (percent(row[key]), _interval(row.get(f"{key}_interval")))),
            )
            for row in rows
        ),
        notes=(told, INTERVAL_NOTE),
    )


def classes_table(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> TextTable:
    """A row per class, as `per_class` of `leanconv.train` gives them."""
    return TextTable(
        title=title,
        columns=(
            Column("class", "left", cut=1),
            Column("count"),
            Column("right"),
            Column("share [%]"),
            Column("95 %"),
            Column("most taken for", "left", cut=1),
        ),
        rows=tuple(
            (
                row["class"],
                str(row["count"]),
                str(row["right"]),
                percent(row["share"]),
                _interval(row["interval"]),
                NONE if row["confused_with"] is None else f"{row['confused_with']} ({row['confused']})",
            )
            for row in rows
        ),
        notes=(INTERVAL_NOTE,),
    )


def predictions_table(rows: Sequence[Mapping[str, Any]]) -> TextTable:
    """A row per file: its most probable classes, each with its probability in percent, the best first."""
    most = max((len(row["classes"]) for row in rows), default=1)
    return TextTable(
        title="",
        columns=(
            Column("file", "left", cut=2),
            *(Column("prediction" if place == 0 else str(place + 1), "left", cut=1) for place in range(most)),
        ),
        rows=tuple(
            (
                row["name"],
                *(
                    f"{name} {percent(share, 1)} %"
                    for name, share in zip(row["classes"], row["probabilities"], strict=True)
                ),
            )
            for row in rows
        ),
    )


def _interval(interval: Sequence[float] | None) -> str:
    return percent_interval(*(interval or (None, None)))
