"""A network that was trained, with the data to test it on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from leanconv.errors import LeanconvError
from leanconv.recipes.config import change, read_recipe
from leanconv.recipes.run import open_data
from leanconv.recipes.settings import Recipe
from leanconv.train.runfolder import saved_model

if TYPE_CHECKING:
    from torch import nn

    from leanconv.data import ImageData, VideoData

__all__ = ["LoadedRun", "load_run"]


class LoadedRun(NamedTuple):
    """A network, the data to test it on, and its recipe where it is a run's."""

    network: nn.Module
    data: ImageData | VideoData
    recipe: Recipe | None


def load_run(
    folder: str | Path, *, data: str | None = None, size: Sequence[int] | None = None, trust_code: bool = False
) -> LoadedRun:
    """The network in a run folder or saved model, and the images or videos that `data`, or the run's recipe, names.

    `size` is the shape of one input, by default that of training. A run on videos reads other videos as it reads its
    own; for a saved network for clips every other frame at 30 per second is taken. Raises `LeanconvError` for a run
    that is not finished, a saved model without `data`, and a `size` that the data cannot have.
    """
    from leanconv.build import default_size, load
    from leanconv.data import open_inputs

    path = Path(folder)
    config, model = path / "config.yaml", saved_model(path)
    if config.exists() and not model.exists():
        raise LeanconvError(f"{path}: this run is not finished: leanconv train --resume --out {path}")
    network = load(model, trust_code=trust_code)
    recipe = read_recipe(config) if config.exists() else None
    if recipe is not None and (data is None or recipe.data.video is not None):
        changes = [] if data is None else [f"data.spec={data}"]
        if size is not None:
            _check_size(size, len(recipe.data.input_size))
            changes.append(f"data.size={size[-1]}")
            changes += [f"data.video.frames={size[1]}"] if len(size) == 4 else []
        return LoadedRun(network, open_data(change(recipe, changes)), recipe)
    if data is None:
        raise LeanconvError(f"{path} is a saved model, not a run folder: say which images or videos with --data")
    try:
        own = default_size(str(model))
    except LeanconvError:  # the model was saved without one
        if size is None:
            raise
        own = tuple(size)
    wanted = own if size is None else size
    _check_size(wanted, len(own))
    return LoadedRun(network, open_inputs(data, wanted), recipe)


def _check_size(size: Sequence[int], axes: int) -> None:
    if len(size) != axes or axes not in (3, 4) or size[0] != 3 or size[-1] != size[-2]:
        expected = "3,FRAMES,SIDE,SIDE" if axes == 4 else "3,SIDE,SIDE"
        raise LeanconvError(
            f"size {','.join(map(str, size))}: expected {expected}, the data are square pictures of three channels"
        )
