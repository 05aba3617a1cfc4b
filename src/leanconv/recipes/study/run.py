"""Carry out a study: every run a job of its own, begun or gone on with, then what came out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.ends import Terminated
from leanconv.errors import LeanconvError
from leanconv.files import held, write_text
from leanconv.jobs import Ended, Job, run_local
from leanconv.plain_text import read_json
from leanconv.recipes.config import to_yaml
from leanconv.recipes.named_code import named_code
from leanconv.recipes.study.plan import StudyPlan, kept_plan, merged, read_plan, run_folder, write_plan
from leanconv.recipes.study.results import gather, is_finished
from leanconv.trust import require_trust

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leanconv.recipes.settings import Recipe

__all__ = ["study"]

_TRAIN = "from leanconv.cli import main; main()"


def study(
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    out: str | Path,
    *,
    originals: Mapping[str, Recipe] | None = None,
    resume: bool = False,
    begin: bool = True,
    at_once: int = 1,
    latency: bool = True,
    progress: bool = True,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Run every one of `recipes` under every one of `seeds` in the folder `out`, and give what came out as plain data.

    Runs are processes (`leanconv train`), `at_once` of them at a time, which share the cores. With `resume` the study
    in `out` goes on: finished runs stay, interrupted ones continue after their last epoch, further recipes and seeds
    may come in, and with none of either it is the study as it was. With `begin` False nothing is run, and what is
    finished is reported. `originals` are the recipes by these names as leanconv has them; what was changed is told.
    The results are also in `out/results.json`: of every row the accuracy by seed, `mean`, `std` and `interval`, its
    `difference` from the first recipe by seed, params, MACs, and with `latency` milliseconds; see `leanconv.intervals`
    for the rule.

    Raises `LeanconvError` for what `StudyPlan` refuses, a folder that holds a study where `resume` is not said, a
    recipe that has changed, and a run that failed, when all others have ended; then `results.json` holds these.

        study([get_recipe("resnet20_cifar10"), get_recipe("o_resnet20_cifar10")], range(3), "runs/osep", at_once=2)
    """
    out = Path(out)
    if resume or not begin:
        before = read_plan(out)
        plan = merged(before, recipes, seeds) if recipes or seeds else before
    else:
        if kept_plan(out):
            raise LeanconvError(
                f"{out}: already holds a study, and a new one would mix with it: go on with --resume, or choose another"
                " --out"
            )
        plan = StudyPlan(recipes=tuple(recipes), seeds=tuple(seeds))
    if out.exists() and not out.is_dir():
        raise LeanconvError(f"{out}: expected a folder for the study, found a file: choose another --out")
    for recipe in plan.recipes:
        require_trust(named_code(recipe), out / recipe.name, trust_code=trust_code, asked_before=resume)
    with held(out):
        failed: list[Ended] = []
        if begin:
            write_plan(plan, out)
            failed = _run(plan, out, at_once=at_once, progress=progress, trust_code=trust_code)
        results = gather(plan, out, originals or {}, latency=latency, trust_code=trust_code)
        write_text(out / "results.json", json.dumps(results, indent=2) + "\n")
    if failed:
        first = failed[0]
        raise LeanconvError(
            f"{len(failed)} of {len(plan.runs)} runs failed, the first is {first.job.name}: {first.last_line} (see"
            f" {first.job.log}); the others are in {out / 'results.json'}, and --resume tries these again"
        )
    return results


def _run(plan: StudyPlan, out: Path, *, at_once: int, progress: bool, trust_code: bool) -> list[Ended]:
    """Carry out the runs that are not finished; those that failed."""
    jobs = [
        _job(plan, out, name, seed, trust_code)
        for name, seed in plan.runs
        if not is_finished(run_folder(out, name, seed))
    ]
    before, done = len(plan.runs) - len(jobs), 0
    if progress and before:
        print(f"{before} of {len(plan.runs)} runs are finished", flush=True)

    def tell(ended: Ended) -> None:
        nonlocal done
        done += 1
        if progress:
            print(f"{before + done}/{len(plan.runs)}  {_told(ended)}  {ended.seconds:.0f} s", flush=True)

    try:
        return [ended for ended in run_local(jobs, at_once=at_once, ended=tell) if ended.code != 0]
    except (KeyboardInterrupt, Terminated) as stopped:
        word = "terminated" if isinstance(stopped, Terminated) else "interrupted"
        raise type(stopped)(f"{word}; to go on: leanconv study --resume --out {out}") from None


def _job(plan: StudyPlan, out: Path, name: str, seed: int, trust_code: bool) -> Job:
    folder = run_folder(out, name, seed)
    config = folder.with_suffix(".yaml")
    write_text(config, to_yaml(plan.recipe(name, seed)))
    words = ["train", "--config", str(config), "--out", str(folder), "--no-latency"]
    words += ["--resume"] * (folder / "config.yaml").exists() + ["--trust-code"] * trust_code
    return Job(
        name=f"{name}, seed {seed}",
        command=(sys.executable, "-c", _TRAIN, *words),
        log=folder.with_suffix(".log"),
    )


def _told(ended: Ended) -> str:
    """What is said of a run that has ended."""
    folder = ended.job.log.with_suffix("")
    if ended.code != 0:
        return f"{ended.job.name}: failed: {ended.last_line}"
    for name, key in (("evaluation.json", "top1"), ("videos.json", "video1")):
        if (folder / name).exists():
            share = float(read_json((folder / name).read_text(encoding="utf-8"))[key])
            return f"{ended.job.name}: {100 * share:.2f} %"
    return f"{ended.job.name}: done"
