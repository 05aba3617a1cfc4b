"""A run of the network, without computing, in which maps really are at two resolutions: what does each layer read?

The convolutions that were chosen hand out maps at two resolutions, and everything between them does with these what it
will do in the rewritten network, by the same rules. What is seen is the plan: for every convolution and norm which of
its channels are low. Where maps start, flow and merge, and why, is written down for the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from leanconv.dryrun import DryRun, ModuleStack
from leanconv.dryrun.flow import is_torch_layer
from leanconv.errors import RewriteError
from leanconv.ops.octave_map import RULES, OctaveMap, call, settled, split
from leanconv.ops.octave_parts import Runs, channels_of
from leanconv.ops.octave_sizes import adaptive_pool, reduce
from leanconv.ops.operator import ConvOperator
from leanconv.rewrites.changes import Flow
from leanconv.rewrites.octave.plan import Decision, is_depthwise

__all__ = ["ConvPlan", "Plan", "follow"]


class ConvPlan(NamedTuple):
    """Which channels of a convolution are low; one without low channels has its stride as the authors have it."""

    runs_in: Runs
    runs_out: Runs
    out_groups: int = 1


class Plan(NamedTuple):
    """What becomes of which layer, by name in the order in which they run.

    `norms` are the layers with parameters per channel that become two; `ends_merged` says that the network's own output
    is at two resolutions and has to be merged.
    """

    convs: dict[str, ConvPlan]
    norms: dict[str, Runs]
    flows: tuple[Flow, ...]
    ends_merged: bool


def follow(
    model: nn.Module, size: tuple[int, ...], decision: Decision, tied: dict[int, tuple[str, ...]], *, pools_full: bool
) -> Plan:
    """The plan for `model` after `decision`.

    `pools_full` says that convolutions that stay at full resolution have the authors' stride, too.
    Raises `RewriteError` where the network does not run with such maps.
    """
    dry = DryRun(model, size, error=RewriteError)
    watch = _Watch(dry.stack, decision, pools_full)
    dry.stack.on_enter.append(watch.enter)
    for name, module in dry.stack.modules.items():
        if isinstance(module, _ConvNd) and name in decision.seen:
            module.register_forward_hook(watch.conv(name), with_kwargs=True)
        elif isinstance(module, _BatchNorm) or (isinstance(module, nn.PReLU) and module.num_parameters > 1):
            module.register_forward_hook(watch.norm(name), with_kwargs=True)
    ran = dry.run(_Functions(watch))
    ends_merged = any(isinstance(leaf, OctaveMap) for leaf in map(settled, pytree.tree_leaves(ran.outputs)))
    if ends_merged:
        watch.note("output", "merge", "output of the network")
    own = dict(model.named_modules())
    norms = {
        name: runs
        for name, runs in watch.norms.items()
        if ran.calls[name] == 1 and not any(id(parameter) in tied for parameter in own[name].parameters())
    }
    return Plan(watch.convs, norms, tuple(watch.flows), ends_merged)


class _Watch:
    """What has been seen so far."""

    def __init__(self, stack: ModuleStack, decision: Decision, pools_full: bool) -> None:
        self.convs: dict[str, ConvPlan] = {}
        self.norms: dict[str, Runs] = {}
        self.flows: list[Flow] = []
        self._stack = stack
        self._decision = decision
        self._pools_full = pools_full

    def note(self, name: str, kind: Literal["start", "flow", "merge"], reason: str = "") -> None:
        """Write one line of the report."""
        self.flows.append(Flow(name, kind, reason))

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A chain that is no single convolution reads the merged map."""
        if isinstance(module, ConvOperator) and isinstance(_input(args, kwargs), OctaveMap):
            self.note(name, "merge", f"no rule for {type(module).__name__}")

    def norm(self, name: str) -> Callable[..., None]:
        """The hook of a layer with one number per channel."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x = _input(args, kwargs)
            if isinstance(x, OctaveMap) and isinstance(output, OctaveMap) and output.runs == x.runs:
                self.norms[name] = x.runs

        return hook

    def conv(self, name: str) -> Callable[..., Any]:
        """The hook of a convolution, which hands out a map at two resolutions if it was chosen to."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            x = _input(args, kwargs)
            planned = self._plan(name, module, x if isinstance(x, OctaveMap) else None)
            if planned is None:
                return None
            self.convs[name] = planned
            return split(output, planned.runs_out) if len(planned.runs_out) > 1 else None

        return hook

    def _plan(self, name: str, conv: Any, source: OctaveMap | None) -> ConvPlan | None:
        """What becomes of a convolution that reads `source`, or a plain map; None where it stays what it is."""
        decision = self._decision
        low = decision.low.get(name, 0)
        if source is not None and not source.high.shape[1]:
            self.note(name, "merge", "none of its channels is at high resolution")
            source = None
        if source is None and not low:
            pools = self._pools_full and name in decision.selected and name not in decision.blocked
            return ConvPlan((conv.in_channels,), (conv.out_channels,)) if pools and max(conv.stride[-2:]) == 2 else None
        if (reason := self._unfit(name, conv, source, low)) is not None:
            if source is not None:
                self.note(name, "merge", reason)
            return None
        groups = decision.groups.get(name, 1)
        runs_in = (conv.in_channels,) if source is None else source.runs
        if is_depthwise(conv):
            runs_out = tuple(count * conv.out_channels // conv.in_channels for count in runs_in)
        elif low:
            runs_out = ((conv.out_channels - low) // groups, low // groups) * groups
        else:
            runs_out = (conv.out_channels,)
        if len(runs_out) == 1:
            self.note(name, "merge", "the convolution emits full resolution")
        elif source is None:
            self.note(name, "start", f"{low} of {conv.out_channels} channels at half resolution")
        else:
            self.note(name, "flow")
        return ConvPlan(runs_in, runs_out, groups)

    def _unfit(self, name: str, conv: Any, source: OctaveMap | None, low: int) -> str | None:
        """Why a convolution that reads `source` reads it merged after all, and hands out a plain map."""
        if not isinstance(conv, nn.Conv2d | nn.Conv3d):
            return f"no rule for {type(conv).__name__}"
        if (reason := self._decision.blocked.get(name)) is not None:
            return reason
        if is_depthwise(conv):
            return "the last stage stays at full resolution" if name in self._decision.full else None
        if source is None or conv.groups == 1:
            return None
        size = conv.in_channels // conv.groups
        for part in channels_of(source.runs):
            counts = Counter(channel // size for channel in part)
            if len({counts[group] for group in range(conv.groups)}) > 1:
                return f"its {conv.groups} groups have different numbers of low channels"
        return None if low else "a grouped convolution that emits no pair reads the merged map"

    def function(self, func: Any, result: Any, reason: str | None) -> None:
        """Write down what a function did with maps at two resolutions."""
        name = self._stack.path
        module = self._stack.modules[name]
        if isinstance(module, _ConvNd) or any(
            isinstance(self._stack.modules[outer], ConvOperator) for outer in self._stack.running
        ):
            return  # said by their own hooks
        called = getattr(func, "__name__", str(func)).strip("_")
        if is_torch_layer(module):
            reason = reason and reason.replace(f"no rule for {func.__name__}", f"no rule for {type(module).__name__}")
        else:
            name = f"{name}.{called}" if name else called
        if reason is not None:
            self.note(name, "merge", reason)
        elif any(isinstance(leaf, OctaveMap) for leaf in pytree.tree_leaves(result)):
            self.note(name, "flow")
        elif RULES.get(func) in (adaptive_pool, reduce):
            self.note(name, "merge", "pooled parts are concatenated")


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first argument of a module, as it is now."""
    return settled(next(iter((*args, *kwargs.values())), None))


class _Functions(TorchFunctionMode):
    """Hands the functions that are given maps at two resolutions to the watch."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(leaf, OctaveMap) and len(leaf.runs) > 1 for leaf in leaves):
            return func(*args, **kwargs)
        result, reason = call(func, args, kwargs)
        self.watch.function(func, result, reason)
        return result
