"""Mutual learning, US-Net, US-Net+ and independently trained networks at four budgets: train, collect, tabulate.

    python benchmarks/mutual.py run clothing --images DATA/clothing --seeds 0 1 --out runs/mutual
    python benchmarks/mutual.py table clothing --images DATA/clothing --plot benchmarks/mutual.png

`--images STEM` stands for STEM-train.parquet, STEM-validation.parquet and STEM-test.parquet. All networks learn from
the same images with the same settings for the same number of epochs; what differs is the method:

- mutual: widths and resolutions, the recipe of the set;
- usnet: the same step at the largest resolution alone. Its table at that resolution is US-Net, at all of them US-Net+
  (one training run, two readings);
- independent: a network of its own for each budget, the classical width multiplier at the largest resolution.

The budgets are the MACs of the independent networks. An elastic network answers a budget with the configuration that
its query table, measured on the validation images, picks; what is reported is that configuration's accuracy on the
test images, which nothing was chosen by.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from leanconv.elastic import Config
    from leanconv.query import QueryTable


@dataclass(frozen=True)
class Set:
    """Images and the network that learns them."""

    recipe: str
    model: str
    resolutions: tuple[int, ...]
    multipliers: tuple[float, ...]
    """Widths of the independent networks."""
    title: str

    @property
    def methods(self) -> tuple[str, ...]:
        return ("mutual", "usnet", *(f"independent_{multiplier:g}" for multiplier in self.multipliers))


SETS = {
    # 1, 7/8, 3/4 and 5/8 of the largest; the paper's are 1, 6/7, 5/7 and 4/7 of 224.
    "clothing": Set(
        "elastic_mobilenet_v1_imagenet",
        "mobilenet_v1",
        (64, 56, 48, 40),
        (1.0, 0.75, 0.5, 0.25),
        "MobileNetV1 on 3,068 photographs of clothes",
    ),
    "cifar10": Set(
        "elastic_resnet20_cifar10",
        "resnet20",
        (32, 28, 24, 20),
        (1.0, 0.5, 0.25),
        "ResNet-20 on 45,000 images of CIFAR-10",
    ),
}

TABLE_WIDTHS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
CURVES = {"US-Net": ("#7d7c78", "--"), "US-Net+": ("#c69a1d", "-."), "mutual": ("#00306f", "-")}
"""What an elastic network answers budgets with -> how its curve looks."""


def run(options: argparse.Namespace) -> None:
    from leanconv.recipes import get_recipe, run_recipe

    stem, images = options.images, SETS[options.set]
    base = get_recipe(images.recipe)
    assert base.elastic is not None
    data = replace(
        base.data,
        spec=f"parquet:{stem}-train.parquet,{stem}-validation.parquet",
        size=images.resolutions[0],
        batch_size=options.batch,
        workers=options.workers,
    )
    elastic = replace(base.elastic, resolutions=images.resolutions, table_widths=TABLE_WIDTHS)
    base = replace(
        base,
        data=data,
        elastic=elastic,
        epochs=options.epochs,
        optim=replace(base.optim, lr=options.lr),
        schedule=replace(base.schedule, warmup_epochs=options.warmup),
        accelerator=options.accelerator,
    )
    for seed in options.seeds:
        for method in options.methods or images.methods:
            recipe = replace(base, name=method, seed=seed)
            if method == "usnet":
                recipe = replace(recipe, elastic=replace(elastic, train_resolutions=images.resolutions[:1]))
            elif method != "mutual":
                multiplier = float(method.partition("_")[2])
                recipe = replace(recipe, elastic=None, model=images.model, model_args={"multiplier": multiplier})
            place = options.out / f"{method}-seed{seed}"
            if not (place / "model").exists():
                print(f"== {place.name}", flush=True)
                run_recipe(recipe, place, resume=(place / "last.ckpt").exists(), latency=False)


class Answer(NamedTuple):
    """What a method answers a budget with: the configuration and its accuracy on the test images."""

    config: str
    accuracy: float


class Seed:
    """The runs of one seed, read back: query tables on the validation and the test images."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        from leanconv.data import open_images

        images = SETS[options.set]
        self.size = images.resolutions[0]
        self.tests = open_images(
            f"parquet:{options.images}-train.parquet,{options.images}-test.parquet",
            resolution=self.size,
            batch_size=options.batch,
        )
        places = {method: options.out / f"{method}-seed{seed}" for method in images.methods}
        self.tables = {method: self._tables(place) for method, place in places.items() if "independent" not in method}
        self.independent = {
            multiplier: self._independent(places[f"independent_{multiplier:g}"]) for multiplier in images.multipliers
        }

    def _tables(self, place: Path) -> tuple[QueryTable, dict[Config, float]]:
        from leanconv.build import load
        from leanconv.elastic import ElasticNet
        from leanconv.query import QueryTable

        found = QueryTable.load(place / "table.json")
        tested = place / "table-test.json"
        if not tested.exists():
            net = load(place / "model")
            assert isinstance(net, ElasticNet)
            configs = [row.config for row in found.rows]
            QueryTable.measure(net, self.tests.eval_loader(), configs=configs, latency=False).save(tested)
        return found, {row.config: row.accuracy for row in QueryTable.load(tested).rows}

    def _independent(self, place: Path) -> tuple[int, float]:
        """MACs, and the share of the test images."""
        from leanconv.build import load
        from leanconv.cost import measure
        from leanconv.train import evaluate

        net = load(place / "model").eval()
        return measure(net, (3, self.size, self.size)).macs, evaluate(net, self.tests.eval_loader()).top1

    def answer(self, method: str, budget: int) -> Answer | None:
        """What `method` of CURVES answers a budget of MACs with; None where all it has is more expensive."""
        from leanconv.errors import BudgetError
        from leanconv.query import QueryTable

        found, tested = self.tables["mutual" if method == "mutual" else "usnet"]
        rows = [row for row in found.rows if method != "US-Net" or row.resolution == self.size]
        try:
            config = QueryTable(tuple(rows), found.about).pick(max_macs=budget).config
        except BudgetError:
            return None
        return Answer(str(config), 100 * tested[config])


