"""Serving an elastic network: `Runtime` holds many configurations and changes between calls, `Governor` chooses."""

from __future__ import annotations

from leanconv.serve.governor import Governor
from leanconv.serve.loop import Call, Phase, ServeLog, serve
from leanconv.serve.runtime import Runtime

__all__ = ["Call", "Governor", "Phase", "Runtime", "ServeLog", "serve"]
