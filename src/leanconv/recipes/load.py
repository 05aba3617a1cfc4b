"""A network that was trained, with the data to test it on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from leanconv.data.contract import InputContract, amended, contract_of
from leanconv.dryrun import ModelHolder, as_module
from leanconv.dryrun import default_size as told_size
from leanconv.errors import LeanconvError, shown
from leanconv.modes import eval_mode
from leanconv.offline import no_network
from leanconv.recipes.config import read_recipe
from leanconv.recipes.run import open_data
from leanconv.recipes.settings import DataSettings, Recipe
from leanconv.train.check import check_inputs, outputs_of
from leanconv.train.runfolder import saved_model

if TYPE_CHECKING:
    from leanconv.data import ImageData, VideoData

__all__ = ["LoadedRun", "asks_for_contract", "check_exported", "check_names", "load_run"]


class LoadedRun(NamedTuple):
    """A network, the data to test it on, and its recipe where it is a run's."""

    network: nn.Module
    data: ImageData | VideoData
    recipe: Recipe | None

    def views(self, clips: int | None = None, crops: int | None = None) -> tuple[int, int]:
        """On how many clips, and crops of each, a video is judged: as asked, else as the run or the contract says."""
        settings = None if self.recipe is None else self.recipe.data.video
        contract = contract_of(self.network)
        clip = None if contract is None else contract.clip
        clips = clips or (settings.test_clips if settings else clip.clips if clip else 10)
        return clips, crops or (settings.test_crops if settings else clip.crops if clip else 1)


def load_run(
    model: str | Path | nn.Module | ModelHolder,
    *,
    data: str | None = None,
    size: Sequence[int] | None = None,
    given: Mapping[str, Any] | None = None,
    whole: bool = True,
    part: str | None = None,
    trust_code: bool = False,
) -> LoadedRun:
    """The network in a run folder or saved model, and the images or videos that `data`, or the run's recipe, names.

    `model` may be a network itself or an exported file, with `data`; "hf:OWNER/NAME" is fetched.

    They are prepared by the network's input contract, changed by `given`, the fields of `InputContract` that somebody
    has named; without a contract `given` must have `mean` and `std`. `size` is the shape of one input, by default that
    of training. `data` that is not split yet is used whole for the test, or with `whole` False split as for training.
    `part` ("test", "validation" or "train") is tested on instead, as training has it: by the run's recipe, or by the
    default one's tenth and seed.
    Raises `LeanconvError` for a run that is not finished, a model without `data`, a network without a contract, a
    `size` that the data cannot have, data that do not fit the network, and a part that is not there.
    """
    from leanconv.data import open_inputs

    network, recipe, name, made_for, kind = _network(model, trust_code)
    if data is None and recipe is None:
        raise LeanconvError(f"{name} is {kind}, not a run folder: say which images or videos with --data")
    contract = _contract(name, network, recipe, size, made_for, dict(given or {}))
    check_exported(network, contract, given or {})
    check_names(name, network, contract)
    if recipe is not None and data is None:
        opened = _data_of(recipe, contract, name, part)
    else:
        options: dict[str, Any] = {} if recipe is None else _reading(recipe)
        if part is not None:
            held_out = DataSettings(spec=str(data)).held_out if recipe is None else recipe.data.held_out
            options |= {"part": part, "validation": held_out, "seed": 0 if recipe is None else recipe.seed}
        opened = open_inputs(str(data), contract, testing=whole and part is None, **options)
    check_inputs(network, opened.input_size, opened.num_classes, named=contract.class_names is not None)
    return LoadedRun(network, opened, recipe)


def _data_of(
    recipe: Recipe, contract: InputContract | None, name: str, part: str | None = None
) -> ImageData | VideoData:
    """The data that a run's own file names; nothing is fetched for it, whatever it says."""
    with no_network() as asked:
        try:
            return open_data(recipe, contract, part)
        except LeanconvError as error:
            if asked:
                raise LeanconvError(
                    f"{name}/config.yaml: its data.spec {shown(recipe.data.spec)} would fetch {asked[0]}, and"
                    " what a run's file says is not fetched: say it yourself with --data"
                ) from error
            raise


