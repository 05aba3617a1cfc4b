"""Randomness as a pure function: a draw depends on (seed, what it is for), not on where a generator stands.

A run that was killed and resumed, or fed by another number of workers, therefore draws exactly what an uninterrupted
one draws. torch's generators begin at a hash of their parts (BLAKE2); Python's hash the text of theirs by themselves
(SHA-512), and elastic training and mixup draw from those. Either stream stays as it is: to change it would change what
a run of an older leanconv draws when it is resumed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["generator", "isolated", "mix", "python_random"]


def mix(*parts: int | str) -> int:
    """A 63-bit integer that depends on every one of `parts`, the same on every machine and Python version.

    >>> mix(0, "order", 3) == mix(0, "order", 3), mix(0, "order", 3) == mix(3, "order", 0)
    (True, False)
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A fresh CPU generator of torch that stands at the beginning of the stream named by `parts`."""
    import torch

    return torch.Generator().manual_seed(mix(*parts))


def python_random(*parts: int | str) -> random.Random:
    """A fresh generator of Python's that stands at the beginning of the stream named by `parts`.

    >>> python_random(0, 7).random() == python_random(0, 7).random() == random.Random("0/7").random()
    True
    """
    return random.Random("/".join(map(str, parts)))


@contextmanager
def isolated(*parts: int | str) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators for the block, then put them back as they were.

    For other people's transforms, which draw from the global generators: what they draw depends on `parts` only, and
    what the network draws afterwards (dropout, say) does not depend on whether they ran in this process.
    """
    import numpy as np
    import torch

    seed = mix(*parts)
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
