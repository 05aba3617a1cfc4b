"""The fastest of the equal ways to compute a network here: all that exist for it, timed in turn, the first one kept.

Which it is depends on the machine, the device, the type and the batch, and on whether gradients are wanted: a chain in
few wide groups is slow everywhere, the dense convolution that it equals has several times its products, and a GPU does
not mind. So nothing is assumed, all is measured, and what was found can be kept in a file, by machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.cost.latency import compare_latency
from leanconv.deploy.forms.apply import FORMS, Form, in_form
from leanconv.deploy.verify import random_inputs
from leanconv.dryrun import ModelHolder, Size, as_module, check_sizes
from leanconv.errors import LeanconvError
from leanconv.files import write_text
from leanconv.kernels.build import digest
from leanconv.kernels.library import missing
from leanconv.machine import gpu_names, this_machine

__all__ = ["Choice", "Fastest", "fastest"]

MULTIPLES = (1, 8)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way that was timed: milliseconds of a call, or of forward and backward; `ratio` is to the first, "stages"."""

    form: str
    multiple: int
    median_ms: float
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Fastest:
    """`model` is the network in its fastest form, `choices` what was timed, the fastest first; `left` why others not.

    Every function that takes a network takes this as it is; for inference it has no story, because none leads to
    composed kernels.
    """

    model: nn.Module
    choices: tuple[Choice, ...]
    left: tuple[str, ...]
    story: None = None

    def __str__(self) -> str:
        lines = [
            f"{one.form} x{one.multiple}: {one.median_ms:.3f} ms, {one.ratio:.2f} of stages" for one in self.choices
        ]
        return "\n".join([*lines, *self.left])


def fastest(
    model: nn.Module | ModelHolder,
    size: Size,
    *,
    batch: int = 1,
    training: bool = False,
    forms: Sequence[Form] = FORMS,  # type: ignore[assignment]
    multiples: Sequence[int] = MULTIPLES,
    compiled: bool = False,
    threads: int = 1,
    rounds: int = 15,
    cache: Path | None = None,
) -> Fastest:
    """Time `model` in every form that it can run in, on its device and in its type, and return the fastest.

    For inference that may be "library", which takes inputs of `size` alone, in batches of any length, and has no
    gradient; name the other `forms` where that does not do.

    Args:
        size: the shape of one input without the batch axis.
        training: time forward and backward, and return a network to train: same parameters, same names.
        forms, multiples: what to try, see `in_form`; "stages" with 1 is always among them.
        compiled: time (and return) each after `torch.compile`.
        threads: of torch on a CPU.
        cache: a JSON file that remembers what was fastest, by machine, device, type, network and what was tried;
            nothing is timed where it knows.

    Raises `LeanconvError` as `in_form` where the network does not run at all.

    >>> from leanconv.build import create_model
    >>> found = fastest(create_model("igc_l4m8"), (3, 8, 8), forms=("stages", "composed"), multiples=(1,), rounds=3)
    >>> sorted(choice.form for choice in found.choices)
    ['composed', 'stages']
    """
    network, size = as_module(model), check_sizes(size)
    wanted = dict.fromkeys([("stages", 1), *((form, multiple) for form in forms for multiple in multiples)])
    tried = ", ".join(f"{form} x{multiple}" for form, multiple in wanted)
    key = _key(network, size, batch, training, compiled, threads, tried)
    known = _read(cache).get(key)
    if known is not None:
        form, multiple = known["form"], known["multiple"]
        made = _finished(in_form(network, form, size, training=training, multiple=multiple), network, compiled)
        return Fastest(model=made, choices=(Choice(**known),), left=())
    models: dict[str, nn.Module] = {}
    names: dict[str, tuple[str, int]] = {}
    left = []
    for form, multiple in wanted:
        try:
            made = in_form(network, form, size, training=training, multiple=multiple)
        except LeanconvError as error:
            if (form, multiple) == ("stages", 1):
                raise
            left.append(f"{form} x{multiple}: {error}")
            continue
        name = f"{form} x{multiple}"
        models[name], names[name] = _finished(made, network, compiled), (form, multiple)
    times = compare_latency(
        {name: _call(made, network, size, batch, training) for name, made in models.items()},
        rounds=rounds,
        threads=threads,
    )
    choices = sorted(
        (
            Choice(form=form, multiple=multiple, median_ms=times[name].median_ms, ratio=times[name].ratio)
            for name, (form, multiple) in names.items()
        ),
        key=lambda one: one.median_ms,
    )
    if cache is not None:
        write_text(cache, json.dumps({**_read(cache), key: asdict(choices[0])}, indent=1) + "\n")
    form, multiple = choices[0].form, choices[0].multiple
    made = models[f"{form} x{multiple}"]
    if training:  # the one that was timed has gradients, and its norms have seen noise
        made = _finished(in_form(network, form, size, training=True, multiple=multiple), network, compiled)  # type: ignore[arg-type]
    return Fastest(model=made, choices=tuple(choices), left=tuple(left))


def _finished(made: nn.Module, network: nn.Module, compiled: bool) -> nn.Module:
    """In the device and type of the network, compiled if that is wanted."""
    some = next(network.parameters(), None)
    made = made if some is None else made.to(some.device, some.dtype)
    return torch.compile(made) if compiled else made  # type: ignore[return-value]


def _call(made: nn.Module, network: nn.Module, size: Any, batch: int, training: bool) -> Callable[[], object]:
    some = next(network.parameters(), torch.zeros(()))
    inputs = [
        x.to(some.device, some.dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in random_inputs(network, size, batch, seed=0)
    ]
    parameters = [p for p in made.parameters() if p.requires_grad]

    def infer() -> object:
        with torch.inference_mode():
            return made(*inputs)

    def train() -> object:
        for p in parameters:
            p.grad = None
        y = made(*inputs)
        y.float().square().mean().backward()
        return y

    return train if training else infer


def _key(network: nn.Module, size: Any, batch: int, training: bool, compiled: bool, threads: int, tried: str) -> str:
    some = next(network.parameters(), torch.zeros(()))
    if some.is_cuda:
        where = (gpu_names() or ["?"])[some.device.index or 0]
    else:  # a library that was built since, or from other sources, may be faster now
        where = f"{this_machine()}; {'no library' if missing() else f'library {digest()}'}"
    what = "training" if training else "inference"
    described = hashlib.sha256(str(network).encode()).hexdigest()[:16]
    parts = [where, f"torch {torch.__version__}", str(some.dtype), what, f"batch {batch}", str(tuple(size))]
    return "; ".join([*parts, f"{threads} threads", *(["compiled"] if compiled else []), tried, described])


def _read(cache: Path | None) -> dict[str, Any]:
    if cache is None or not cache.is_file():
        return {}
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LeanconvError(f"{cache} is no file of what was fastest: {error}; delete it") from error
    if not isinstance(found, dict):
        raise LeanconvError(f"{cache} is no file of what was fastest: a JSON object was expected; delete it")
    return found
