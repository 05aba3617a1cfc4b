"""Which convolutions a rewrite means: `where`, a mini-language of terms that must all hold.

Terms are separated by white space. A term is one of

    FACT OP INTEGER   compares a fact of the convolution. OP: = == != > >= < <=. No spaces inside the term. FACT:
                        kernel stride dilation   the largest over the spatial axes (kernel>1: anything but 1x1)
                        groups in_channels out_channels ndim
                        depth    position among all convolutions, from 0
                        stage    log2(input width / width of the convolution's output), rounded: a ResNet's layer1
                                 to layer4 are stages 2 to 5, however large the image. Needs size; a
                                 convolution that never runs has no stage, and no comparison of it holds
    stem              the first convolution (depth=0)
    PATTERN           the qualified name, with * ? [abc] as in file names; * also crosses dots. A shared convolution
                      is meant when any of its names fits
    !TERM             the opposite of a term

The order that `depth` and `stem` speak of is the order of execution when size is given, else the order of
registration (convolutions that never run come last).

Examples: "kernel>1 groups=1 !stem" (the default: dense spatial convolutions), "layer[34].* kernel=3",
"groups=1 !stem !*.downsample.*", "stage>=4 in_channels>=64".
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from leanconv.errors import LeanconvError, shown
from leanconv.rewrites.guards import convolutions
from leanconv.rewrites.order import Order

__all__ = ["FACTS", "Layer", "Term", "Where", "layers_of", "parse"]

FACTS = (
    *("kernel", "stride", "dilation", "groups", "in_channels", "out_channels", "ndim", "depth", "stage"),
    "stem",
)
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_COMPARISON = re.compile(r"([^=!<>]*)([=!<>]+)(.*)", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution of a model as `where` sees it: the module, all its qualified names, its place in the network."""

    module: nn.Module
    names: tuple[str, ...]
    depth: int
    stage: int | None = None

    @property
    def name(self) -> str:
        """The first of its qualified names."""
        return self.names[0]

    def fact(self, name: str) -> int | None:
        """The value of a fact, None where this module has no such attribute (a layer of others)."""
        if name in ("depth", "stage"):
            return self.depth if name == "depth" else self.stage
        kernel = getattr(self.module, "kernel_size", None)
        if name == "ndim":
            return len(kernel) if isinstance(kernel, tuple) else None
        value = kernel if name == "kernel" else getattr(self.module, name, None)
        if isinstance(value, (tuple, list)):
            value = max(value, default=None)
        return value if isinstance(value, int) else None


@dataclass(frozen=True)
class Term:
    """One term: `text` as written, the `fact` it compares (or "" for a name pattern) and whether it is negated."""

    text: str
    negated: bool
    fact: str = ""
    sign: str = ""
    value: int = 0
    pattern: str = ""

    def holds(self, layer: Layer) -> bool:
        """Whether `layer` satisfies the term. A fact that a layer of others does not have excludes nothing."""
        if self.fact == "stem":
            answer = layer.depth == 0
        elif self.fact:
            fact = layer.fact(self.fact)
            if fact is None:
                return self.fact != "stage"
            answer = _COMPARE[self.sign](fact, self.value)
        else:
            answer = any(fnmatchcase(name, self.pattern) for name in layer.names)
        return answer != self.negated


