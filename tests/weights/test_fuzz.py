"""Damaged files of every kind: whatever bytes change, tensors or one clear error come out, soon, in little memory."""

from __future__ import annotations

import pickle
import random
import resource
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from writers import VERSIONS, blobs, params, tar

from leanconv.errors import CheckpointError
from leanconv.weights import read_tensors
from mutations import damaged

TENSORS = {f"layer{i}.conv.weight": torch.randn(4, 3, 3, 3) for i in range(4)} | {"fc.bias": torch.randn(5)}
BESIDE = {"epoch": np.int64(3), "out": Path("/x"), "args": [1, 2.5, "text"], "history": np.arange(4.0)}

SECONDS = 5.0
MEGABYTES = 100


def torch_file(*, new: bool) -> bytes:
    out = BytesIO()
    torch.save({"state_dict": TENSORS, **BESIDE}, out, _use_new_zipfile_serialization=new)
    return out.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "torch zip": lambda: torch_file(new=True),
    "torch legacy": lambda: torch_file(new=False),
    "safetensors": lambda: save(TENSORS),
    "caffe2 protocol 2": lambda: blobs(TENSORS, 2),
    "caffe2 protocol 5": lambda: blobs(TENSORS, 5),
    "pickle protocol 0": lambda: pickle.dumps({"w": [1, 2.5, "x"], "m": {"a": np.ones(3)}}, 0),
    **{f"mxnet {version}": (lambda version=version: params(TENSORS, version)) for version in VERSIONS},
}


def campaign(kind: str, count: int, folder: Path, seed: int = 0) -> Counter[str]:
    data, draw, seen = KINDS[kind](), random.Random(f"{kind}/{seed}"), Counter[str]()
    path = folder / ("w.safetensors" if kind == "safetensors" else "w.pth")
    for _ in range(count):
        path.write_bytes(damaged(data, draw))
        start, message = time.perf_counter(), ""
        try:
            read_tensors(path)
        except CheckpointError as error:
            message = str(error)
        assert time.perf_counter() - start < SECONDS
        assert message.count("\n") == 0
        assert len(message) < 900
        seen["read" if not message else "truncated" if "truncated" in message else "refused"] += 1
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    try:
        seen = campaign(kind, 300, tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTES * 2**20  # also of memory that was asked for and not touched
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 2**10
    assert seen["refused"] > 30
    assert seen["truncated"] > 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    assert campaign(kind, 5000, tmp_path, seed=1).total() == 5000


def test_damaged_archives_are_read_or_refused(tmp_path: Path) -> None:
    data = tar(tmp_path / "a.tar", net_dot_params=params(TENSORS), net_dot_json=b"{}").read_bytes()
    draw, outcomes = random.Random(0), Counter[str]()
    for _ in range(300):
        (tmp_path / "m.tar").write_bytes(damaged(data, draw))
        try:
            read_tensors(tmp_path / "m.tar")
            outcomes["read"] += 1
        except CheckpointError:
            outcomes["refused"] += 1
    assert outcomes["refused"] > 30
