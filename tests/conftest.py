"""Settings that every test shares."""

from __future__ import annotations

import os

# One thread for torch and for every process a test starts: the suite runs in as many processes as there are cores, and
# OpenMP threads that outnumber the cores wait for each other far longer than they compute.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
