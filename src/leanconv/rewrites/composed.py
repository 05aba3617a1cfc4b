"""Chains trained as the dense convolutions that they equal: another form of the same function, with its weights.

A chain with nothing between its stages is one linear convolution. Composing its kernel from the weights of the stages
at every step and convolving once gives the same outputs and gradients, up to rounding, with the multiply-adds of the
dense convolution: worth it where grouped convolutions are slower than their counts, as on GPUs
(`benchmarks/studies.md`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from leanconv.ops.chain import ConvChain

__all__ = ["composed_chains"]


@contextmanager
def composed_chains(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """A scope in which the chains of `model` run in their dense form; yields the names of those that do.

    Weights stay those of the stages, so optimizers, checkpoints and state dicts know no difference. A chain with a norm
    or an activation between its stages, a bias inside, or whose width is elastic, runs as it is.

    >>> from leanconv.ops.osep import OptimizedSeparableConv2d
    >>> net = nn.Sequential(OptimizedSeparableConv2d(16, 16, 3, padding=1), nn.ReLU())
    >>> with composed_chains(net) as names:
    ...     names
    ('0',)
    """
    chosen = {name: chain for name, chain in model.named_modules() if isinstance(chain, ConvChain) and _is_one(chain)}
    before = {name: set(chain._buffers) for name, chain in chosen.items()}
    try:
        for chain in chosen.values():
            chain.run_as("composed", multiple=8)
        yield tuple(chosen)
    finally:
        for name, chain in chosen.items():
            chain.run_as("chain")
            for buffer in set(chain._buffers) - before[name]:  # what the dense form needs, and no file may hold
                delattr(chain, buffer)
            for setting in ("form", "multiple", "padded"):
                vars(chain).pop(setting, None)


def _is_one(chain: ConvChain) -> bool:
    """Whether it runs stage by stage now, and is one linear convolution, as its plan says."""
    inside = any(conv.bias is not None for conv in chain.convs[:-1])
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in chain.children())
    plain = type(chain).forward is ConvChain.forward and chain.form == "chain"
    return plain and chain.is_linear and not (inside or hooked)
