"""`leanconv plan`: how a layer, or every layer of a model, is written as a chain, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.common import JsonOption, RewriteOption, SetOption, SizeOption, TrustOption, read_size, say_json
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from leanconv.ops.chain import ConvChain
    from leanconv.ops.drop_in import ChainRewrite
    from leanconv.plan import Plan
    from leanconv.report import Sheet
    from leanconv.spec import ConvSpec

StepArgument = Annotated[
    str, typer.Argument(metavar="STEM:OPTION=VALUE,...", help="The operator, for example osep:overlap=1 or igc.")
]


def run(
    step: StepArgument = "osep",
    conv: Annotated[
        str | None,
        typer.Option("--conv", metavar="IN,OUT,KERNEL[,STRIDE]", help="One convolution; KERNEL may be 3x3x3."),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="MODEL", help="Every layer the step selects.")] = None,
    options: SetOption = [],
    rewrites: RewriteOption = [],
    size: SizeOption = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="With osep and --conv: over N and gamma; with igc: over L for its budget.")
    ] = False,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Print the plan of a layer or a model: stages, groups, parameters, their bound, MACs and connectivity."""
    if (conv is None) == (model is None):
        raise LeanconvError("plan needs one of --conv IN,OUT,KERNEL and --model MODEL, for example --conv 64,128,3")
    settings = _chain_step(step)
    if model is not None:
        if sweep:
            raise LeanconvError("--sweep is about one layer: give it with --conv IN,OUT,KERNEL")
        _plan_model(model, step, settings, options, rewrites, size, json, trust_code)
        return
    if options or rewrites:
        raise LeanconvError(
            "--set and --rewrite belong to --model; the operator's options follow its stem, osep:overlap=1"
        )
    spec = read_conv(str(conv))
    in_size = read_size(size)[1:] if size else None
    if in_size is not None and len(in_size) != spec.ndim:
        raise LeanconvError(f"--size {size}: expected channels and {spec.ndim} lengths for a {spec.ndim}D convolution")
    if sweep:
        _print_sweep(settings, step, spec, json)
        return
    plan = settings.plan(spec)
    if json:
        say_json({"step": step, **_facts(plan, settings, in_size), "stages": _stages(plan, in_size)})
        return
    from leanconv.report import print_table

    print_table(_layer_table(step, plan, settings, in_size))


