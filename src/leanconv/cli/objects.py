"""What `predict`, `eval`, `table` and `compare` print of detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leanconv.cli.output import print_json, write_json
from leanconv.errors import DataError, LeanconvError

if TYPE_CHECKING:
    from torch import Tensor

    from leanconv.intervals import Interval
    from leanconv.query import QueryTable
    from leanconv.recipes.detected import LoadedDetector, ScoredObjects

__all__ = ["compare_objects", "eval_objects", "predict_objects", "print_scores", "refuse", "refuse_file"]

_SHOWN = 24

INTERVALS = "in parentheses 95 % intervals: of the APs on 1000 draws of as many images, with replacement"


def refuse(**options: object) -> None:
    """Raise `LeanconvError` for options, by their names, that are not for detectors."""
    from leanconv.recipes.detected import refuse_for_detector

    refuse_for_detector({f"--{name.replace('_', '-')}": value for name, value in options.items()})


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


def eval_objects(tested: ScoredObjects, name: str, *, predictions: Path | None, json: bool) -> None:
    """Average precision of boxes and masks, with intervals."""
    if predictions is not None:
        write_json(tested.results(), predictions)
    if json:
        print_json(tested.figures(name))
        return
    detected = tested.detected
    scores = print_scores(detected.scores, detected.intervals)
    typer.echo(f"{name}{tested.configuration}: {scores} on {detected.images} images ({tested.part})")
    typer.echo(INTERVALS)
    if predictions is not None:
        typer.echo(f"written: {predictions}")
    for remark in tested.remarks:
        typer.echo(remark)


def print_scores(scores: dict[str, float], intervals: Mapping[str, Interval | None] | None = None) -> str:
    """AP, with its interval where there is one, and AP at an intersection of a half, in percent."""
    told = []
    for kind in ("box", "mask"):
        if f"{kind}_ap" in scores:
            sure = (intervals or {}).get(f"{kind}_ap")
            told.append(
                f"{kind} AP {100 * scores[f'{kind}_ap']:.1f}{_within(sure)}, 50: {100 * scores[f'{kind}_ap50']:.1f}"
            )
    return "; ".join(told)


def _within(interval: Interval | None) -> str:
    return "" if interval is None else f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


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
    first: ScoredObjects | None = None
    for one in loaded:
        tested = evaluate_objects(one, open_for(one, data))
        row = {**tested.figures(one.name), "params": sum(p.numel() for p in one.network.parameters())}
        told = f"{row['model']}: {print_scores(tested.detected.scores, tested.detected.intervals)},"
        told += f" {row['params'] / 1e6:.1f} M parameters"
        if first is not None:
            try:
                above = tested.detected.above(first.detected)
            except DataError as error:
                raise LeanconvError(f"{one.name} and {loaded[0].name}: {error} with --data") from error
            for name, (value, interval) in above.items():
                row[f"{name}_difference"] = None if value != value else value
                row[f"{name}_difference_interval"] = None if interval is None else list(interval)
                if name in ("box_ap", "mask_ap"):
                    told += f"; {name.replace('_ap', ' AP')} {100 * value:+.1f}{_within(interval)} of the first's"
        first = first or tested
        rows.append({**row, "told": told})
    if json:
        print_json([{name: value for name, value in row.items() if name != "told"} for row in rows])
        return
    for row in rows:
        typer.echo(row["told"])
    typer.echo(f"all on the same {rows[0]['images']} images. {INTERVALS}; differences are of pairs, on the same draws.")
