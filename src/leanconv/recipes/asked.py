"""A network that can be asked, whatever it is kept in: a module, a saved model, a run, a name, an exported file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from leanconv.data.contract import amended, contract_of
from leanconv.dryrun import ModelHolder, as_module
from leanconv.errors import LeanconvError
from leanconv.recipes.load import asks_for_contract, check_exported, check_names
from leanconv.train.runfolder import saved_model

if TYPE_CHECKING:
    from leanconv.data import InputContract

__all__ = ["Asked", "asked", "configured"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Logits (n, classes) for inputs that `contract` describes; `one_by_one` where a file may take n = 1 alone."""

    scores: Callable[[Tensor], Tensor]
    contract: InputContract
    one_by_one: bool = False


@contextmanager
def asked(
    model: str | Path | nn.Module | ModelHolder,
    *,
    options: Mapping[str, Any] | None = None,
    size: Sequence[int] | None = None,
    given: Mapping[str, Any] | None = None,
    width: float | None = None,
    resolution: int | None = None,
    trust_code: bool = False,
) -> Iterator[Asked]:
    """The network that `model` is or names, in evaluation mode; the arguments are those of `predict`.

    Raises `LeanconvError` where nothing says how to feed it, and for a name alone, whose weights are random.
    """
    from leanconv.deploy.exported import is_exported
    from leanconv.modes import eval_mode

    given = dict(given or {})
    file = is_exported(model)
    if file and (options or width is not None or resolution is not None):
        raise LeanconvError(
            f"{model} is an exported file, one network as it is: leave out --set, --width, --resolution"
        )
    network, name, made_for = _network(model, options or {}, trust_code)
    contract = contract_of(network)
    shape = size or (made_for() if contract is None else contract.size)
    wanted = amended(contract, tuple(shape), given)
    if wanted is None:
        raise LeanconvError(f"{name}: {asks_for_contract()}")
    check_exported(network, wanted, given)
    check_names(name, network, wanted)
    with configured(network, width, resolution) as (chosen, _), eval_mode(chosen) as device:
        yield Asked(scores=lambda inputs: chosen(inputs.to(device)).cpu(), contract=wanted, one_by_one=file)


def _network(
    model: str | Path | nn.Module | ModelHolder, options: Mapping[str, Any], trust_code: bool
) -> tuple[nn.Module, str, Callable[[], Sequence[int]]]:
    """The network, what messages call it, and what says the size that it was made for."""
    from leanconv.build import default_size, is_folder, located, resolve
    from leanconv.deploy.exported import ExportedNetwork, is_exported
    from leanconv.dryrun import default_size as told_size

    if not isinstance(model, str | Path):
        network = as_module(model)
        called = f"this {type(network).__name__}"

        def own() -> Sequence[int]:
            if (told := told_size(network)) is None:
                raise LeanconvError(f"{called}: its input size is not known: give it, for example 3,224,224")
            return told

        return network, called, own
    if is_exported(model):

        def unknown() -> Sequence[int]:
            raise LeanconvError(f"{model}: {asks_for_contract()}; and --size C,H,W, which it does not say either")

        return ExportedNetwork(model, trust_code=trust_code), str(model), unknown
    if os.path.isfile(model):
        raise LeanconvError(f"{model}: expected a folder, a name, or an exported file that ends in .onnx, .xml or .pt2")
    name = located(model)
    if folder := os.path.isdir(name):
        name = str(saved_model(name))
    network = resolve(name, options, trust_code=trust_code)
    if contract_of(network) is None and not folder and not is_folder(name) and ":" not in name:
        raise LeanconvError(
            f"{name}: this name alone is a network with random weights, whose predictions mean nothing: give"
            " --set pretrained=true (timm), --set weights=DEFAULT (torchvision), or a folder with trained weights"
        )
    return network, name, lambda: default_size(name)


@contextmanager
def configured(network: nn.Module, width: float | None, resolution: int | None) -> Iterator[tuple[nn.Module, str]]:
    """The network to ask, an elastic one at `width` and `resolution` (default: its largest), and words that say which.

    It is on the GPU for as long, where there is one. Raises `LeanconvError` for a width of a network that has none.
    """
    import torch

    from leanconv.elastic import ElasticNet

    if not isinstance(network, ElasticNet) and (width is not None or resolution is not None):
        raise LeanconvError("width and resolution are for elastic networks; this one has a single configuration")
    before = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    if torch.cuda.is_available():
        network.cuda()
    try:
        if not isinstance(network, ElasticNet):
            yield network, ""
            return
        config = network.checked(width or network.widths[1], resolution or network.resolutions[0])
        with network.at(width=config.width, resolution=config.resolution):
            yield network, f" at width {config.width:g}, resolution {config.resolution}"
    finally:
        network.to(before)
