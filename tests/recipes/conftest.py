"""One thread: the networks here are too small to share, and other tests run beside these."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def moving_digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The embedded videos in a folder of this session, which all test processes share, as a data.spec."""
    pytest.importorskip("av")
    base = tmp_path_factory.getbasetemp()
    folder: Path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "moving-digits"
    return f"moving-digits:{folder}"
