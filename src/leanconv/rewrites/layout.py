"""The one graph pass: values that flow through a network in another layout, here as pairs of tensors.

Three sentences are the whole of it: *a rule may make a pair; pairs flow through every operation that has a rule for
them; at any other operation the pair is merged into the tensor it stands for, once.* Which operations have rules, what
a pair means and how it is merged is told by a `Rules` table; this file knows no operator.

A pair is two nodes of the new graph, so that an operation without state is simply called twice and no pair exists at
run time. Beside them it holds which channels of the original tensor each part carries, because concatenation mixes
them: consumers with parameters per channel pick theirs by these numbers, so that the network stays the one it was.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, fx, nn

from leanconv.errors import RewriteError
from leanconv.ops.channels import ChannelGather
from leanconv.rewrites.capture import Captured
from leanconv.rewrites.changes import Flow

__all__ = ["Layout", "Leave", "Pair", "Rule", "Rules", "Value", "on_parts", "pair_of", "take_slice"]


class Pair(NamedTuple):
    """One tensor of the old graph as two nodes of the new one, with the channels of the old one that each carries."""

    high: fx.Node
    low: fx.Node
    high_channels: tuple[int, ...]
    low_channels: tuple[int, ...]

    @property
    def channels(self) -> int:
        """How many channels the tensor has."""
        return len(self.high_channels) + len(self.low_channels)


Value = fx.Node | Pair | int | tuple[fx.Node | int, ...]
"""What became of a value of the old graph; a tuple is a shape."""

Rule = Callable[["Layout", fx.Node], Value]


class Leave(Exception):
    """Raised by a rule that does not hold in this case; the message is the reason why the pair merges here."""


@dataclass(frozen=True)
class Rules:
    """Which rule holds for a call, by the type of the module (or one of its bases), the function or the method.

    `starters` are module types whose rule is asked even where no pair comes in. `merge(high, low)` is the call that
    makes the tensor, high channels first.
    """

    modules: Mapping[type, Rule]
    functions: Mapping[Callable[..., Any], Rule]
    methods: Mapping[str, Rule]
    starters: tuple[type, ...]
    merge: Callable[..., Tensor]

    def find(self, node: fx.Node, module: nn.Module | None) -> Rule | None:
        """The rule for `node`, or None."""
        if node.op == "call_module":
            return next((self.modules[base] for base in type(module).__mro__ if base in self.modules), None)
        if node.op == "call_function" and callable(node.target):
            return self.functions.get(node.target)
        return self.methods.get(str(node.target)) if node.op == "call_method" else None


@dataclass
class Layout:
    """The pass over one captured model; `run` once, then read `flows`."""

    captured: Captured
    rules: Rules
    graph: fx.Graph = field(default_factory=fx.Graph)
    flows: list[Flow] = field(default_factory=list)
    _values: dict[fx.Node, Value] = field(default_factory=dict)
    _merged: dict[fx.Node, fx.Node] = field(default_factory=dict)
    _gathers: dict[tuple[int, ...], str] = field(default_factory=dict)
    _calls: dict[str, int] = field(default_factory=dict)

    def run(self) -> fx.GraphModule:
        """The rewritten model; the modules of `captured.root` are used, not copied."""
        for node in self.captured.graph.nodes:
            if node.op == "call_module":
                self._calls[str(node.target)] = self._calls.get(str(node.target), 0) + 1
        for node in self.captured.graph.nodes:
            self._values[node] = self._visit(node)
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or self._keeps(node))
        self.graph.lint()
        root = self.captured.root
        new = fx.GraphModule(root, self.graph, type(root).__name__)
        _take_along(root, new)
        return new

    @staticmethod
    def _keeps(node: fx.Node) -> bool:
        """Only the nodes that this pass adds may be dropped when nobody reads them (a merged map's size, say)."""
        return "added" not in node.meta

    def _visit(self, node: fx.Node) -> Value:
        if node.target is operator.getitem and type(self.value(node.args[0])) is tuple:
            return cast(Value, self.value(node.args[0])[node.args[1]])  # of a shape
        module = self.module(node) if node.op == "call_module" else None
        pairs = [arg for arg in node.all_input_nodes if isinstance(self._values[arg], Pair)]
        rule = self.rules.find(node, module)
        reason = f"no rule for {_call(node, module)}"
        if rule is not None and (pairs or isinstance(module, self.rules.starters)):
            try:
                value = rule(self, node)
            except Leave as leave:
                reason = str(leave)
            else:
                if pairs and isinstance(value, Pair):
                    self.tell(node, "flow")
                if pairs and _in_place(node, module):
                    self._overwrite(pairs[0], value)
                return value
        if pairs:
            self.tell(node, "merge", "output of the network" if node.op == "output" else reason)
        return self.copy(node)

    def _overwrite(self, node: fx.Node, value: Value) -> None:
        """An operation in place changes what every later reader of its input sees."""
        self._merged.pop(node, None)
        self._values[node] = value

    # What rules use.

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a call_module node calls."""
        return self.captured.root.get_submodule(str(node.target))

    def called_once(self, node: fx.Node) -> bool:
        """Whether no other node calls the same module."""
        return self._calls[str(node.target)] == 1

    def value(self, node: Any) -> Any:
        """What became of a node of the old graph; anything else is itself."""
        return self._values[node] if isinstance(node, fx.Node) else node

    def tell(self, node: fx.Node, kind: Literal["start", "flow", "merge"], reason: str = "") -> None:
        """Write one line of the report."""
        self.flows.append(Flow(place(node), kind, reason))

    def copy(self, node: fx.Node) -> fx.Node:
        """The same call on merged inputs."""
        return self.graph.node_copy(node, self.plain)

    def twice(self, node: fx.Node, pick: Callable[[Any, str], Any]) -> tuple[fx.Node, fx.Node]:
        """The same call for both parts; `pick(argument, "high" or "low")` tells what it reads."""
        return tuple(  # type: ignore[return-value]
            self.graph.create_node(
                node.op,
                node.target,
                fx.node.map_aggregate(node.args, lambda arg, part=part: pick(arg, part)),  # type: ignore[misc]
                fx.node.map_aggregate(node.kwargs, lambda arg, part=part: pick(arg, part)),  # type: ignore[misc]
            )
            for part in ("high", "low")
        )

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new function call in the new graph."""
        node = self.graph.call_function(function, args, kwargs)
        node.meta["added"] = True
        return node

    def plain(self, node: fx.Node) -> Any:
        """The node of the new graph that holds the whole tensor of `node`, a pair merged for the first reader."""
        value = self._values[node]
        if not isinstance(value, Pair):
            return value
        if node not in self._merged:
            whole = self.call(self.rules.merge, (value.high, value.low))
            self._merged[node] = self.in_order(whole, (*value.high_channels, *value.low_channels))
        return self._merged[node]

    def in_order(self, node: fx.Node, channels: Sequence[int]) -> fx.Node:
        """`node`, whose channel k is `channels[k]`, with its channels in the original order."""
        return self.take(node, sorted(range(len(channels)), key=channels.__getitem__), len(channels))

    def take(self, node: fx.Node, channels: Sequence[int], of: int, axis: int = 1) -> fx.Node:
        """These channels of `node`, which has `of`: itself, a slice, or a gather."""
        channels = tuple(channels)
        if channels == tuple(range(of)):
            return node
        if channels == tuple(range(channels[0], channels[0] + len(channels))):
            return self.call(
                take_slice, node, (*(slice(None),) * axis, slice(channels[0], channels[0] + len(channels)))
            )
        if axis != 1:
            raise Leave("its channels are out of order along an unusual axis")
        if channels not in self._gathers:
            like = next(iter(self.captured.root.parameters()), None)
            name = f"channel_order_{len(self._gathers)}"
            while hasattr(self.captured.root, name):
                name += "_"
            self.captured.root.add_module(name, ChannelGather(channels, device=None if like is None else like.device))
            self._gathers[channels] = name
        gathered = self.graph.call_module(self._gathers[channels], (node,))
        gathered.meta["added"] = True
        return gathered

    def put(self, node: fx.Node, module: nn.Module) -> None:
        """Put `module` at the qualified name that `node` calls."""
        parent, _, key = str(node.target).rpartition(".")
        owner = self.captured.root.get_submodule(parent)
        old = owner._modules[key]
        for other in list(self.captured.root.modules()):  # the same module may be registered under several names
            for name, child in list(other._modules.items()):
                if child is old:
                    other._modules[name] = module

    def same_channels(self, nodes: Sequence[fx.Node]) -> list[Pair]:
        """The pairs of `nodes` with their parts in the order of the first; raises `Leave` where they differ in kind."""
        pairs = [self._values[node] for node in nodes]
        first = pairs[0]
        assert isinstance(first, Pair)  # our own callers pass pairs
        result = []
        for pair in pairs:
            assert isinstance(pair, Pair)
            if set(pair.high_channels) != set(first.high_channels):
                raise Leave("its operands have different channels at low resolution")
            high = self.align(pair.high, pair.high_channels, first.high_channels)
            low = self.align(pair.low, pair.low_channels, first.low_channels)
            result.append(Pair(high, low, first.high_channels, first.low_channels))
        return result

    def align(self, node: fx.Node, have: tuple[int, ...], want: tuple[int, ...]) -> fx.Node:
        """`node`, whose channels are `have`, in the order `want`."""
        if have == want:
            return node
        at = {channel: position for position, channel in enumerate(have)}
        return self.take(node, [at[channel] for channel in want], len(have))


def pair_of(layout: Layout, node: fx.Node, position: int = 0) -> Pair:
    """The pair that a rule's first argument is; any other argument being one is not what the rule is for."""
    if not node.args:
        raise Leave("its input is passed by keyword")
    value = layout.value(node.args[position])
    if not isinstance(value, Pair):
        raise Leave("a pair where a plain tensor is expected")
    return value


def on_parts(layout: Layout, node: fx.Node, pair: Pair) -> Pair:
    """The call of `node`, whose first argument is `pair`, for each part."""
    high, low = layout.twice(node, lambda arg, part: getattr(layout.value(arg), part) if arg is node.args[0] else arg)
    return pair._replace(high=high, low=low)


def take_slice(x: Tensor, index: tuple[slice, ...]) -> Tensor:
    """x[index]; a function of its own name, so that it reads as what it is in the generated code."""
    return x[index]


def place(node: fx.Node) -> str:
    """The qualified name of a call_module node, or the innermost module around the operation and its name."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    around = str(stack[-1][0]) if stack else ""
    name = "output" if node.op == "output" else _call(node, None)
    return f"{around}.{name}" if around else name


def _call(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return bool(getattr(module, "inplace", False) or node.kwargs.get("inplace", False))


def _take_along(root: nn.Module, new: fx.GraphModule) -> None:
    """What fx leaves behind: the modes of containers, and parameters and buffers that the forward never uses."""
    modes = {name: module.training for name, module in root.named_modules()}
    for name, module in new.named_modules():
        module.training = modes[name]
    have = set(new.state_dict())
    for name in root.state_dict():
        if name in have:
            continue
        path, _, leaf = name.rpartition(".")
        owner = root.get_submodule(path)
        if leaf not in owner._parameters and leaf not in owner._buffers:
            raise RewriteError(f"{name} in the state dict is neither parameter nor buffer: remove the hook behind it")
        target: nn.Module = new
        for key in path.split(".") if path else ():
            if key not in target._modules:
                target.add_module(key, nn.Module())
            target = target.get_submodule(key)
        if leaf in owner._parameters:
            target.register_parameter(leaf, owner._parameters[leaf])
        else:
            target.register_buffer(leaf, owner._buffers[leaf])
