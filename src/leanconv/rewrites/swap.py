"""Local surgery: replace modules of a copied tree by a rule about one module, wherever they sit.

Three answers of a rule: None, look inside; the same module, leave it and stop; another module, put it there. A module
that sits at several places is asked about once and its replacement sits at all of them; neither a replaced module nor
its replacement is looked into, so a rule never meets its own work. Lists, dictionaries and attributes that hold an old
module hold the new one afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from leanconv.dryrun import duplicate
from leanconv.errors import RewriteError
from leanconv.rewrites.references import replace_references

__all__ = ["Rule", "Swapped", "swap", "swap_"]

Rule = Callable[[str, nn.Module], nn.Module | None]


class Swapped(NamedTuple):
    """A copy of the model with replaced parts, and every qualified name at which a replacement now sits."""

    model: nn.Module
    replaced: tuple[str, ...]


def swap(model: nn.Module, rule: Rule) -> Swapped:
    """A deep copy of `model` in which `rule(qualified_name, module)` has replaced what it wanted to.

    The rule is asked from the root (named "") downwards, in registration order, once per module object.
    Raises `RewriteError` where the model cannot be copied. Hidden duplicates are found too: `named_children` shows a
    module registered twice only once, this walks the registrations themselves.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> new, replaced = swap(net, lambda name, module: nn.SiLU() if isinstance(module, nn.ReLU) else None)
    >>> replaced, type(new[1]).__name__, type(net[1]).__name__
    (('1',), 'SiLU', 'ReLU')
    """
    return swap_(duplicate(model, error=RewriteError), rule)


def swap_(model: nn.Module, rule: Rule) -> Swapped:
    """`swap` in place, for callers that own the copy: the children change, and a replaced root is the new model.

    Raises `RewriteError` where something beside the tree holds a replaced module and cannot be made to hold the new.
    """
    answers: dict[int, nn.Module] = {}  # by identity of the old module; every key is kept alive in `seen`
    seen: list[nn.Module] = []

    def visit(name: str, module: nn.Module) -> nn.Module:
        if id(module) not in answers:
            seen.append(module)
            answer = rule(name, module)
            answers[id(module)] = module if answer is None else answer
            if answer is None:
                for key, child in list(module._modules.items()):
                    if child is not None:
                        module._modules[key] = visit(f"{name}.{key}" if name else key, child)
        return answers[id(module)]

    before = dict(model.named_modules())
    root = visit("", model)
    new = {id(answers[id(old)]) for old in seen if answers[id(old)] is not old}
    if new:
        left = {id(module) for module in root.modules()}
        gone = {id(module): name for name, module in before.items() if id(module) not in left}
        replace_references(root, {id(old): answers[id(old)] for old in seen if answers[id(old)] is not old}, gone)
    places = tuple(name for name, module in root.named_modules(remove_duplicate=False) if id(module) in new)
    return Swapped(root, places)
