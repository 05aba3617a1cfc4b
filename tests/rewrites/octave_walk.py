"""What must hold of the octave form of anybody's network; for the walks over timm and torchvision."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from leanconv.cost import measure
from leanconv.errors import LeanconvError
from leanconv.ops.octave import OctConv
from leanconv.rewrites import Octave, rewrite


class Walked(NamedTuple):
    """How many octave convolutions there are and how many emit two resolutions, at which sizes it runs.

    `uneven` is where an image that is constant in space does not stay so in the dense network (it pads by zeros itself,
    say), so that nothing can be compared; `left` counts the layers left alone by reason.
    """

    layers: int
    emitting: int
    sizes: tuple[int, ...]
    uneven: str
    left: dict[str, int]

    def __str__(self) -> str:
        left = "; ".join(f"{count} x {reason}" for reason, count in self.left.items())
        equal = f"not compared, uneven behind {self.uneven}" if self.uneven else "equal"
        return f"{self.layers} octave convolutions ({self.emitting} emit), at {self.sizes}, {equal}" + (
            f"; left alone: {left}" if left else ""
        )


def tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def shapes(net: nn.Module, size: int) -> list[tuple[int, ...]]:
    """Shapes of the outputs for a fake batch."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return [tuple(part.shape) for part in tensors(net(torch.zeros(2, 3, size, size)))]


def runs(net: nn.Module, size: int) -> bool:
    """Whether the dense network takes this size at all; some have windows or position tables of fixed size."""
    try:
        shapes(net, size)
    except Exception:
        return False
    return True


def gradients(net: nn.Module, size: int) -> dict[str, Tensor | None]:
    """Of one real step in training mode."""
    net.train()
    net.zero_grad()
    out = tensors(net(torch.randn(2, 3, size, size)))
    sum(part.square().mean() for part in out if part.is_floating_point()).backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad()
    net.eval()
    return found


def learnable(net: nn.Module, sizes: Sequence[int]) -> tuple[int, set[str]]:
    """The first size at which the dense network trains, as heads for training may need more, and what it learns."""
    for size in sizes:
        torch.manual_seed(0)
        try:
            return size, {name for name, gradient in gradients(net, size).items() if gradient is not None}
        except RuntimeError as error:
            if "Output size is too small" not in str(error) and "Kernel size can't be greater" not in str(error):
                raise
    raise AssertionError(f"it trains at none of {sizes}")


def circular(net: nn.Module) -> None:
    """Make paddings continue the map round its border, so that a constant map stays one."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module.padding, str) and module.padding_mode == "zeros":
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = [pad for pad in reversed(module.padding) for _ in (0, 1)]
        elif isinstance(module, nn.AvgPool2d):
            module.count_include_pad = False


def uneven(net: nn.Module, x: Tensor) -> str:
    """The first convolution whose input is not constant in space though the image is, or nothing."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            flat = given[0].flatten(2)
            if not found and float((flat.amax(2) - flat.amin(2)).max()) > 1e-4 * float(flat.abs().max()):
                found.append(name)

        return hook

    handles = [
        module.register_forward_pre_hook(watch(name))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def lively(net: nn.Module) -> None:
    """Norms that scale and shift, so that no branch of a fresh network is nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)


def walk(dense: nn.Module, sizes: Sequence[int], *, double: bool = True) -> Walked:
    """Rewrite `dense`, which runs at `sizes`, and hold the result against it."""
    lively(dense)
    dense.eval()
    example = (3, sizes[0], sizes[0])
    done = rewrite(dense, Octave(alpha=0.5), size=example)
    net = done.model
    octaves = [module for module in net.modules() if isinstance(module, OctConv)]
    assert type(net) is type(dense)
    assert len(octaves) == len(done.changes) >= 1
    assert measure(net, example).macs < measure(dense, example).macs
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in dense.parameters())
    for size in sizes:
        assert shapes(net, size) == shapes(dense, size), size

    taken = [size for size in (64, 65, 96, 128, *sizes, 256) if size in sizes or runs(dense, size)]
    small, learnt = learnable(dense, taken)
    torch.manual_seed(0)
    for name, gradient in gradients(net, small).items():
        if _dense_name(name) in learnt:
            assert gradient is not None, f"{name} got no gradient"
            assert bool(torch.isfinite(gradient).all()), name
    counts = len(octaves), sum(bool(module.low_out) for module in octaves)
    left = dict(Counter(skip.reason for skip in done.skipped))
    del done, net, octaves, gradient  # the largest networks are some gigabytes

    even = copy.deepcopy(dense).double() if double else copy.deepcopy(dense)
    circular(even)
    behind = next(found for found in (compare(even, size) for size in taken) if found is not None)
    return Walked(*counts, tuple(sizes), behind, left)


def compare(even: nn.Module, size: int) -> str | None:
    """Hold the octave form of `even`, which pads round the border, against it on an image that is constant in space.

    Returns what `uneven` says, or None where a map of this size is too small to be continued by a kernel's padding.
    """
    dtype = next(even.parameters()).dtype
    x = torch.randn(1, 3, 1, 1, generator=torch.Generator().manual_seed(1), dtype=dtype).expand(1, 3, size, size)
    x = x.contiguous()
    try:
        behind = uneven(even, x)
        if not behind:
            twin = rewrite(even, Octave(alpha=0.5), size=(3, size, size)).model.eval()
            with torch.no_grad():
                for got, wanted in zip(tensors(twin(x)), tensors(even(x)), strict=True):
                    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    except (RuntimeError, LeanconvError) as error:
        if "wrapping around more than once" in str(error):
            return None
        raise
    return behind


def _dense_name(name: str) -> str:
    """The name in the dense network of a parameter of an octave one."""
    for part in (".conv_hh", ".conv_hl", ".conv_lh", ".conv_ll", ".high", ".low"):
        name = name.replace(part, "")
    return name