def read_conv(text: str) -> ConvSpec:
    """`"64,128,3"`, `"64,128,3,2"` or `"64,128,1x3x3"` as a convolution with same-sized padding, 2D unless KERNEL says.

    >>> read_conv("64,128,3,2").stride
    (2, 2)
    """
    from leanconv.spec import ConvSpec

    parts = [part.strip() for part in text.split(",")]
    kernel = parts[2].lower().split("x") if len(parts) in (3, 4) else []
    if not kernel or not all(part.isdigit() and int(part) > 0 for part in (*parts[:2], *parts[3:], *kernel)):
        raise LeanconvError(
            f"--conv {text!r}: expected IN,OUT,KERNEL[,STRIDE] above 0, for example 64,128,3 or 8,8,3x3x3"
        )
    if len(kernel) > 3:
        raise LeanconvError(f"--conv {text!r}: a kernel has one to three axes, got {len(kernel)}")
    sides = tuple(map(int, kernel)) if len(kernel) > 1 else (int(kernel[0]),) * 2
    stride = int(parts[3]) if len(parts) == 4 else 1
    return ConvSpec(
        in_channels=int(parts[0]),
        out_channels=int(parts[1]),
        kernel_size=sides,
        stride=(stride,) * len(sides),
        padding=tuple(side // 2 for side in sides),
    )


def _chain_step(text: str) -> ChainRewrite:
    from leanconv.ops import OPERATORS
    from leanconv.ops.drop_in import ChainRewrite
    from leanconv.rewrites import parse_step

    step = parse_step(text)
    if not isinstance(step, ChainRewrite):
        chains = ", ".join(stem for stem, operator in OPERATORS.items() if issubclass(operator, ChainRewrite))
        raise LeanconvError(f"{step.stem} is no chain of convolutions, so it has no plan: expected one of {chains}")
    return step


def _relaxed(plan: Plan, step: ChainRewrite | None) -> float | None:
    """The bound of Theorem 1, where the operator has one."""
    from leanconv.ops.osep import OptimizedSeparable
    from leanconv.ops.osep_theory import relaxed_optimum

    return relaxed_optimum(plan.spec, step) if isinstance(step, OptimizedSeparable) else None


def _facts(plan: Plan, step: ChainRewrite | None, in_size: tuple[int, ...] | None) -> dict[str, Any]:
    spec = plan.spec
    return {
        "conv": [spec.in_channels, spec.out_channels, list(spec.kernel_size), list(spec.stride)],
        "plan": str(plan),
        "groups": [stage.conv.groups for stage in plan.stages],
        "params": plan.params,
        "params_dense": spec.params,
        "params_relaxed": _relaxed(plan, step),
        "macs": None if in_size is None else plan.macs(in_size),
        "interactions": plan.interactions,
        "receptive_field": _field(spec),
        "coverage": plan.coverage,
    }


def _field(spec: ConvSpec) -> list[int]:
    return [(kernel - 1) * dilation + 1 for kernel, dilation in zip(spec.kernel_size, spec.dilation, strict=True)]


def _stages(plan: Plan, in_size: tuple[int, ...] | None) -> list[dict[str, Any]]:
    rows = []
    for stage in plan.stages:
        conv = stage.conv
        in_size = None if in_size is None else conv.out_size(in_size)
        rows.append(
            {
                "kernel": list(conv.kernel_size),
                "stride": list(conv.stride),
                "in_channels": conv.in_channels,
                "out_channels": conv.out_channels,
                "groups": conv.groups,
                "shuffle": stage.shuffle,
                "params": conv.params,
                "macs": None if in_size is None else conv.macs(in_size),
            }
        )
    return rows


def _layer_table(step: str, plan: Plan, settings: ChainRewrite, in_size: tuple[int, ...] | None) -> Sheet:
    from leanconv.report import Column, Sheet

    facts, spec = _facts(plan, settings, in_size), plan.spec
    rows = [
        (
            str(number),
            "x".join(map(str, row["kernel"])),
            f"{row['in_channels']} -> {row['out_channels']}",
            str(row["groups"]),
            str(row["shuffle"]) if row["shuffle"] > 1 else "",
            f"{row['params']:,}",
            "" if row["macs"] is None else f"{row['macs']:,}",
        )
        for number, row in enumerate(_stages(plan, in_size), 1)
    ]
    macs = "" if facts["macs"] is None else f"{facts['macs']:,}"
    rows.append(("all", "", f"{spec.in_channels} -> {spec.out_channels}", "", "", f"{plan.params:,}", macs))
    notes = [f"the dense convolution has {spec.params:,} weights, {spec.params / plan.params:.1f} times as many"]
    if facts["params_relaxed"] is not None:
        notes.append(f"the relaxed optimum of this many stages is {facts['params_relaxed']:,.0f} weights")
    notes.append(_seen(plan))
    return Sheet(
        title=f"{step} for {spec.in_channels} -> {spec.out_channels} channels, "
        f"kernel {'x'.join(map(str, spec.kernel_size))}",
        columns=(
            Column("stage"),
            Column("kernel"),
            Column("channels"),
            Column("groups"),
            Column("shuffle"),
            Column("parameters"),
            Column("MACs"),
        ),
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _seen(plan: Plan) -> str:
    field = "x".join(map(str, _field(plan.spec)))
    if plan.coverage == 1:
        return f"receptive field {field}; every output channel sees every input channel"
    least = min(mask.bit_count() for mask in plan.channel_field)
    return (
        f"receptive field {field}; an output channel sees {100 * plan.coverage:.1f} % of the input channels on "
        f"average, {least} of {plan.spec.in_channels} at least"
    )


def _plan_model(
    name: str,
    text: str,
    step: ChainRewrite,
    options: list[str],
    rewrites: list[str],
    size: str | None,
    json: bool,
    trust_code: bool,
) -> None:
    from dataclasses import replace

    from leanconv.cli.common import find
    from leanconv.cost import measure
    from leanconv.ops.chain import ConvChain
    from leanconv.report import Column, Sheet, print_table
    from leanconv.rewrites import rewrite

    found = find(name, options, rewrites, size, trust_code=trust_code)
    done = rewrite(found.final, replace(step, init="fresh"), size=found.size)
    changed = {change.name for change in done.changes}
    macs = measure(done.model, found.size).by_module()
    layers: list[tuple[str, ConvChain]] = [
        (layer, module) for layer, module in done.model.named_modules() if isinstance(module, ConvChain)
    ]
    facts = []
    for layer, chain in layers:
        own = _facts(chain.plan, step if layer in changed else None, None)
        own["macs"] = macs[layer].macs if layer in macs else None
        facts.append({"name": layer, "new": layer in changed, **own})
    if json:
        say_json({"model": name, "step": text, "layers": facts, "skipped": [list(skip) for skip in _skipped(done)]})
        return
    rows = [
        (
            fact["name"],
            fact["plan"],
            f"{fact['params']:,}",
            "" if fact["params_relaxed"] is None else f"{fact['params_relaxed']:,.0f}",
            f"{fact['params_dense']:,}",
            "" if fact["macs"] is None else f"{fact['macs']:,}",
            f"{100 * fact['coverage']:.0f} %",
        )
        for fact in facts
    ]
    total, dense = sum(fact["params"] for fact in facts), sum(fact["params_dense"] for fact in facts)
    partial = [fact for fact in facts if fact["coverage"] < 1]
    notes = [f"{len(facts)} layers, {total:,} weights; as dense convolutions they would have {dense:,}"]
    if partial:
        worst = min(partial, key=lambda fact: float(fact["coverage"]))
        notes.append(
            f"{len(partial)} layers do not see all input channels, the least {worst['name']} with "
            f"{100 * worst['coverage']:.1f} %"
        )
    else:
        notes.append("in every layer every output channel sees every input channel")
    notes += [f"left alone: {name}: {reason}" for name, reason in _skipped(done)]
    print_table(
        Sheet(
            title=f"{name} with {text}",
            columns=(
                Column("layer", "left"),
                Column("plan", "left", 1),
                Column("parameters"),
                Column("relaxed"),
                Column("dense"),
                Column("MACs"),
                Column("seen"),
            ),
            rows=tuple(rows),
            notes=tuple(notes),
        )
    )


def _skipped(done: Any) -> list[tuple[str, str]]:
    return [(skip.name, skip.reason) for skip in done.skipped if not skip.reason.startswith("already a ")]


def _print_sweep(step: ChainRewrite, text: str, spec: ConvSpec, json: bool) -> None:
    from math import prod

    from leanconv.ops.igc import InterleavedGroup
    from leanconv.ops.igc_theory import widest, widths_for_budget
    from leanconv.ops.osep import OptimizedSeparable
    from leanconv.ops.osep_groups import best_stage_count, relaxed_minimum
    from leanconv.ops.osep_theory import classics, overlap_sweep, stage_sweep
    from leanconv.report import Column, Sheet, print_table

    taps = prod(spec.kernel_size)
    if isinstance(step, InterleavedGroup):
        plan = step.plan(spec)
        widths, best = widths_for_budget(plan.params, taps), widest(plan.params, taps)
        if json:
            say_json(
                {
                    "step": text,
                    "budget": plan.params,
                    "widest": best._asdict(),
                    "rows": [row._asdict() for row in widths],
                }
            )
            return
        print_table(
            Sheet(
                title=f"interleaved blocks of about {plan.params:,} weights, {taps} taps",
                columns=tuple(Column(name) for name in ("L", "M", "parameters", "width")),
                rows=tuple(tuple(f"{value:,}" for value in row) for row in widths),
                notes=(
                    f"the widest within it has L = {best.primary}, M = {best.secondary}, width {best.width}; "
                    f"eq. 15 puts it at L = {taps} M",
                ),
            )
        )
        return
    if not isinstance(step, OptimizedSeparable):
        raise LeanconvError(f"--sweep is for osep and igc, {step.stem} has nothing to vary")
    taken = {row.name: row for row in (*stage_sweep(spec, step), *overlap_sweep(spec, step), *classics(spec)[2:])}
    best_count = best_stage_count(spec.in_channels, spec.out_channels, taps, step.overlap)
    least = relaxed_minimum(spec.in_channels, spec.out_channels, taps, step.overlap)
    if json:
        rows = [
            {"name": row.name, "reason": row.reason, "params_relaxed": row.relaxed}
            | (
                {}
                if row.plan is None
                else {"plan": str(row.plan), "params": row.plan.params, "coverage": row.plan.coverage}
            )
            for row in taken.values()
        ]
        say_json({"step": text, "best_stage_count": best_count, "least_relaxed": least, "rows": rows})
        return
    print_table(
        Sheet(
            title=f"{text} for {spec.in_channels} -> {spec.out_channels} channels, {taps} taps",
            columns=(
                Column("form", "left"),
                Column("plan", "left", 1),
                Column("parameters"),
                Column("relaxed"),
                Column("seen"),
            ),
            rows=tuple(
                (
                    row.name,
                    row.reason if row.plan is None else str(row.plan),
                    "" if row.plan is None else f"{row.plan.params:,}",
                    "" if row.relaxed is None else f"{row.relaxed:,.0f}",
                    "" if row.plan is None else f"{100 * row.plan.coverage:.1f} %",
                )
                for row in taken.values()
            ),
            notes=(f"relaxed, the best number of stages is {best_count:.2f} with {least:,.0f} weights",),
        )
    )
