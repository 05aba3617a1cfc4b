"""The fastest of the equal ways to compute the octave convolutions of a network on a runtime here, found by measuring.

Layers that differ in nothing but their weights are measured once: each way that exists for them, see `octave_sums`,
as a file of that layer alone, in turn, on the runtime that is asked for. Then whole networks are: as it was made, with
the sums in the order that runtimes fuse, and with every layer in its fastest way. The fastest of the three is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from leanconv.cost.latency import compare_latency, torch_threads
from leanconv.data.contract import attach, contract_of
from leanconv.deploy.fold import fold
from leanconv.deploy.forms.fuse import fused
from leanconv.deploy.forms.octave_sums import OctaveSum, SumForm
from leanconv.deploy.onnx_file import to_onnx
from leanconv.deploy.verify import Runner, compare, onnxruntime_runner, openvino_runner, random_inputs
from leanconv.dryrun import ModelHolder, Size, Sizes, as_module, check_sizes
from leanconv.errors import LeanconvError, NothingToRewrite, unknown
from leanconv.files import scratch_folder

__all__ = ["RUNTIMES", "OctaveForms", "OctaveLayers", "in_sums", "octave_forms"]

RUNTIMES: dict[str, Callable[..., Runner]] = {"onnxruntime": onnxruntime_runner, "openvino": openvino_runner}
"""What can be asked which way is fastest: each runs an ONNX file."""

_GAIN = 0.98
"""By how much another way must be faster than the first: less is what one measurement differs from the next."""


class _Kind(NamedTuple):
    """What decides the speed of one output of a layer."""

    kernel: int
    up: int
    relu: bool
    channels: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class OctaveLayers:
    """`count` outputs of one kind: the shapes that they take (residual last), the way they run, what each way takes."""

    count: int
    kernel: int
    up: int
    shapes: tuple[tuple[int, ...], ...]
    channels: int
    form: SumForm
    median_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class OctaveForms:
    """`model` is the network in its fastest way on `runtime`, folded, `layers` what became of its octave convolutions.

    `whole_ms` holds milliseconds of the network "as made", with "sums in order", and with "each its fastest" if that is
    another one; `kept` is which of them `model` is. Every function that takes a network takes this as it is; it has no
    story, because none leads to folded weights.
    """

    model: nn.Module
    runtime: str
    kept: str
    whole_ms: Mapping[str, float]
    layers: tuple[OctaveLayers, ...]
    story: None = None

    def __str__(self) -> str:
        first = self.whole_ms["as made"]
        lines = [f"{name}: {ms:.2f} ms, {ms / first:.2f} of as made" for name, ms in self.whole_ms.items()]
        for one in self.layers:
            times = ", ".join(f"{form} {ms:.3f} ms" for form, ms in one.median_ms.items())
            lines.append(
                f"{one.count} x {one.kernel}x{one.kernel} {one.shapes} to {one.channels}, up {one.up}: {one.form}"
                f" ({times})"
            )
        return "\n".join([f"{self.runtime}: {self.kept}", *lines])


def octave_forms(
    model: nn.Module | ModelHolder,
    size: Size,
    *,
    runtime: str = "onnxruntime",
    batch: int = 1,
    threads: int = 1,
    rounds: int = 9,
    tolerance: float = 1e-4,
) -> OctaveForms:
    """A copy of `model` for inference whose octave convolutions run in the way that is fastest on `runtime` here.

    Args:
        size: the shape of one input, (C, H, W), without the batch axis.
        runtime: "onnxruntime" or "openvino".
        batch, threads: what it will run with. With one thread it is the processor's time that is compared, which
            other work on the machine disturbs least.
        tolerance: the largest difference of outputs that is accepted, as a share of the largest of them.

    Raises:
        NothingToRewrite: where no octave convolution has two convolutions to sum.
        MissingExtra: without the extra "export".
        UnknownName: for another runtime.

        print(octave_forms(create_model("oct_resnet26", alpha=0.5), (3, 224, 224)))  # a minute
    """
    if runtime not in RUNTIMES:
        raise unknown("runtime", runtime, RUNTIMES)
    network, size = as_module(model), check_sizes(size)
    made = fold(network, size).model
    ordered = in_sums(made)
    kinds = _kinds(ordered, size)
    run = partial(RUNTIMES[runtime], threads=threads)
    clock = process_time if threads == 1 else perf_counter
    with torch_threads(threads), scratch_folder() as folder:
        layers = tuple(
            _fastest_way(kind, same, folder / f"{number}", run, batch, rounds, clock)
            for number, (kind, same) in enumerate(kinds.items())
        )
        networks = {"as made": made, "sums in order": ordered}
        if any(layer.form != "apart" for layer in layers):
            chosen = copy.deepcopy(ordered)
            for layer, same in zip(layers, _kinds(chosen, size).values(), strict=True):
                for one in same:
                    one.run_as(layer.form)
            networks["each its fastest"] = chosen
        whole = _times(networks, size, folder / "whole", run, batch, rounds, clock)
    kept = min(whole, key=whole.__getitem__)
    difference = compare(made, networks[kept], size)
    if difference.beyond(tolerance):
        raise LeanconvError(
            f"{type(network).__name__}: its octave convolutions summed in another order give outputs that differ by "
            f"{difference.max_abs:.1e}, more than {tolerance:g} of the largest: a fault of ours, please report it"
        )
    if (contract := contract_of(network)) is not None:
        attach(networks[kept], contract)
    return OctaveForms(model=networks[kept], runtime=runtime, kept=kept, whole_ms=whole, layers=layers)


def in_sums(folded: nn.Module) -> nn.Module:
    """A copy of a folded network with its octave convolutions as `OctaveSum`, each with what follows it, all "apart".

    Raises `NothingToRewrite` where none has two convolutions to sum.
    """
    new, _ = fused(copy.deepcopy(folded), octaves=_output)
    if not any(isinstance(module, OctaveSum) and None not in (module.main, module.other) for module in new.modules()):
        raise NothingToRewrite(f"no octave convolution of {type(folded).__name__} has two resolutions to sum")
    return new


def _output(main: nn.Conv2d | None, other: nn.Conv2d | None, up: int, relu: bool) -> OctaveSum | None:
    return None if main is None and other is None else OctaveSum(main, other, up, relu)


def _kinds(network: nn.Module, size: Sizes) -> dict[_Kind, list[OctaveSum]]:
    """The layers of a network that can run in several ways, like with like, in the order of their first run."""
    found: dict[_Kind, list[OctaveSum]] = {}

    def note(module: nn.Module, given: tuple[Tensor | None, ...]) -> None:
        layer = cast(OctaveSum, module)
        conv = cast(nn.Conv2d, layer.main)
        shapes = tuple(tuple(one.shape[1:]) for one in given if one is not None)
        kind = _Kind(conv.kernel_size[0], layer.up, layer.relu, conv.out_channels, shapes)
        found.setdefault(kind, []).append(layer)

    several = [module for module in network.modules() if isinstance(module, OctaveSum) and len(module.forms) > 1]
    hooks = [layer.register_forward_pre_hook(note) for layer in several]
    with torch.no_grad():
        network(*random_inputs(network, size, 1, seed=0))
    for hook in hooks:
        hook.remove()
    return found


def _fastest_way(
    kind: _Kind,
    same: list[OctaveSum],
    path: Path,
    run: Callable[..., Runner],
    batch: int,
    rounds: int,
    clock: Callable[[], float],
) -> OctaveLayers:
    """Time one layer of a kind in every way that it has."""
    ways: dict[str, nn.Module] = {
        form: _BehindConvolutions(copy.deepcopy(same[0]).run_as(form), kind.shapes) for form in same[0].forms
    }
    times = _times(ways, kind.shapes, path, run, batch, rounds, clock)
    best = min(times, key=times.__getitem__)
    return OctaveLayers(
        count=len(same),
        kernel=kind.kernel,
        up=kind.up,
        shapes=kind.shapes,
        channels=kind.channels,
        form=cast(SumForm, best if times[best] < _GAIN * times["apart"] else "apart"),
        median_ms=times,
    )


class _BehindConvolutions(nn.Module):
    """A layer whose inputs come out of convolutions, as in a network: in the layout that the runtime gives them there.

    A runtime joins maps in the layout of the file for nothing, and not in its own.
    """

    def __init__(self, layer: OctaveSum, shapes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(one[0], one[0], 1, groups=one[0]) for one in shapes)
        self.layer = layer

    def forward(self, x: Tensor, z: Tensor, residual: Tensor | None = None) -> Tensor:
        given = [x, z] if residual is None else [x, z, residual]
        made: Tensor = self.layer(*(conv(one) for conv, one in zip(self.before, given, strict=True)))
        return made


def _times(
    networks: Mapping[str, nn.Module],
    size: Sizes,
    path: Path,
    run: Callable[..., Runner],
    batch: int,
    rounds: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Median milliseconds of each as an ONNX file, interleaved."""
    calls: dict[str, Callable[[], object]] = {}
    for number, (name, network) in enumerate(networks.items()):
        file = path.with_name(f"{path.name}_{number}.onnx")
        to_onnx(network.eval(), file, size=size, batch=batch)
        calls[name] = partial(run(file), *random_inputs(network, size, batch, seed=0))
        file.unlink()
    return {name: one.median_ms for name, one in compare_latency(calls, rounds=rounds, clock=clock).items()}
