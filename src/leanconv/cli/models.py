"""The model that a command line describes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from leanconv.cli.values import read_model, read_options, read_sizes
from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import nn

    from leanconv.rewrites import Rewritten

__all__ = ["Found", "attach_given", "configuration", "find"]


class Found(NamedTuple):
    """A model from the command line: as named, as rewritten (None without --rewrite), and its input size.

    Of several inputs the size is a tuple of shapes.
    """

    model: nn.Module
    rewritten: Rewritten | None
    size: tuple[Any, ...]

    @property
    def final(self) -> nn.Module:
        """The model after its rewrites."""
        return self.rewritten.model if self.rewritten else self.model

    @property
    def final_size(self) -> tuple[Any, ...]:
        """What it takes: clips where the rewrites made it a network for clips."""
        return (self.rewritten and self.rewritten.size) or self.size


def find(
    name: str,
    options: Sequence[str],
    steps: Sequence[str],
    size: str | Sequence[str] | None,
    *,
    trust_code: bool = False,
) -> Found:
    """Build or load the model that the options describe: a name, with options in parentheses or not, or a folder.

    A folder is a saved model or a run, "hf:OWNER/NAME" one that is fetched first.
    """
    from leanconv.build import default_size, located, resolve
    from leanconv.data.contract import contract_of
    from leanconv.dryrun import image_size
    from leanconv.rewrites import parse_step, rewrite
    from leanconv.train.runfolder import saved_model

    name, own = read_model(name)
    name = located(name)
    name = str(saved_model(name)) if os.path.isdir(name) else name
    model = resolve(name, {**read_options(options), **own}, trust_code=trust_code)
    sizes = [size] if isinstance(size, str) else size
    contract = contract_of(model)
    if sizes:
        shape = read_sizes(sizes)
    elif contract is not None:
        shape = contract.size
    else:  # the options of a detector say how large its images are
        shape = image_size(model) or default_size(name)
    done = rewrite(model, *map(parse_step, steps), size=shape) if steps else None
    return Found(model, done, shape)


def configuration(
    model: nn.Module,
    size: tuple[int, ...],
    width: float | None,
    resolution: int | None,
    *,
    calibrated: bool = True,
) -> tuple[nn.Module, tuple[int, ...]]:
    """An elastic network as the plain one at `width` and `resolution` (default: the largest), any other as it is.

    One for counting need not be `calibrated`.
    """
    from leanconv.elastic import ElasticNet

    if not isinstance(model, ElasticNet):
        if width is not None or resolution is not None:
            raise LeanconvError(
                "--width and --resolution are for elastic networks; this one has a single configuration"
            )
        return model, size
    config = model.checked(width, resolution)
    return model.extract(*config, calibrated=calibrated), model.inputs.at(config)


def attach_given(network: nn.Module, size: tuple[Any, ...], given: dict[str, Any]) -> None:
    """Let the network have the contract that the command line names."""
    from leanconv.data.contract import amended, attach, contract_of

    if not given:
        return
    if not isinstance(size[0], int):
        raise LeanconvError("--mean, --std, --crop and --interpolation are for networks of one input")
    contract = amended(contract_of(network), size, given)
    if contract is None:
        raise LeanconvError("this model has no input contract yet, so say at least both --mean R,G,B and --std R,G,B")
    attach(network, contract)
