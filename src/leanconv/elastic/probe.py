"""A network just made elastic, run small without computing: code with channel counts of its own shows up here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from leanconv.dryrun import duplicate, quiet
from leanconv.elastic.coupling.find import fake_input
from leanconv.elastic.layers.others import ElasticBeside, settle
from leanconv.errors import RewriteError

if TYPE_CHECKING:
    from leanconv.elastic.net import ElasticNet

__all__ = ["probe"]


def probe(net: ElasticNet, size: Sequence[int]) -> None:
    """Run the smallest and a middling width, the largest, and the smallest input; keep what was needed to run them.

    Raises `RewriteError` naming the module where the network does not run.
    """
    low, high = net.widths
    # A copy, because a forward may remember tensors, and these are fake ones.
    scratch = cast("ElasticNet", duplicate(net, share_tensors=True)).eval()
    dial = scratch.dial
    dial.probing = True
    shortest = net.frames[-1] if net.frames else None
    middle = round(0.4 * low + 0.6 * high, 2)
    for width, resolution, frames in ((low, None, None), (middle, None, None), (high, net.resolutions[-1], shortest)):
        with torch.no_grad(), quiet(), FakeTensorMode(allow_non_fake_inputs=True), _naming(scratch) as stack:
            try:
                with scratch.at(width, resolution, frames):
                    scratch(fake_input(scratch, size))
            except Exception as error:
                where = next((name for name in reversed(stack) if name), type(net.model).__name__)
                clip = "" if frames is None else f", {frames} frames"
                raise RewriteError(
                    f"{where}: the network does not run at width {width:g} and resolution "
                    f"{resolution or net.resolutions[0]}{clip} ({type(error).__name__}: {str(error).splitlines()[0]}): "
                    "a forward holds channel counts or map sizes as constants; read them from the tensors, or pass "
                    "keep= with the layers that feed it, or other resolutions="
                ) from error
    net.dial.counted = dial.counted
    for module in list(net.modules()):
        if isinstance(module, ElasticBeside):
            settle(module)
    net.dial.counted = set()


@contextmanager
def _naming(net: ElasticNet) -> Iterator[list[str]]:
    """The names of the modules at work, innermost last; on an exception they stay as they were."""
    stack: list[str] = []
    handles = []
    for name, module in net.model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()
