"""The manifest of the papers: every row stands for something that is there, and every count is what it says.

Counting is on meta tensors, by hooks that know nothing of `leanconv.cost`. What takes long to build is marked slow.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest.mark.structures import ParameterSet
from meta_counts import classes_of, count, network_of
from paper_rows import COUNTS, PAPERS, Row, amount, read_rows

from leanconv.build import create_model
from leanconv.cost import measure
from leanconv.recipes import RECIPES, get_recipe
from leanconv.recipes.osep import GAMMAS, OSEP
from leanconv.train import Classify
from leanconv.train.optim import make_optimizer
from leanconv.zoo import ZOO

ROWS = read_rows()
PRESENT = [row for row in ROWS if row.present]


def key(row: Row) -> tuple[Any, ...]:
    """Rows with equal keys are the same network at the same size."""
    options = tuple(sorted((name, str(value)) for name, value in row.options.items()))
    return row.recipe or row.network, options, row.size, row.width, row.resolution


NETWORKS = {key(row): row for row in PRESENT if row.counted}
_HEAVY = ("oct_", "i3d", "c2d", "110", "152", "200", "d98", "d74", "d62", "d50", "darts", "vgg", "elastic", "usnet")
_HEAVY += ("preact", "wideresnet", "densenet_cifar", "resnext_cifar", "slowfast")
_HEAVY += ("101", "figure6", "56", "_20_", "l450", "l32m26", "densenet", "resnext", "mobilenet_v2_x", "mobilenet_v1_x")


def is_slow(row: Row) -> bool:
    """Networks that take longer than a second to build and to run."""
    name = str(row.recipe or row.network)
    quick = {"oct_resnet26_alpha500_imagenet", "mobilenet_v1_x100_224_imagenet", "mobilenet_v2_x050_160_imagenet"}
    return name not in quick and any(part in name for part in _HEAVY)


def params(rows: list[Row]) -> list[ParameterSet]:
    """The rows with their marks and readable names."""
    return [pytest.param(row, id=str(row), marks=[pytest.mark.slow] if is_slow(row) else []) for row in rows]


# ------------------------------------------------------------------------------------------------- what it must say


def test_every_paper_has_rows_and_no_row_is_there_twice() -> None:
    assert {row.paper for row in ROWS} == set(PAPERS)
    names = [str(row) for row in ROWS]
    assert len(set(names)) == len(names)


PRINTED_ROWS: dict[str, dict[str, int]] = {
    "octave": {
        "Table 1": 7, "Table 2": 6, "Table 3": 5, "Table 4": 2, "Table 5": 9, "Table 6": 14, "Table 7": 8 + 2 * 2,
        "Table 8": 12, "Table 9 and Figure 4": 33,
    },
    "osep": {
        "Table 1": 8, "Table 2": 4 * 8, "Table 3": 5, "Table 4": 4 * 8, "Table 5": 4, "Table 6": 12 + 1, "Table 7": 8,
        "Figure 2": 1, "Figure 3": 8 * 4, "Figure 4": 8 * 4, "Figure 5": 6 * 4, "Figure 6": 6 * 4,
    },
    "igc": {
        "Table 1": 9 + 11, "Table 2": 5, "Table 3": 5 * 4, "Table 4": 8 * 5, "Table 5": 6 * 4, "Table 6": 5,
        "Table 7": 31 + 3 * 3 - 1, "Figure 3": 9 + 11,
    },
    "csn": {
        "Figure 1": 3, "Table 1": 2, "Table 2": 9, "Section 4.2": 2, "Figure 5": 2, "Table 3": 2,
        "Figures 6 and 7": 2 * 10, "Table 4": 9, "Table 5": 24,
    },
    "mutual": {
        "Figure 1": 2, "Section 3.2": 1, "Figure 4": 4 + 3, "Figure 5": 2, "Figure 6": 2 + 2 * 16, "Table 1": 2 + 2,
        "Figure 7": 3 * 3, "Figure 8": 2 * 3, "Figure 9": 2, "Journal version, video": 5 + 4,
    },
}  # fmt: skip
"""How many rows the papers' tables and figures have, counted in the papers: cells where a table is one of accuracies.

