"""How often a property is tried: always on the same few examples, or on as many others as the environment asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings

__all__ = ["tried"]


def tried(in_ci: int, variable: str, share: float = 1.0) -> Callable[[Any], Any]:
    """Try a property of hypothesis `in_ci` times, or as often as the environment's `variable` says; `share` of it.

    Without `LEANCONV_SEED` the examples are the same every time. What fails is made smaller and printed; it then
    becomes a test of its own where it belongs.
    """
    chosen = os.environ.get("LEANCONV_SEED")
    options = settings(
        max_examples=max(1, int(int(os.environ.get(variable, in_ci)) * share)),
        deadline=None,
        derandomize=chosen is None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    return options if chosen is None else lambda test: seed(int(chosen))(options(test))