def table(options: argparse.Namespace) -> None:
    seeds = [Seed(options, seed) for seed in options.seeds]
    images = next(iter(seeds[0].tables.values()))[0].about["images"]
    budgets = [macs for macs, _ in seeds[0].independent.values()]
    print("# Mutual learning against US-Net and independently trained networks\n")
    print("| budget [MACs] | independent | US-Net | US-Net+ | mutual |")
    print("|---:|---:|---:|---:|---:|")
    for multiplier, budget in zip(SETS[options.set].multipliers, budgets, strict=True):
        alone = [100 * seed.independent[multiplier][1] for seed in seeds]
        cells = [f"{_spread(alone)} ({multiplier:g}x)"]
        for method in CURVES:
            answers = [answer for seed in seeds if (answer := seed.answer(method, budget))]
            configs = ", ".join(dict.fromkeys(answer.config for answer in answers))
            cells.append(f"{_spread([answer.accuracy for answer in answers])} ({configs})")
        print(f"| {budget:,} | {' | '.join(cells)} |")
    seeds_said = "one seed" if len(seeds) == 1 else f"mean over {len(seeds)} seeds, with the seeds' own figures behind"
    print(
        f"\nTop-1 accuracy [%] on {seeds[0].tests.test_size:,} test images, {seeds_said}; in brackets width-resolution,"
        f" picked on {images:,} validation images."
    )
    if options.plot is not None:
        draw(seeds, budgets, SETS[options.set].title, options.plot)
        print(f"\n![accuracy over MACs]({options.plot.name})")


def _spread(values: list[float]) -> str:
    if not values:
        return "none so cheap"
    each = f" [{' '.join(f'{value:.1f}' for value in values)}]" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{each}"


def draw(seeds: list[Seed], budgets: list[int], title: str, path: Path) -> None:
    """Test accuracy over the budget: a line per elastic method, a point per independent network, bars over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from leanconv.report.plots import save_figure

    figure = Figure(figsize=(7.6, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    everything = sorted({row.macs for found, _ in seeds[0].tables.values() for row in found.rows})
    for method, (colour, style) in CURVES.items():
        known = [(macs, [seed.answer(method, macs) for seed in seeds]) for macs in everything]
        lines = [(macs / 1e6, [a.accuracy for a in answers if a]) for macs, answers in known if all(answers)]
        x, values = [macs for macs, _ in lines], [accuracies for _, accuracies in lines]
        means = [statistics.mean(accuracies) for accuracies in values]
        axes.plot(x, means, style, color=colour, linewidth=1.8, drawstyle="steps-post", label=method)
        axes.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.12, step="post")
    alone = [[100 * seed.independent[multiplier][1] for seed in seeds] for multiplier in seeds[0].independent]
    means = [statistics.mean(values) for values in alone]
    bars = [
        [m - min(v) for m, v in zip(means, alone, strict=True)],
        [max(v) - m for m, v in zip(means, alone, strict=True)],
    ]
    axes.errorbar(
        [b / 1e6 for b in budgets],
        means,
        bars,
        fmt="o",
        color="#222222",
        capsize=3,
        label=f"independent ({len(alone)} networks)",
    )
    axes.set_xscale("log")
    ticks = (1, 2, 5, 10, 20, 50)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("budget: MACs per image [millions, conv and linear layers]")
    axes.set_ylabel(
        f"test accuracy [%], mean of {len(seeds)} seeds; bands and bars: all seeds"
        if len(seeds) > 1
        else "test accuracy [%], one seed"
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    axes.set_title(title, loc="left")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument("set", choices=tuple(SETS))
    parser.add_argument("--images", required=True, help="the stem of the three files")
    parser.add_argument("--out", type=Path, default=Path("runs/mutual"))
    parser.add_argument("--methods", nargs="+", help="what to run; all of them, which a table needs, unless said")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--warmup", type=float, default=2.0, help="epochs over which the rate rises to its full value")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--accelerator", default="auto")
    options = parser.parse_args()
    if unknown := set(options.methods or ()) - set(SETS[options.set].methods):
        parser.error(f"--methods: {', '.join(sorted(unknown))} not in {', '.join(SETS[options.set].methods)}")
    (run if options.verb == "run" else table)(options)


if __name__ == "__main__":
    main()