@dataclass(frozen=True)
class Where:
    """A parsed `where`: call it with a `Layer`. Terms must all hold; no terms at all select every convolution."""

    text: str
    terms: tuple[Term, ...]

    def __call__(self, layer: Layer) -> bool:
        return all(term.holds(layer) for term in self.terms)

    def failing(self, layer: Layer) -> tuple[Term, ...]:
        """The terms that exclude `layer`."""
        return tuple(term for term in self.terms if not term.holds(layer))

    def without(self, term: Term) -> str:
        """The text of this `where` with `term` left out."""
        return " ".join(other.text for other in self.terms if other is not term)

    @property
    def needs_run(self) -> bool:
        """Whether a term speaks of `stage`, which only a forward pass can show."""
        return any(term.fact == "stage" for term in self.terms)

    @property
    def needs_order(self) -> bool:
        """Whether a term speaks of the order of the convolutions or of their stages."""
        return any(term.fact in ("stage", "depth", "stem") for term in self.terms)

    def explain_nothing(self, layers: Sequence[Layer], could: Callable[[Layer], bool]) -> str:
        """Why none of `layers` is selected: who excludes how many, the nearest misses, what to pass instead.

        `could` says whether a layer could be rewritten at all, were it selected.
        """
        if not layers:
            return "the model has no convolution at all"
        kinds: dict[str, int] = {}
        for layer in layers:
            kinds[type(layer.module).__name__] = kinds.get(type(layer.module).__name__, 0) + 1
        seen = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        parts = []
        for term in self.terms:
            out = [layer for layer in layers if not term.holds(layer)]
            if out:
                values = sorted({str(layer.fact(term.fact)) for layer in out if term.fact not in ("", "stem")})
                values_seen = f"{term.fact}={'|'.join(values[:4])}, " if values else ""
                parts.append(f"{shown(term.text)[1:-1]} excludes {len(out)} ({values_seen}such as {out[0].name})")
        single = [(layer, self.failing(layer)[0]) for layer in layers if len(self.failing(layer)) == 1 and could(layer)]
        if not single:
            return f"{seen} seen: {'; '.join(parts)}; none that could be rewritten fails one term alone"
        blame = max(self.terms, key=lambda term: sum(why is term for _, why in single))
        near = [layer.name for layer, why in single if why is blame]
        some = ", ".join(near[:3]) + (", ..." if len(near) > 3 else "")
        return (
            f"{seen} seen: {'; '.join(parts)}; nearest misses: {len(near)} fail {shown(blame.text)[1:-1]} alone"
            f" ({some}): "
            f'to take them pass where="{shown(self.without(blame))[1:-1]}"'
        )


def parse(where: str) -> Where:
    """The predicate that the text `where` describes; the grammar is this module's docstring.

    Raises `LeanconvError` with the term that is wrong.

    >>> parse("kernel>1 !stem").failing(Layer(nn.Conv2d(8, 8, 1), ("layer1.conv",), depth=3))[0].text
    'kernel>1'
    """
    return Where(where, tuple(_term(text) for text in where.split()))


def layers_of(model: nn.Module, order: Order | None = None) -> tuple[Layer, ...]:
    """Every convolution of `model` as `where` sees it, in order of execution, or of registration without `order`."""
    found = list(convolutions(model))
    stages: dict[str, int] = {}
    if order is not None:
        stages = order.stages
        rank = {name: position for position, name in enumerate(order.names)}
        found.sort(key=lambda pair: rank.get(pair[1][0], len(rank)))  # stable: the ones that never ran stay in order
    return tuple(Layer(module, names, depth, stages.get(names[0])) for depth, (module, names) in enumerate(found))


def _term(text: str) -> Term:
    """One term of a `where`."""
    negated = text.startswith("!")
    body = text.removeprefix("!")
    if not body or body.startswith("!"):
        raise _wrong(text, "'!' negates exactly one term, written right behind it: '!stem'")
    comparison = _COMPARISON.fullmatch(body)
    if comparison is None:
        if body == "stem":
            return Term(text, negated, fact="stem")
        if body in FACTS:
            raise _wrong(text, f"{body} needs a comparison, such as '{body}>=2' (no spaces inside a term)")
        return Term(text, negated, pattern=body)
    fact, sign, value = comparison.groups()
    if fact not in FACTS or fact == "stem":
        near = get_close_matches(fact, FACTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(FACTS[:-1])}"
        raise _wrong(text, f"{shown(fact)} is no fact of a convolution that can be compared: {hint}")
    if sign not in _COMPARE:
        raise _wrong(text, f"unknown comparison {shown(sign)}: expected one of {' '.join(_COMPARE)}")
    try:
        number = int(value)
    except ValueError:
        raise _wrong(text, f"{fact} is compared with a whole number, got {shown(value)}") from None
    return Term(text, negated, fact=fact, sign=sign, value=number)


def _wrong(text: str, why: str) -> LeanconvError:
    return LeanconvError(f"where: term {shown(text)}: {why}")
