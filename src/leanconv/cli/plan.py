"""`leanconv plan`: how a layer, or every layer of a model, is written as a chain, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leanconv.cli.models import find
from leanconv.cli.options import JsonOption, RewriteOption, SetOption, SizeOption, TrustOption
from leanconv.cli.output import print_json
from leanconv.cli.values import read_conv, read_size
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from leanconv.cli.models import Found
    from leanconv.ops.drop_in import ChainRewrite


def run(
    operator: Annotated[
        str, typer.Argument(metavar="STEM:OPTION=VALUE,...", help="The operator, for example osep:overlap=1 or igc.")
    ] = "osep",
    conv: Annotated[
        str | None,
        typer.Option("--conv", metavar="IN,OUT,KERNEL[,STRIDE]", help="Plan one convolution; KERNEL may be 3x3x3."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Plan every layer that the operator can replace.")
    ] = None,
    options: SetOption = [],
    rewrites: RewriteOption = [],
    size: SizeOption = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="With --conv: osep over N and gamma, igc over L for its number of weights.")
    ] = False,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Show how a layer or a model becomes chains.

    Every stage with its groups, parameters and MACs, the lower bound where there is one, and which input channels an
    output channel sees.
    """
    if (conv is None) == (model is None):
        raise LeanconvError("plan needs one of --conv IN,OUT,KERNEL and --model MODEL, for example --conv 64,128,3")
    step = _chain_step(operator)
    if model is not None:
        if sweep:
            raise LeanconvError("--sweep is about one layer: give it with --conv IN,OUT,KERNEL")
        _plan_model(model, operator, step, find(model, options, rewrites, size, trust_code=trust_code), json)
        return
    if options or rewrites:
        raise LeanconvError(
            "--set and --rewrite belong to --model; the operator's options follow its stem, osep:overlap=1"
        )
    _plan_layer(str(conv), operator, step, size, sweep, json)


def _chain_step(text: str) -> ChainRewrite:
    from leanconv.ops import OPERATORS
    from leanconv.ops.drop_in import ChainRewrite
    from leanconv.rewrites import parse_step

    step = parse_step(text)
    if not isinstance(step, ChainRewrite):
        raise LeanconvError(f"{step.stem} is not planned layer by layer: expected one of {', '.join(OPERATORS)}")
    return step


def _plan_layer(conv: str, operator: str, step: ChainRewrite, size: str | None, sweep: bool, json: bool) -> None:
    from leanconv.ops.plan_facts import plan_facts, stage_facts, sweep_facts
    from leanconv.report import layer_plan_table, print_table, sweep_table

    spec = read_conv(conv)
    in_size = read_size(size)[1:] if size else None
    if in_size is not None and len(in_size) != spec.ndim:
        raise LeanconvError(f"--size {size}: expected channels and {spec.ndim} lengths for a {spec.ndim}D convolution")
    if sweep:
        found = sweep_facts(step, spec)
        if json:
            print_json({"step": operator, **found})
        else:
            print_table(sweep_table(operator, spec, found))
        return
    plan = step.plan(spec)
    facts, stages = plan_facts(plan, step, in_size), stage_facts(plan, in_size)
    if json:
        print_json({"step": operator, **facts, "stages": stages})
    else:
        print_table(layer_plan_table(operator, facts, stages))


def _plan_model(name: str, operator: str, step: ChainRewrite, found: Found, json: bool) -> None:
    from leanconv.cost import measure
    from leanconv.ops.chain import ConvChain
    from leanconv.ops.plan_facts import plan_facts
    from leanconv.report import model_plan_table, print_table
    from leanconv.rewrites import rewrite

    done = rewrite(found.final, replace(step, init="fresh"), size=found.final_size)
    changed = {change.name for change in done.changes}
    skipped = [(skip.name, skip.reason) for skip in done.skipped if not skip.reason.startswith("already a ")]
    costs = measure(done.model, found.final_size).by_module()
    layers: list[dict[str, Any]] = []
    for layer, module in done.model.named_modules():
        if isinstance(module, ConvChain):
            facts = plan_facts(module.plan, step if layer in changed else None)
            facts["macs"] = costs[layer].macs if layer in costs else None
            layers.append({"name": layer, "new": layer in changed, **facts})
    if json:
        print_json({"model": name, "step": operator, "layers": layers, "skipped": [list(skip) for skip in skipped]})
    else:
        print_table(model_plan_table(f"{name} with {operator}", layers, skipped))
