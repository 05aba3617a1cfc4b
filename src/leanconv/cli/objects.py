"""What `predict`, `eval`, `table` and `compare` print of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanconv.cli.output import print_json, write_json
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import Tensor

    from leanconv.query import QueryTable
    from leanconv.recipes.detected import LoadedDetector

__all__ = ["compare_objects", "eval_objects", "predict_objects", "print_scores", "refuse", "refuse_file"]

_SHOWN = 24


def refuse(**options: object) -> None:
    """Raise `LeanconvError` for options, by their names, that are not for detectors."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise LeanconvError(f"{', '.join(given)}: not for detectors, which take images as they are and find objects")


def refuse_file(option: str, path: Path | None, *suffixes: str) -> None:
    """Raise `LeanconvError` for a file of another kind."""
    if path is not None and path.suffix.lower() not in suffixes:
        raise LeanconvError(f"{option} {path}: of a detector this is a file that ends in {' or '.join(suffixes)}")


def predict_objects(
    loaded: LoadedDetector,
    files: Sequence[str],
    *,
    width: float | None,
    resolution: int | None,
    least: float,
    predictions: Path | None,
    contact_sheet: Path | None,
    pictures: Path | None,
    json: bool,
) -> None:
    """Objects in images: a row for each, drawn where that is asked for."""
    from leanconv.recipes.detected import detect
    from leanconv.report.detections import draw_detections, save_picture, save_sheet

    refuse_file("--predictions", predictions, ".json")
    refuse_file("--contact-sheet", contact_sheet, ".png", ".jpg")
    from leanconv.data.contract import contract_of

    contract = contract_of(loaded.network)
    names = () if contract is None else contract.class_names or ()
    drawn: list[Any] = []
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)

    def shown(name: str, image: Tensor, found: dict[str, Tensor]) -> None:
        if pictures is None and (contact_sheet is None or len(drawn) >= _SHOWN):
            return
        picture = draw_detections(image, found, names, least=least)
        if pictures is not None:
            save_picture(picture, pictures / f"{Path(name).stem}.png")
        if contact_sheet is not None and len(drawn) < _SHOWN:
            drawn.append(picture)

    told = detect(loaded, files, width=width, resolution=resolution, shown=shown)
    if contact_sheet is not None:
        save_sheet(drawn, contact_sheet)
    if predictions is not None:
        write_json(told.rows(), predictions)
    unread = [{"name": problem.name, "reason": problem.reason} for problem in told.unreadable]
    if json:
        print_json({"model": loaded.name, "results": told.rows(least), "unreadable": unread})
        return
    of = dict(zip(told.class_ids, told.class_names, strict=True))
    for row in told.rows(least):
        box = " ".join(f"{value:.0f}" for value in row["bbox"])
        typer.echo(f"{row['file_name']}  {of[row['category_id']]}  {100 * row['score']:.1f} %  {box}")
    for path in (predictions, contact_sheet, pictures):
        if path is not None:
            typer.echo(f"written: {path}")
    if unread:
        typer.echo(f"{len(unread)} files could not be read: {', '.join(str(one['name']) for one in unread[:5])}")


def eval_objects(
    loaded: LoadedDetector,
    data: str | None,
    *,
    width: float | None,
    resolution: int | None,
    predictions: Path | None,
    json: bool,
) -> None:
    """Average precision of boxes and masks."""
    from leanconv.recipes.detected import evaluate_objects, open_for
    from leanconv.recipes.detection import coco_results

    refuse_file("--predictions", predictions, ".json")
    opened = open_for(loaded, data)
    detected, which = evaluate_objects(loaded, opened, width=width, resolution=resolution)
    if predictions is not None:
        ids = [one.id for one in opened.test_images]
        write_json(coco_results(detected.found, ids, opened.class_ids), predictions)
    if json:
        print_json(
            {
                "model": loaded.name + which,
                "images": detected.images,
                "part": opened.part,
                **{name: value if value == value else None for name, value in detected.scores.items()},
                "problems": len(opened.problems),
            }
        )
        return
    typer.echo(f"{loaded.name}{which}: {print_scores(detected.scores)} on {detected.images} images ({opened.part})")
    if predictions is not None:
        typer.echo(f"written: {predictions}")
    for remark in opened.remarks:
        typer.echo(remark)


def print_scores(scores: dict[str, float]) -> str:
    """AP and AP at an intersection of a half, in percent."""
    kinds = [kind for kind in ("box", "mask") if f"{kind}_ap" in scores]
    return ", ".join(
        f"{kind} AP {100 * scores[f'{kind}_ap']:.1f} (50: {100 * scores[f'{kind}_ap50']:.1f})" for kind in kinds
    )


def table_text(table: QueryTable) -> str:
    """A line for each configuration: scores, multiply-adds and their parts, in billions."""
    lines = ["width  side  box AP  AP50  mask AP  AP50   GMACs  (body, neck, proposals, boxes, masks)  ms"]
    for row in table.rows:
        scores = [100 * row.scores.get(name, float("nan")) for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap50")]
        parts = ", ".join(f"{value / 1e9:.2f}" for value in row.parts.values())
        took = "" if row.latency_ms is None else f"{row.latency_ms:.1f}"
        lines.append(
            f"{row.width:5g} {row.resolution:5d}  {scores[0]:6.1f} {scores[1]:5.1f}  {scores[2]:7.1f} {scores[3]:5.1f}"
            f"  {row.macs / 1e9:6.2f}  ({parts})  {took}"
        )
    return "\n".join(lines)


def compare_objects(loaded: Sequence[LoadedDetector], data: str | None, *, json: bool) -> None:
    """Detectors on the same images, at their largest: scores, and how each differs from the first."""
    from leanconv.recipes.detected import evaluate_objects, open_for

    rows: list[dict[str, Any]] = []
    for one in loaded:
        opened = open_for(one, data)
        detected, which = evaluate_objects(one, opened)
        if rows and detected.images != rows[0]["images"]:
            raise LeanconvError(
                f"{one.name} is tested on {detected.images} images and {rows[0]['model']} on {rows[0]['images']}: name"
                " the same with --data"
            )
        scores = {name: value if value == value else None for name, value in detected.scores.items()}
        params = sum(p.numel() for p in one.network.parameters())
        first = rows[0] if rows else None
        differs = {
            f"{name}_difference": None if first is None else (scores.get(name) or 0.0) - (first.get(name) or 0.0)
            for name in ("box_ap", "mask_ap")
            if name in scores
        }
        rows.append({"model": one.name + which, "images": detected.images, "params": params, **scores, **differs})
    if json:
        print_json(rows)
        return
    for row in rows:
        finite = {
            name: float("nan") if value is None else value
            for name, value in row.items()
            if name.endswith(("ap", "ap50"))
        }
        typer.echo(f"{row['model']}: {print_scores(finite)}, {row['params'] / 1e6:.1f} M parameters")
    typer.echo(
        f"on the same {rows[0]['images']} images; an interval of AP is not known, so small differences say little"
    )
