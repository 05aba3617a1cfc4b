"""Chains of grouped convolutions at the speed that their MACs promise: programs, plans for one machine, a C library.

A *program* is a piece of a network as plain data. `fuse` merges its steps, `pack` lays it out for the vectors of a
machine, and the library, where it was built, runs it image by image. Without it everything works on the composed path.
"""

from __future__ import annotations

__all__: list[str] = []
