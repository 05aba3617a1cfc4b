"""What the finished runs of a study came to: plain data, which tables, figures and `--json` take.

A row is a recipe, or one configuration of an elastic one. Its accuracy is that of the last epoch's network on the test
part (of an elastic network: of its query table; of one for videos: on whole videos). Differences are taken seed by
seed, from the first recipe under the same seed: both then saw the same images in the same order. From an elastic first
recipe a row differs by the same configuration's, or, where it is a network of its own, by that of the configuration
that has its input and its multiply-adds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from leanconv.errors import CheckpointError, LeanconvError
from leanconv.intervals import Mean, of_mean
from leanconv.plain_text import BadText, read_json
from leanconv.recipes.settings import Recipe
from leanconv.recipes.study.plan import StudyPlan, run_folder
from leanconv.recipes.study.printed import changed_settings, printed_for
from leanconv.schema import Count, Fault, Number, Plain, Record

if TYPE_CHECKING:
    from leanconv.query import QueryTable

__all__ = ["RULE", "gather", "is_finished"]

RULE = (
    "mean +- t * s / sqrt(n), Student's t with n - 1 degrees of freedom at 95 %, over seeds, differences seed by seed;"
    " it says nothing of other test items"
)

_FIGURES = {
    "evaluation.json": Record({"images": Count(1), "top1": Number(0, 1)}, others=Plain()),
    "videos.json": Record({"videos": Count(1), "video1": Number(0, 1)}, others=Plain()),
}


@dataclass(kw_only=True)
class _Subject:
    """A row in the making: one network, its accuracy by seed, and how to time it."""

    recipe: str
    configuration: str = ""
    width: float | None = None
    size: tuple[int, ...] = ()
    params: int = 0
    macs: int = 0
    values: dict[int, float] = field(default_factory=dict)
    network: nn.Module | None = None


def is_finished(folder: Path) -> bool:
    """Whether the run has come to its end: its network is saved and was tested."""
    return (folder / "model").is_dir() and any((folder / name).is_file() for name in _FIGURES)


def gather(
    plan: StudyPlan,
    out: Path,
    originals: Mapping[str, Recipe],
    *,
    latency: bool = True,
    rounds: int = 20,
    trust_code: bool = False,
) -> dict[str, Any]:
    """The results of the runs in `out` that are finished, as plain data.

    `originals` are the recipes of these names as leanconv has them, against which changed settings are told. With
    `latency` all networks are timed, interleaved, on the CPU with one thread and one input. Raises `LeanconvError`
    where no run is finished or runs were tested on other numbers of items, `CheckpointError` for a run whose files
    cannot be read.
    """
    subjects: list[_Subject] = []
    items: dict[str, int] = {}
    for recipe in plan.recipes:
        own: dict[str, _Subject] = {}
        for seed in plan.seeds:
            folder = run_folder(out, recipe.name, seed)
            if is_finished(folder):
                _add(own, recipe, seed, folder, items, trust_code)
        subjects += own.values()
    if not subjects:
        raise LeanconvError(f"{out}: none of its {len(plan.runs)} runs is finished, so there is nothing to report")
    if len(set(items.values())) > 1:
        (one, count), (other, its) = sorted(items.items(), key=lambda item: item[1])[:: len(items) - 1]
        raise LeanconvError(
            f"{one} was tested on {count} items and {other} on {its}: their accuracies cannot be compared; move"
            " one away and run it again"
        )
    times = _times(subjects, rounds) if latency else {}
    done = {recipe.name: sorted(_seeds_of(subjects, recipe.name)) for recipe in plan.recipes}
    return {
        "measure": "video1" if plan.recipes[0].data.video is not None else "top1",
        "data": plan.recipes[0].data.spec,
        "items": next(iter(items.values())),
        "seeds": list(plan.seeds),
        "rule": RULE,
        "unfinished": {
            name: [seed for seed in plan.seeds if seed not in seeds]
            for name, seeds in done.items()
            if len(seeds) < len(plan.seeds)
        },
        "changed": {
            recipe.name: changed_settings(recipe, originals[recipe.name])
            for recipe in plan.recipes
            if recipe.name in originals
        },
        "rows": [
            {
                "recipe": subject.recipe,
                "configuration": subject.configuration,
                "params": subject.params,
                "macs": subject.macs,
                **times.get(id(subject), {"ms": None, "ms_low": None, "ms_high": None}),
                "values": {str(seed): value for seed, value in sorted(subject.values.items())},
                **_plain(of_mean(list(subject.values.values()))),
                "difference": _difference(subject, subjects),
                "printed": _printed(subject),
            }
            for subject in subjects
        ],
    }


def _add(
    own: dict[str, _Subject], recipe: Recipe, seed: int, folder: Path, items: dict[str, int], trust_code: bool
) -> None:
    """Add what one run came to."""
    name = "videos.json" if recipe.data.video is not None else "evaluation.json"
    try:
        figures = read_json((folder / name).read_text(encoding="utf-8"))
        _FIGURES[name].check(figures, "")
    except (OSError, UnicodeDecodeError, BadText, Fault) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{folder / name}: not what a test leaves: {reason}") from error
    called = f"{recipe.name}, seed {seed}"
    if recipe.elastic is None:
        items[called] = int(figures["images" if name == "evaluation.json" else "videos"])
        if not own:
            own[""] = _alone(recipe, folder, trust_code)
        own[""].values[seed] = float(figures["top1" if name == "evaluation.json" else "video1"])
        return
    from leanconv.query import QueryTable

    table = QueryTable.load(folder / "table.json")
    items[called] = int(table.about["images"])
    if not own:
        own.update(_of_table(recipe, folder, table, trust_code))
    for row in table.rows:
        label = _label(row.width, row.resolution, row.frames)
        if label not in own:
            raise CheckpointError(f"{folder / 'table.json'}: {label} is no configuration of {recipe.name}")
        own[label].values[seed] = row.accuracy


def _alone(recipe: Recipe, folder: Path, trust_code: bool) -> _Subject:
    from leanconv.build import load
    from leanconv.cost import measure

    network = load(folder / "model", trust_code=trust_code).eval()
    cost = measure(network, recipe.data.input_size)
    return _Subject(
        recipe=recipe.name, size=recipe.data.input_size, params=cost.params, macs=cost.macs, network=network
    )


def _of_table(recipe: Recipe, folder: Path, table: QueryTable, trust_code: bool) -> dict[str, _Subject]:
    from leanconv.build import load

    net: Any = load(folder / "model", trust_code=trust_code)
    return {
        _label(*row.config): _Subject(
            recipe=recipe.name,
            configuration=_label(*row.config),
            width=row.width,
            size=tuple(net.inputs.at(row.config)),
            params=row.params,
            macs=row.macs,
            network=net.extract(*row.config, calibrated=False).eval(),
        )
        for row in table.rows
    }


def _label(width: float, resolution: int, frames: int | None = None) -> str:
    return f"{width:g}x at {resolution}" + (f", {frames} frames" if frames else "")


def _times(subjects: list[_Subject], rounds: int) -> dict[int, dict[str, float]]:
    """Milliseconds of every network, all in one run, by the identity of its subject."""
    from leanconv.cost.latency import compare_latency

    calls = {str(id(subject)): _call(subject) for subject in subjects}
    found = compare_latency(calls, rounds=rounds, threads=1)
    return {
        int(name): {"ms": time.median_ms, "ms_low": time.low_ms, "ms_high": time.high_ms}
        for name, time in found.items()
    }


def _call(subject: _Subject) -> Any:
    import torch

    network = subject.network
    assert network is not None
    inputs = torch.zeros(1, *subject.size)

    def call() -> Any:
        with torch.inference_mode():
            return network(inputs)

    return call


def _seeds_of(subjects: list[_Subject], name: str) -> set[int]:
    return {seed for subject in subjects if subject.recipe == name for seed in subject.values}


def _difference(subject: _Subject, subjects: list[_Subject]) -> dict[str, Any] | None:
    """How it differs from the first recipe, by seed; None for the first itself and where nothing corresponds to it."""
    first = [other for other in subjects if other.recipe == subjects[0].recipe]
    if subject in first:
        return None
    if len(first) > 1:
        first = [
            other
            for other in first
            if (other.configuration == subject.configuration)
            or (not subject.configuration and (other.size, other.macs) == (subject.size, subject.macs))
        ]
    if not first:
        return None
    other = first[0]
    seeds = sorted(subject.values.keys() & other.values.keys())
    if not seeds:
        return None
    found = of_mean([subject.values[seed] - other.values[seed] for seed in seeds])
    told = other.recipe + (f" {other.configuration}" if other.configuration else "")
    return {"from": told, "seeds": seeds, **_plain(found), "clear": found.is_clear}


def _plain(found: Mean) -> dict[str, Any]:
    interval = None if found.interval is None else list(found.interval)
    return {"mean": found.value, "std": found.deviation, "interval": interval}


def _printed(subject: _Subject) -> list[dict[str, Any]]:
    """The papers' rows for this very configuration."""
    rows = printed_for(subject.recipe)
    if subject.width is None:
        return [row for row in rows if "width" not in row]
    return [row for row in rows if (row.get("width"), row.get("resolution")) == (subject.width, subject.size[-1])]
