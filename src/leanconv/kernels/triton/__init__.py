"""Kernels in Triton, for GPUs: imported only where one of them runs, so that leanconv needs neither Triton nor a GPU.

With TRITON_INTERPRET=1 they run on a CPU, number by number, which is how they are tested without a GPU.
"""

from __future__ import annotations

__all__: list[str] = []
