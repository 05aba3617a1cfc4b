"""Reading weight files: wrappings, damage, and that nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from leanconv.errors import CheckpointError
from leanconv.weights import read_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "meta": {"epoch": 3, "lr": [0.1]}},
        {"model_state": TENSORS, "cfg": "text"},
        {"model": {"state_dict": TENSORS}},
        {f"module.{name}": tensor for name, tensor in TENSORS.items()},
        {"state_dict": {f"module.{name}": tensor for name, tensor in TENSORS.items()}},
    ],
    ids=["plain", "state_dict", "model_state", "nested", "data-parallel", "both"],
)
def test_wrappings_come_off(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    found = read_tensors(tmp_path / "w.pth")
    assert list(found) == list(TENSORS)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


class Trap:
    """What a hostile file does when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["TRAP"],)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAP", str(tmp_path / "sprung"))
    content = {"hook": Trap(), "state_dict": TENSORS}
    if legacy:
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, tmp_path / "w.pkl")
    with pytest.raises(CheckpointError, match=r"more than tensors \(posix.mkdir\), and reading that would run code"):
        read_tensors(tmp_path / "w.pkl")
    assert not (tmp_path / "sprung").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def test_what_is_no_weight_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_tensors(tmp_path)
    for name, content in (("empty.pth", b""), ("text.pth", b"<html>not found</html>"), ("zeros.pth", bytes(500))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} (is no weight file that torch can read|cannot be read)"):
            read_tensors(tmp_path / name)
    torch.save(TENSORS, tmp_path / "cut.pth")
    cut(tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match=r"cut.pth cannot be read, it is damaged or incomplete"):
        read_tensors(tmp_path / "cut.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        read_tensors(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([torch.ones(1)], "holds a list, not a dictionary"),
        ({}, "it is empty"),
        ({"epoch": 3, "weights": TENSORS}, r"epoch is none\); looked for them in state_dict"),
        ({"state_dict": {"a": torch.ones(1), "best": 0.5}}, "best is none"),
    ],
)
def test_what_holds_no_tensors_is_said(content: Any, told: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=told):
        read_tensors(tmp_path / "w.pth")