The journal version of mutual learning has no text here; its rows are the networks that it takes and ours of them.
Not there are drawings: octave's figures 1 to 3 and 5, osep's 1, igc's 1 and 2, csn's 2 to 4, mutual's 2, 3 and 10.
"""


def test_every_row_of_every_table_and_figure_is_listed() -> None:
    listed = {paper: Counter(row.place for row in ROWS if row.paper == paper) for paper in PAPERS}
    assert listed == PRINTED_ROWS


def test_every_recipe_and_network_exists() -> None:
    assert [row.recipe for row in PRESENT if row.recipe and row.recipe not in RECIPES] == []
    assert [row.network for row in PRESENT if row.network and row.network not in ZOO] == []


def test_the_tests_that_rows_name_exist() -> None:
    for row in ROWS:
        for name in row.tested:
            path, _, function = name.partition("::")
            text = (Path(__file__).parent / path).read_text()
            assert f"def {function}(" in text, f"{row}: {name}"


def test_reasons_are_not_lack_of_work() -> None:
    """What is merely not done yet is `open`, and the pages say so."""
    for row in ROWS:
        if row.absent:
            assert row.absent == "quoted from its own paper; not a network of this one", row


def test_every_count_is_what_is_printed_or_says_why_not() -> None:
    for row in PRESENT:
        for name in set(COUNTS) & row.printed.keys():
            assert row.fits(name) != (name in row.differs), f"{row}: {name} {row.counted[name]} for {row.printed[name]}"


def test_what_differs_is_near() -> None:
    """Within a tenth; it would be another network otherwise. IGC's table 6 fits no way of counting."""
    for row in PRESENT:
        for name in row.differs:
            value, _ = amount(row.printed[name])
            allowed = 0.2 if (row.paper, row.place) == ("igc", "Table 6") else 0.1
            assert row.counted[name] == pytest.approx(value, rel=allowed), row


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('row = "x"', "octave, Table 2, x: a row names one of recipe, network, tested, absent, open, got none"),
        ('row = "x", recipe = "a", open = "b"', "got recipe, open"),
        ('row = "x", recipe = "a", printed = { macs = "1 G" }', "macs is printed and not counted"),
        ('row = "x", recipe = "a", beside = { sums = 1 }', "beside has sums, expected norms, pools"),
        ('row = "x", recipe = "a", counted = { flops = 1 }', "counted has flops, expected params, weights, macs"),
        ('row = "x", recipes = "a"', "octave, Table 2, x: .*unexpected keyword argument 'recipes'"),
    ],
)
def test_a_row_that_says_too_little_or_too_much_is_named(text: str, told: str) -> None:
    place = '[[place]]\npaper = "octave"\nat = "Table 2"\nrows = [{ %s }]\n'
    with pytest.raises(ValueError, match=told):
        read_rows(place % text)


# --------------------------------------------------------------------------------------------------------- the counts


@pytest.mark.parametrize("row", params(list(NETWORKS.values())))
def test_counts(row: Row) -> None:
    """What rows say of their network is what it has."""
    net, size = network_of(row)
    counted = count(net, size)
    for other in PRESENT:
        if key(other) == key(row):
            assert dict(other.counted) == {name: counted[name] for name in other.counted}, other


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=str(row), marks=[] if row.recipe == "oct_resnet26_alpha500_imagenet" else pytest.mark.slow)
        for row in NETWORKS.values()
    ],
)
def test_counts_by_measure(row: Row) -> None:
    """The same by `leanconv.measure`, and what stands beside convolutions and linear layers."""
    net, size = network_of(row)
    cost = measure(net, size, all_operations=True)
    ours = {"params": cost.params, "weights": cost.conv_params, "macs": cost.macs, "interactions": cost.interactions}
    assert dict(row.counted) == {name: ours[name] for name in row.counted}
    for other in PRESENT:
        if key(other) == key(row):
            assert dict(other.beside) == {name: cost.other_operations[name] for name in other.beside}, other


# -------------------------------------------------------------------------------------------------------- the recipes


def plain(name: str) -> bool:
    """Whether a recipe's network can be made without memory for its weights: elastic ones are run with values."""
    recipe = RECIPES[name]()
    return recipe.elastic is None and not recipe.rewrites and recipe.data.detection is None


_STEPS = sorted({row.recipe for row in PRESENT if row.recipe and plain(row.recipe)})
_QUICK = ("resnet20_cifar10", "o_resnet20_gamma4_cifar100", "igc_l24m2_d20_cifar10", "ir_csn_26_kinetics_8x2")


@pytest.mark.parametrize(
    "name", [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in _STEPS]
)
def test_a_step_at_its_own_size(name: str) -> None:
    """At the size and with the classes of its data: scores, loss, gradients and a step of its optimizer, on meta."""
    recipe = get_recipe(name)
    classes = classes_of(recipe.data.spec)
    with torch.device("meta"):
        net = create_model(recipe.model, **{"num_classes": classes, **recipe.model_args})
        objective = Classify(net, label_smoothing=recipe.label_smoothing)
        inputs, labels = torch.empty(2, *recipe.data.input_size), torch.zeros(2, dtype=torch.long)
        optimizer = make_optimizer(recipe.optim, objective)
        objective.train()(inputs, labels, step=0)["loss"].backward()
    graded = [parameter for name, parameter in net.named_parameters() if "auxiliary" not in name]
    assert all(parameter.grad is not None for parameter in graded)
    optimizer.step()


