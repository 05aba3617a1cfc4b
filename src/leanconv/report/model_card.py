"""The card of a saved model: what a stranger must know to use it, as the README.md of its repository."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from leanconv.report.units import percent, percent_interval, si

if TYPE_CHECKING:
    from leanconv.cost import Cost

__all__ = ["model_card"]

_RESIZES = {
    "square": "the central square, {crop:g} of the shorter side, brought to {side} pixels",
    "shorter_side": "the shorter side brought to {side} / {crop:g} pixels, then the centre cut",
    "whole": "the whole image brought to a square of {side} / {crop:g} pixels, then the centre cut",
}


def model_card(
    repository: str,
    story: Mapping[str, Any],
    *,
    cost: Cost | None = None,
    tested: Mapping[str, Any] | None = None,
    version: str = "",
) -> str:
    """The card of the model called `repository` (OWNER/NAME) as Markdown.

    `story` is how it came to be (model, options, steps, contract), as `story.json` has it; `cost` what it costs at the
    size of its contract; `tested` the test of a run, as `evaluation.json` has it. What is not known is not said.

    >>> print(model_card("her/lean", {"model": "resnet20", "options": {}, "steps": []}).splitlines()[8])
    | network | `resnet20` |
    """
    contract = story.get("contract")
    clips = contract is not None and len(contract["size"]) == 4
    rows = [("network", f"`{_call(story['model'], story['options'])}`")]
    rows += [("changed by", f"`{_call(stem, _told(settings))}`") for stem, settings in story["steps"]]
    if cost is not None:
        rows.append(("parameters", si(cost.params)))
        rows.append(("MACs, one input", f"{si(cost.macs)} (convolutions and linear layers)"))
    if tested is not None:
        rows.append((f"{tested['part']} accuracy", _accuracy(tested)))
    rows += _inputs(contract) if contract is not None else [("input", "not said: ask its owner")]
    return "\n".join(
        (
            "---",
            "library_name: leanconv",
            f"pipeline_tag: {'video' if clips else 'image'}-classification",
            "---",
            f"# {repository.partition('/')[2]}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {_cell(text)} |" for name, text in rows),
            "",
            "It is a folder that leanconv saved: `story.json`, how the network is built, and `weights.safetensors`.",
            "",
            "```bash",
            f"leanconv predict hf:{repository} {'clips' if clips else 'photographs'}/",
            f"leanconv eval hf:{repository} --data {'video-' if clips else ''}folder:DIR",
            "```",
            "",
            "```python",
            "import leanconv as lc",
            "",
            f'model = lc.load("hf:{repository}")',
            "```",
            *(("", f"Written by leanconv {version}.") if version else ()),
            "",
        )
    )


def _call(name: str, options: Mapping[str, Any]) -> str:
    """A name with its options, as one types it."""
    return f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})" if options else name


def _told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings of a step that can be said in a line."""
    return {
        key: value for key, value in settings.items() if isinstance(value, bool | int | float | str | list) and value
    }


def _accuracy(tested: Mapping[str, Any]) -> str:
    low, high = tested["top1_interval"]
    return (
        f"top-1 {percent(tested['top1'])} % (95 % interval {percent_interval(low, high)}) on {tested['images']} images"
    )


def _inputs(contract: Mapping[str, Any]) -> list[tuple[str, str]]:
    size, crop, clip = contract["size"], contract["crop"], contract.get("clip")
    rows = [
        ("input", f"{' x '.join(map(str, size))}, RGB from 0 to 1, then (value - mean) / std"),
        ("mean", ", ".join(f"{value:.4g}" for value in contract["mean"])),
        ("std", ", ".join(f"{value:.4g}" for value in contract["std"])),
    ]
    if clip is not None:
        rate = "as the file has them" if clip["fps"] is None else f"of {clip['fps']:g} a second"
        rows.append(("clips", f"every {clip['rate']}. frame {rate}, shorter side {clip['short_side']}"))
    else:
        rule = _RESIZES[contract["resize"]].format(crop=crop, side=size[-1])
        rows.append(("resize", f"{rule}, {contract['interpolation']}"))
    names = contract.get("class_names")
    if names:
        rows.append((f"{len(names)} classes", ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")))
    return rows


def _cell(text: str) -> str:
    """Text that stays within its cell."""
    return " ".join(text.replace("|", "\\|").split())
