"""Plans of layers and of models, as tables; the facts come as `leanconv.ops.plan_facts` gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from leanconv.report.text_table import Column, TextTable
from leanconv.spec import ConvSpec

__all__ = ["layer_plan_table", "model_plan_table", "sweep_table"]

Facts = Mapping[str, Any]


def layer_plan_table(step: str, facts: Facts, stages: Sequence[Facts]) -> TextTable:
    """One layer: a row for each convolution of its chain, and their sum."""
    inputs, outputs, kernel, _ = facts["conv"]
    rows = [
        (
            str(number),
            "x".join(map(str, stage["kernel"])),
            f"{stage['in_channels']} -> {stage['out_channels']}",
            str(stage["groups"]),
            str(stage["shuffle"]) if stage["shuffle"] > 1 else "",
            f"{stage['params']:,}",
            _whole(stage["macs"]),
        )
        for number, stage in enumerate(stages, 1)
    ]
    rows.append(("all", "", f"{inputs} -> {outputs}", "", "", f"{facts['params']:,}", _whole(facts["macs"])))
    dense = facts["params_dense"]
    notes = [f"the dense convolution has {dense:,} weights, {dense / facts['params']:.1f} times as many"]
    if facts["params_relaxed"] is not None:
        reached = "" if facts["overlap"] is None else f"; the overlap reached is {facts['overlap']:.2f}"
        notes.append(f"the relaxed optimum of this many stages is {facts['params_relaxed']:,.0f} weights{reached}")
    return TextTable(
        title=f"{step} for {inputs} -> {outputs} channels, kernel {'x'.join(map(str, kernel))}",
        columns=tuple(map(Column, ("stage", "kernel", "channels", "groups", "shuffle", "parameters", "MACs"))),
        rows=tuple(rows),
        notes=(*notes, _connected(facts)),
    )


def model_plan_table(title: str, layers: Sequence[Facts], skipped: Sequence[tuple[str, str]]) -> TextTable:
    """Every layer of a model that is a chain, and why the others were left alone."""
    total, dense = (sum(layer[name] for layer in layers) for name in ("params", "params_dense"))
    notes = [f"{len(layers)} layers, {total:,} weights; as dense convolutions they would have {dense:,}"]
    partial = [layer for layer in layers if layer["coverage"] < 1]
    if partial:
        worst = min(partial, key=lambda layer: float(layer["coverage"]))
        notes.append(
            f"{len(partial)} layers do not see all input channels, the least {worst['name']} with"
            f" {100 * worst['coverage']:.1f} %"
        )
    else:
        notes.append("in every layer every output channel sees every input channel")
    return TextTable(
        title=title,
        columns=(
            Column("layer", "left"),
            Column("plan", "left", 1),
            *map(Column, ("parameters", "relaxed", "dense", "MACs", "seen")),
        ),
        rows=tuple(
            (
                layer["name"],
                layer["plan"],
                f"{layer['params']:,}",
                _whole(layer["params_relaxed"]),
                f"{layer['params_dense']:,}",
                _whole(layer["macs"]),
                f"{100 * layer['coverage']:.0f} %",
            )
            for layer in layers
        ),
        notes=(*notes, *(f"left alone: {name}: {reason}" for name, reason in skipped)),
    )


def sweep_table(step: str, spec: ConvSpec, sweep: Facts) -> TextTable:
    """The forms that a layer could have."""
    taps = prod(spec.kernel_size)
    if "budget" in sweep:
        best = sweep["widest"]
        return TextTable(
            title=f"interleaved blocks of about {sweep['budget']:,} weights, {taps} taps",
            columns=tuple(map(Column, ("L", "M", "parameters", "width"))),
            rows=tuple(tuple(f"{value:,}" for value in row.values()) for row in sweep["rows"]),
            notes=(
                f"the widest within it has L = {best['primary']}, M = {best['secondary']}, width {best['width']}; "
                f"eq. 15 puts it at L = {taps} M",
            ),
        )
    return TextTable(
        title=f"{step} for {spec.in_channels} -> {spec.out_channels} channels, {taps} taps",
        columns=(
            Column("form", "left"),
            Column("plan", "left", 1),
            *map(Column, ("parameters", "relaxed", "overlap", "seen")),
        ),
        rows=tuple(
            (
                form["name"],
                form.get("plan", form["reason"]),
                _whole(form.get("params")),
                _whole(form["params_relaxed"]),
                f"{form['overlap']:.2f}" if form.get("overlap") is not None else "",
                f"{100 * form['coverage']:.1f} %" if "coverage" in form else "",
            )
            for form in sweep["rows"]
        ),
        notes=(
            f"relaxed, the best number of stages is {sweep['best_stage_count']:.2f} with {sweep['least_relaxed']:,.0f}"
            " weights",
            "relaxed: what the optimum of Theorem 1 costs at the overlap asked for; a chain that, rounded, reaches less"
            " (overlap) may cost less",
        ),
    )


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _connected(facts: Facts) -> str:
    """What an output channel sees, in words."""
    field = "x".join(map(str, facts["receptive_field"]))
    if facts["coverage"] == 1:
        return f"receptive field {field}; every output channel sees every input channel"
    return (
        f"receptive field {field}; an output channel sees {100 * facts['coverage']:.1f} % of the input channels on"
        f" average, {facts['least_channels']} of {facts['conv'][0]} at least"
    )