def test_weights_that_recipes_start_from_are_left_by_recipes() -> None:
    """Under the name at which `leanconv train NAME` leaves them; weights of IG-65M are imported there."""
    starts = {name: made.weights for name in RECIPES if (made := RECIPES[name]()).weights is not None}
    others = {name: weights for name, weights in starts.items() if weights.removeprefix("runs/") not in RECIPES}
    kinds = ("ir_csn_152", "ip_csn_152", "r2plus1d_152")
    assert others == {f"{kind}_kinetics_finetune_ig65m": f"runs/{kind}_ig65m" for kind in kinds}


_VIDEO = sorted(name for name in RECIPES if name.startswith(("oct_i3d", "oct_c2d", "i3d", "c2d")))


@pytest.mark.parametrize("name", [name if name.startswith("c2d") else pytest.param(name, marks=pytest.mark.slow)
                                  for name in _VIDEO if RECIPES[name]().weights])  # fmt: skip
def test_image_networks_fit_the_video_networks_that_begin_with_them(name: str) -> None:
    """Table 8: every kernel of the image network has its place, inflated, in the video network."""
    video = get_recipe(name)
    image = get_recipe(str(video.weights).removeprefix("runs/"))
    with torch.device("meta"):
        before = create_model(image.model, **image.model_args).state_dict()
        after = create_model(video.model, **video.model_args).state_dict()
    for tensor, given in before.items():
        mine = after[tensor]
        assert mine.shape == given.shape or (*mine.shape[:2], *mine.shape[3:]) == given.shape or tensor.startswith("fc")
    assert image.model_args["alpha"] == video.model_args.get("alpha", 0)
    assert video.model_args["dropout"] == 0.5


# ------------------------------------------------------------------------------------------------ rules of multipliers


def at(prefix: str, depth: int, what: str, **options: float) -> int:
    """Counts of a CIFAR ResNet of any depth, from two shallow ones: it has the same blocks, more often."""
    few, more = (shallow(f"{prefix}resnet{d}", tuple(sorted(options.items())))[what] for d in (20, 32))
    return few + (more - few) * ((depth - 2) // 6 - 3) // 2


_CACHE: dict[Any, dict[str, int]] = {}


def shallow(name: str, options: tuple[tuple[str, float], ...]) -> dict[str, int]:
    """What it counts, once."""
    if (name, options) not in _CACHE:
        with torch.device("meta"):
            net = create_model(name, **dict(options))
        _CACHE[name, options] = count(net, (3, 32, 32))
    return _CACHE[name, options]


SWEEP = [("macs", prefix, {}, "{prefix}resnet{depth}_cifar10") for prefix in ("dw_", "s_", "o_", "so_")]
SWEEP += [("params", prefix, {}, "{prefix}resnet{depth}_params_cifar10") for prefix in ("dw_", "d_", "s_", "o_", "so_")]
SWEEP += [("macs", "o_", {"overlap": gamma}, f"o_resnet{{depth}}_gamma{label}_cifar10")
          for label, (gamma, _) in GAMMAS.items()]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "prefix", "options", "recipe"),
    [row if row[:2] == ("macs", "dw_") else pytest.param(*row, marks=pytest.mark.slow) for row in SWEEP],
)
def test_multipliers_are_the_eighths_nearest_to_the_conventional_network(
    what: str, prefix: str, options: dict[str, float], recipe: str
) -> None:
    """The rule of o-, which the paper prints, and here of everything that it does not print."""
    for depth in (20, 32, 56, 110):
        chosen = OSEP[recipe.format(prefix=prefix, depth=depth)]().model_args.get("multiplier", 1.0)
        goal = at("", depth, what)
        missed = [
            abs(at(prefix, depth, what, multiplier=chosen + step, **options) - goal) for step in (-0.125, 0, 0.125)
        ]
        assert min(missed) == missed[1], (recipe, depth, [m / goal for m in missed])


def test_depths_are_extrapolated_exactly() -> None:
    assert at("", 110, "macs") == 252_887_680  # table 6: 0.25289
    assert at("o_", 110, "params", multiplier=3.875) == 1_336_724  # 1.337
    assert [b - a for a, b in pairwise([at("", depth, "macs") for depth in (20, 32, 44)])] == [28_311_552] * 2
