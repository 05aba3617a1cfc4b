"""Octave networks that leanconv 0.1 saved, when it still traced them: they load, with the same names and answers.

`old_octave_stories.json` holds what 0.1 wrote (stories, names and shapes of the tensors, outputs). The values of the
weights and of the input are formulas of their place, so that no weights have to be kept.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from leanconv.build import load, save

SAVED: dict[str, Any] = json.loads((Path(__file__).parent / "old_octave_stories.json").read_text())


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for place, (name, shape) in enumerate(shapes.items()):
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(0)
            continue
        count = torch.Size(shape).numel()
        value = (0.4 * torch.sin(0.7 * place + 0.37 * torch.arange(count, dtype=torch.float32))).reshape(shape)
        if len(shape) > 1:
            value *= 2.5 / torch.Size(shape[1:]).numel() ** 0.5
        if name.endswith("running_var"):
            value = value.abs() + 0.5
        elif name.endswith("weight") and len(shape) == 1:
            value += 1
        tensors[name] = value
    return tensors


def folder_of(name: str, home: Path) -> Path:
    """The folder that 0.1 wrote."""
    folder, old = home / name, SAVED[name]
    folder.mkdir()
    file = folder / "weights.safetensors"
    save_file(weights(old["shapes"]), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    record = {**old["record"], "weights": {"file": file.name, "bytes": file.stat().st_size, "sha256": digest}}
    (folder / "story.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("name", SAVED)
def test_what_0_1_saved_loads_and_answers_the_same(name: str, tmp_path: Path) -> None:
    old = SAVED[name]
    net = load(folder_of(name, tmp_path), trust_code=True)
    assert set(net.state_dict()) == set(old["shapes"])
    count = torch.Size(old["input"]).numel()
    x = torch.sin(torch.arange(count, dtype=torch.float32) * 0.37).reshape(old["input"])
    with torch.no_grad():
        wanted, got = torch.tensor(old["output"]), net(x)
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    save(net, tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "again", trust_code=True)(x), got)
