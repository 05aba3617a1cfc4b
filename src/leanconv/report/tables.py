"""Results as tables: costs, rewrites, query tables, measurements, exports.

Each function turns plain results into a `TextTable`; `print_table` prints it. A note says what MACs are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from leanconv.errors import LeanconvError
from leanconv.report.accuracy import INTERVAL_NOTE
from leanconv.report.count_notes import MACS_NOTE, OTHERS_NOTE, count_notes, share_note
from leanconv.report.text_table import Column, TextTable
from leanconv.report.units import NONE, binary, decimals, fixed, percent, percent_interval, ratio, scientific, si

if TYPE_CHECKING:
    from leanconv.cost import Cost
    from leanconv.cost.latency import Latency
    from leanconv.deploy import ExportReport
    from leanconv.deploy.examples import Scores
    from leanconv.query.table import Row

__all__ = [
    "changes_table",
    "comparison_table",
    "cost_table",
    "export_table",
    "modules_table",
    "query_table",
    "size_text",
    "skipped_table",
    "spread_text",
]


class ChangedLayer(Protocol):
    """One replaced layer, as a rewrite reports it."""

    @property
    def name(self) -> str: ...
    @property
    def before(self) -> str: ...
    @property
    def after(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def error(self) -> float | None: ...
    @property
    def params_before(self) -> int: ...
    @property
    def params_after(self) -> int: ...


class SkippedLayer(Protocol):
    """One layer that was left alone."""

    @property
    def name(self) -> str: ...
    @property
    def reason(self) -> str: ...


def cost_table(name: str, cost: Cost) -> TextTable:
    """All figures of one network, rounded and exact."""
    rows = [
        ("parameters", si(cost.params), f"{cost.params:,}"),
        ("conv and linear weights", si(cost.conv_params), f"{cost.conv_params:,}"),
        ("MACs", si(cost.macs), f"{cost.macs:,}"),
        *((f"  {part.name}", si(part.macs), f"{part.macs:,}") for part in cost.parts),
        *((("attention MACs", si(cost.attention_macs), f"{cost.attention_macs:,}"),) if cost.attention_macs else ()),
        *((kind, si(count), f"{count:,}") for kind, count in cost.other_operations.items()),
        *((("all operations", si(cost.all_operations), f"{cost.all_operations:,}"),) if cost.other_operations else ()),
        ("channel interactions", si(cost.interactions), f"{cost.interactions:,}"),
        ("activations, all [bytes]", binary(cost.activation_bytes), f"{cost.activation_bytes:,}"),
        ("activations, peak [bytes]", binary(cost.peak_activation_bytes), f"{cost.peak_activation_bytes:,}"),
        ("receptive field [pixels]", _field(cost.receptive_field), ""),
    ]
    return TextTable(
        title=f"{name}, input {size_text(cost.size)}",
        columns=(Column("cost", "left"), Column("rounded"), Column("exact")),
        rows=tuple(rows),
        notes=(
            MACS_NOTE,
            *((OTHERS_NOTE,) if cost.other_operations else ()),
            *((f"receptive field: {cost.receptive_field_note}.",) if cost.receptive_field_note else ()),
            *_parts_note(cost),
            *count_notes({name: cost}),
        ),
    )


def _parts_note(cost: Cost) -> tuple[str, ...]:
    """What the parts of a detector are given."""
    if not cost.parts:
        return ()
    regions = [f"{part.name} {part.times} of {size_text(part.size)}" for part in cost.parts if part.times > 1]
    return (
        f"the detector makes an image of {size_text(cost.parts[0].size)} of the input; counted for the most regions "
        f"that it keeps: {', '.join(regions)}; an image with fewer costs less.",
    )


def modules_table(name: str, cost: Cost, *, limit: int | None = None) -> TextTable:
    """Where the MACs and parameters of one network are: in its leaves, or in the `limit` most expensive of them."""
    modules = cost.by_module()
    leaves = {
        module: share
        for module, share in modules.items()
        if module and (share.macs or share.params) and not any(other.startswith(f"{module}.") for other in modules)
    }
    leaves = leaves or {"(all)": modules[""]}  # a network that is a single layer
    shown = sorted(leaves.items(), key=lambda item: -item[1].macs)[:limit] if limit else list(leaves.items())
    hidden = len(leaves) - len(shown)
    return TextTable(
        title=f"{name}, input {size_text(cost.size)}, by module",
        columns=(
            Column("module", "left", cut=1),
            Column("MACs"),
            Column("MACs [%]"),
            Column("params"),
            Column("params [%]"),
        ),
        rows=tuple(
            (
                module,
                si(share.macs),
                percent(share.macs / cost.macs if cost.macs else None, 1),
                si(share.params),
                percent(share.params / cost.params if cost.params else None, 1),
            )
            for module, share in shown
        ),
        notes=(
            MACS_NOTE,
            *count_notes({name: cost}),
            *((f"{hidden} cheaper modules are not shown.",) if hidden else ()),
        ),
    )


def comparison_table(
    costs: Mapping[str, Cost], *, latencies: Mapping[str, Latency] | None = None, title: str = ""
) -> TextTable:
    """Networks side by side, one row each, with ratios to the first; measured latency beside the MACs where given.

    Raises `LeanconvError` without a single network.
    """
    if not costs:
        raise LeanconvError("a comparison needs at least one network")
    first = next(iter(costs.values()))
    columns = [
        Column("model", "left", cut=1),
        Column("params"),
        Column("x"),
        Column("MACs"),
        Column("x"),
        Column("peak act."),
        Column("recept."),
    ]
    rows = []
    counted_all = any(cost.other_operations for cost in costs.values())
    digits = decimals(latency.median_ms for latency in latencies.values()) if latencies else 0
    for name, cost in costs.items():
        row = [
            name,
            si(cost.params),
            ratio(cost.params, first.params),
            si(cost.macs),
            ratio(cost.macs, first.macs),
            binary(cost.peak_activation_bytes),
            _field(cost.receptive_field),
        ]
        if counted_all:
            row += [si(cost.all_operations), ratio(cost.all_operations, first.all_operations)]
        if latencies is not None:
            latency = latencies.get(name)
            row += [fixed(latency.median_ms, digits), ratio(latency.ratio)] if latency else [NONE, NONE]
        rows.append(tuple(row))
    notes = [
        f"{MACS_NOTE} Input {size_text(first.size)}; x: relative to {next(iter(costs))}.",
        "peak act.: the most bytes of activations alive at once; recept.: receptive field in pixels.",
    ]
    if counted_all:
        columns += [Column("all op."), Column("x")]
        notes.append(
            "all op.: MACs, attention and all other operations; by kind in the table of one model, and as JSON."
        )
    if latencies is not None:
        columns += [Column("ms"), Column("x")]
        notes.append("ms: median latency of one run on this machine, all measured interleaved.")
    return TextTable(title=title, columns=tuple(columns), rows=tuple(rows), notes=(*notes, *count_notes(costs)))


def changes_table(
    changes: Iterable[ChangedLayer], skipped: Iterable[SkippedLayer] = (), *, title: str = ""
) -> TextTable:
    """Every replaced layer with the fate of its weights; the layers left alone are counted by reason below."""
    changes = list(changes)
    rows = [
        (
            change.name,
            change.before,
            change.after,
            change.weights if change.error is None or change.weights != "projected" else f"err {change.error:.2f}",
            si(change.params_before),
            si(change.params_after),
            ratio(change.params_after, change.params_before),
        )
        for change in changes
    ]
    if len(changes) > 1:
        before, after = (sum(getattr(c, f"params_{when}") for c in changes) for when in ("before", "after"))
        rows.append((f"all {len(changes)}", "", "", "", si(before), si(after), ratio(after, before)))
    reasons = Counter(skip.reason for skip in skipped)
    return TextTable(
        title=title,
        columns=(
            Column("layer", "left", cut=1),
            Column("before", "left", cut=2),
            Column("after", "left", cut=2),
            Column("weights", "left"),
            Column("params"),
            Column("now"),
            Column("x"),
        ),
        rows=tuple(rows),
        notes=(
            "weights: exact, fresh, or the nearest the new layer can express, with the relative error of the kernel.",
            *(f"left alone: {count} x {reason}" for reason, count in reasons.most_common()),
        ),
    )


def skipped_table(skipped: Iterable[SkippedLayer], *, title: str = "layers left alone") -> TextTable:
    """The layers that a rewrite selected and left alone, each with its reason."""
    return TextTable(
        title=title,
        columns=(Column("layer", "left", cut=1), Column("reason", "left", cut=1)),
        rows=tuple((skip.name, skip.reason) for skip in skipped),
    )


def query_table(rows: Sequence[Row], *, title: str = "") -> TextTable:
    """The configurations of an elastic network; those that no other beats are marked and stand out."""
    timed = any(row.latency_ms is not None for row in rows)
    weighed = any(row.peak_bytes is not None for row in rows)
    clips = any(row.frames is not None for row in rows)
    sure = any(row.accuracy_low is not None for row in rows)
    tags = list(dict.fromkeys(tag for row in rows for tag in row.times))
    digits = decimals(row.latency_ms for row in rows)
    cells = [
        (
            f"{row.width:.3g}",
            str(row.resolution),
            *(("" if row.frames is None else str(row.frames),) * clips),
            percent(row.accuracy),
            *((percent_interval(row.accuracy_low, row.accuracy_high),) * sure),
            si(row.macs),
            si(row.params),
            *((binary(row.peak_bytes),) * weighed),
            *((fixed(row.latency_ms, digits), spread_text(row.latency_low_ms, row.latency_high_ms, digits)) * timed),
            *(fixed(row.times[tag].median_ms if tag in row.times else None, digits) for tag in tags),
            "*" if row.pareto else "",
        )
        for row in rows
    ]
    return TextTable(
        title=title,
        columns=(
            Column("width"),
            Column("resolution"),
            *((Column("frames"),) * clips),
            Column("accuracy [%]"),
            *((Column("95 %"),) * sure),
            Column("MACs"),
            Column("params"),
            *((Column("memory"),) * weighed),
            *((Column("ms"), Column("low-high")) * timed),
            *(Column(f"{tag} [ms]") for tag in tags),
            Column("best"),
        ),
        rows=tuple(cells),
        notes=(
            *((INTERVAL_NOTE,) * sure),
            MACS_NOTE,
            *(("memory: weights and the activations alive at once, for one image.",) * weighed),
            *(("ms: median latency of one run on this machine; low-high: the middle 80 % of the rounds.",) * timed),
            "*: no other configuration is as accurate with fewer MACs.",
            *share_note({f"{row.width:.3g}-{row.resolution}": row.share_not_counted or 0.0 for row in rows}),
        ),
        strong=frozenset(index for index, row in enumerate(rows) if row.pareto),
    )


def export_table(reports: Sequence[ExportReport], *, title: str = "exported and verified") -> TextTable:
    """Exported files: their size, how far their outputs are from torch's, and what they score where that was tested."""
    scored = any(report.scores is not None for report in reports)
    return TextTable(
        title=title,
        columns=(
            Column("file", "left"),
            Column("size"),
            Column("form", "left"),
            Column("differs"),
            Column("samples"),
            *((Column("top-1 [%]"), Column("95 %"), Column("in torch [%]")) if scored else ()),
            Column("time [s]"),
        ),
        rows=tuple(
            (
                str(report.path),
                binary(report.bytes),
                f"{report.precision}{'' if report.opset is None else f', opset {report.opset}'}",
                scientific(report.max_abs_difference),
                str(report.samples),
                *(_scored(report.scores) if scored else ()),
                f"{report.seconds:.1f}",
            )
            for report in reports
        ),
        notes=(
            *(
                f"differs: largest absolute difference of the outputs from torch's, on {backend}."
                for backend in dict.fromkeys(report.backend for report in reports)
            ),
            *dict.fromkeys(remark for report in reports for remark in report.remarks),
        ),
    )


def _scored(scores: Scores | None) -> tuple[str, str, str]:
    if scores is None:
        return "", "", ""
    low, high = scores.intervals[1]
    return (
        percent(scores.file / scores.images, 2),
        f"{percent(low, 1)} to {percent(high, 1)}",
        percent(scores.model / scores.images, 2),
    )


def size_text(size: Sequence[Any]) -> str:
    """Of several inputs all shapes, as `3x32x224x224 + 3x4x224x224`."""
    joint = " + " if any(isinstance(one, tuple) for one in size) else "x"
    return joint.join(size_text(one) if isinstance(one, tuple) else str(one) for one in size)


def _field(field: Sequence[int] | None) -> str:
    return NONE if field is None else size_text(field)


def spread_text(low: float | None, high: float | None, digits: int) -> str:
    """From low to high, such as 1.2-1.4."""
    return NONE if low is None or high is None else f"{low:.{digits}f}-{high:.{digits}f}"
