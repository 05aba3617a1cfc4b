"""The benchmark's tests (`bench_rows.py`), in a process of their own.

They run torch.compile, after which CPython 3.11 has been seen to crash minutes later in whatever test came next (torch
2.15; a segmentation fault on entering a Python function). A process that ends with them cannot take others along.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_bench_rows() -> None:
    path = Path(__file__).with_name("bench_rows.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