def check_exported(network: nn.Module, contract: InputContract, given: Mapping[str, Any]) -> None:
    """Raise `LeanconvError` for an exported file that does not take what `contract` says, before any data are read.

    So it does for a mean or std that is `given` for a file that takes pixels and normalises them itself.
    """
    import torch

    from leanconv.deploy.exported import ExportedNetwork

    if not isinstance(network, ExportedNetwork):
        return
    if network.takes_pixels and given.keys() & {"mean", "std"}:
        raise LeanconvError(f"{network.path}: it takes pixels and normalises them itself: leave out --mean and --std")
    with eval_mode(network):
        network(torch.zeros(1, *contract.size))


class _Network(NamedTuple):
    """A network, the recipe of its run (None where it is no run's), what messages call it, its input size, its kind."""

    network: nn.Module
    recipe: Recipe | None
    name: str
    made_for: tuple[int, ...] | None
    kind: str


def _network(model: str | Path | nn.Module | ModelHolder, trust_code: bool) -> _Network:
    from leanconv.build import default_size, load, located
    from leanconv.deploy.exported import ExportedNetwork, is_exported

    if not isinstance(model, str | Path):
        network = as_module(model)
        return _Network(network, None, f"this {type(network).__name__}", told_size(network), "a network")
    if is_exported(model):
        network = ExportedNetwork(model, trust_code=trust_code)
        contract = contract_of(network)
        return _Network(network, None, str(model), None if contract is None else contract.size, "an exported file")
    path = Path(located(model))
    config, saved = path / "config.yaml", saved_model(path)
    if os.path.exists(config) and not os.path.exists(saved):
        raise LeanconvError(f"{path}: this run is not finished: leanconv train --resume --out {path}")
    network = load(saved, trust_code=trust_code)
    recipe = read_recipe(config) if os.path.exists(config) else None
    try:
        made_for: tuple[int, ...] | None = default_size(str(saved))
    except LeanconvError:  # the model was saved without one
        made_for = None
    return _Network(network, recipe, str(path), made_for, "a saved model")


def _contract(
    name: str,
    network: nn.Module,
    recipe: Recipe | None,
    size: Sequence[int] | None,
    made_for: tuple[int, ...] | None,
    given: dict[str, Any],
) -> InputContract:
    """What the network is fed, with what somebody says about it now; never anything that is estimated of other data."""
    contract = contract_of(network)
    if contract is None and recipe is not None and not {"mean", "std"} <= given.keys():
        try:
            contract = _data_of(recipe, None, name).contract  # an older leanconv did not keep it: as it was trained
        except LeanconvError as error:
            raise LeanconvError(
                f"{name}: {asks_for_contract()} (it was trained on {recipe.data.spec}: {error})"
            ) from error
    own = made_for or (None if contract is None else contract.size)
    if own is None and size is None:
        raise LeanconvError(f"{name}: its input size is not known: give it, for example 3,224,224")
    wanted = tuple(size or own or ())
    _check_size(wanted, len(own or wanted))
    said = amended(contract, wanted, given)
    if said is None:
        raise LeanconvError(f"{name}: {asks_for_contract()}")
    return said


def check_names(name: str, network: nn.Module, contract: InputContract) -> None:
    """Raise `LeanconvError` for the contract of another network, which names more classes than this one tells apart."""
    names = contract.class_names
    if names is not None and (outputs := outputs_of(network, contract.size)) < len(names):
        raise LeanconvError(
            f"{name} has {outputs} outputs, and its input contract names {len(names)} classes: it"
            " belongs to another network; import or export the model again"
        )


def asks_for_contract() -> str:
    """What is said to who feeds a model without a contract."""
    return (
        "nothing says how the inputs of this model were made, and a guess would give another accuracy: say"
        " --mean R,G,B --std R,G,B (of values from 0 to 1; ImageNet's are .485,.456,.406 and .229,.224,.225), and"
        " where they were not the central square in one bilinear step, --crop and --interpolation"
    )


def _reading(recipe: Recipe) -> dict[str, Any]:
    """How files are read, which changes no pixel."""
    return {"batch_size": recipe.data.batch_size, "workers": recipe.data.workers}


def _check_size(size: Sequence[int], axes: int) -> None:
    if len(size) != axes or axes not in (3, 4) or size[0] != 3 or size[-1] != size[-2]:
        expected = "3,FRAMES,SIDE,SIDE" if axes == 4 else "3,SIDE,SIDE"
        raise LeanconvError(
            f"size {','.join(map(str, size))}: expected {expected}, the data are square pictures of three channels"
        )
