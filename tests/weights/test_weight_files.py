"""Reading weight files: wrappings, damage, and that nothing in a file is ever run."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from writers import params, tar

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


def test_what_is_no_weight_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_tensors(tmp_path)
    for name, content, told in (
        ("empty.pth", b"", "it is empty"),
        ("text.pth", b"<html>not found</html>", r"it starts with b'<html>no'"),
        ("zeros.pth", bytes(500), r"it starts with b'\\x00"),
        ("packed.pth", b"\x1f\x8b" + bytes(50), "which is a packed file: unpack it first"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} is no weight file that can be read \(.*{told}"):
            read_tensors(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "params", "pickle"])
def test_a_truncated_file_is_called_truncated(kind: str, tmp_path: Path) -> None:
    """At every tenth of its length; a cut pickle of torch's old form has no end, but its beginning tells."""
    whole, path = tmp_path / "whole", tmp_path / ("cut.safetensors" if kind == "safetensors" else "cut.pth")
    tensors = {**TENSORS, "c": torch.randn(100)}
    if kind in ("zip", "legacy"):
        torch.save(tensors, whole, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "safetensors":
        save_file(tensors, whole)
    elif kind == "params":
        whole.write_bytes(params(tensors))
    else:
        whole.write_bytes(pickle.dumps({name: value.numpy() for name, value in tensors.items()}, 2))
    data = whole.read_bytes()
    for tenth in range(1, 10):
        path.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(CheckpointError, match=rf"{path.name} is truncated, copy or download it again: "):
            read_tensors(path)
    path.write_bytes(data)
    assert set(read_tensors(path)) == set(tensors)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([torch.ones(1)], "holds a list, not a dictionary"),
        ({}, "it is empty"),
        ({"epoch": 3, "best": 0.5}, "holds no tensors: it has epoch, best"),
        ({"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, "holds no tensors: it has epoch"),
        (
            {"net_g": TENSORS, "net_d": TENSORS},
            r"several sets of tensors \(net_g, net_d\), .* entry='net_g' \(--entry net_g\)",
        ),
    ],
)
def test_what_holds_no_tensors_is_said(content: Any, told: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=told):
        read_tensors(tmp_path / "w.pth")


# ------------------------------------------------------------------------------- where the weights of a container are


def saved(content: Any, path: Path, **options: Any) -> Any:
    torch.save(content, path / "w.pth")
    return read_tensors(path / "w.pth", **options)


def wrapped(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in TENSORS.items()}


@pytest.mark.parametrize(
    ("content", "entry", "prefix"),
    [
        ({"epoch": 3, "weights": TENSORS}, "weights", ""),
        ({"epoch": 3, "run": {"best": {"tensors": TENSORS}}}, "run.best.tensors", ""),
        ({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "classifier": TENSORS}, "classifier", ""),
        ({"state_dict": wrapped("module._orig_mod.")}, "state_dict", "_orig_mod.module."),
        ({"state_dict": wrapped("model.net.")}, "state_dict", "model.net."),
        ({"model": {"module": wrapped("_orig_mod.module.")}}, "model.module", "_orig_mod.module."),
        (wrapped("backbone."), "", ""),
    ],
    ids=["one entry", "deep", "optimizer beside", "compiled", "lightning", "deepspeed", "a network's own prefix"],
)
def test_tensors_are_found_wherever_they_are(content: Any, entry: str, prefix: str, tmp_path: Path) -> None:
    found = saved(content, tmp_path)
    assert (found.entry, found.prefix) == (entry, prefix)
    assert [name.removeprefix("backbone.") for name in found] == list(TENSORS)


def test_what_training_loops_keep_beside_is_no_reason_to_refuse(tmp_path: Path) -> None:
    content = {
        "state_dict": {**TENSORS, "best": 0.5},
        "epoch": np.int64(3), "metrics": {"top1": np.float64(81.5), "history": np.arange(6.0).reshape(2, 3)},
        "out": Path("/runs/7"), "args": argparse.Namespace(lr=0.1), "seen": {1, 2},
        "names": collections.defaultdict(list),
        "order": collections.OrderedDict(a=1), "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
    }  # fmt: skip
    found = saved(content, tmp_path)
    assert list(found) == list(TENSORS)
    assert found.passed_over == ("best (no tensor)",)


def test_parts_of_a_network_in_dictionaries_of_their_own(tmp_path: Path) -> None:
    content = {"body": {"conv": {"weight": torch.ones(2)}}, "head": {"bias": torch.zeros(1)}, "epoch": 1}
    assert list(saved(content, tmp_path, entry=".")) == ["body.conv.weight", "head.bias"]
    assert list(saved({"model": content}, tmp_path)) == ["body.conv.weight", "head.bias"]
    assert list(saved(content, tmp_path, entry="body.conv")) == ["weight"]
    with pytest.raises(CheckpointError, match=r"has no entry 'tail' with tensors in it: .* with tensors: body, head"):
        saved(content, tmp_path, entry="tail")


AVERAGES = {"a.weight": torch.full((2, 3), 9.0), "b": torch.full((2,), 9.0)}


@pytest.mark.parametrize(
    ("content", "others"),
    [
        ({"state_dict": TENSORS, "state_dict_ema": AVERAGES}, "state_dict_ema"),
        ({"model": TENSORS, "model_ema": {"module": {f"module.{k}": v for k, v in AVERAGES.items()}}}, "model_ema"),
        (
            {"state_dict": {**TENSORS, **{f"ema_{k.replace('.', '_')}": v for k, v in AVERAGES.items()}}},
            "2 moving averages",
        ),
        ({**wrapped("model."), **{f"model_ema.{k}": v for k, v in AVERAGES.items()}}, "2 moving averages"),
    ],
    ids=["timm", "torchvision", "buffers", "prefixes"],
)
def test_of_two_sets_of_weights_one_is_taken_and_the_other_named(content: Any, others: str, tmp_path: Path) -> None:
    found = saved(content, tmp_path)
    assert {name: tensor.flatten()[0].item() for name, tensor in found.items()} == {"a.weight": 0, "b": 1}
    assert len(found.other_weights) == 1
    assert found.other_weights[0].startswith(others)
    average = saved(content, tmp_path, ema=True)
    assert {name: tensor.flatten()[0].item() for name, tensor in average.items()} == {"a.weight": 9, "b": 9}
    assert len(average.other_weights) == 1


def test_a_moving_average_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no moving average of the weights"):
        saved(TENSORS, tmp_path, ema=True)


def test_tensors_of_no_network_are_passed_over_by_an_option(tmp_path: Path) -> None:
    content = {**wrapped("module."), "data_preprocessor.mean": torch.ones(3), "n_averaged": torch.tensor(4)}
    assert len(saved(content, tmp_path)) == 3
    found = saved(content, tmp_path, ignore=["data_preprocessor.*"])
    assert (list(found), found.prefix) == (list(TENSORS), "module.")
    assert found.passed_over == ("data_preprocessor.mean (ignored)", "n_averaged (a counter)")
    assert list(saved(content, tmp_path, ignore="data*")) == list(TENSORS)
    with pytest.raises(CheckpointError, match=r"ignore='criterion.\*' \(--ignore\) matches none of its tensors"):
        saved(content, tmp_path, ignore=["criterion.*"])


def test_dictionaries_that_hold_themselves_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"tensors": TENSORS}
    content["self"] = content
    nested: dict[str, Any] = {"end": 1}
    for _ in range(60):
        nested = {"left": nested, "right": nested}
    assert list(saved({"model": TENSORS, "nested": nested}, tmp_path)) == list(TENSORS)
    with pytest.raises(CheckpointError, match=r"several sets of tensors \(tensors, self\)"):
        saved(content, tmp_path)


def test_an_archive_holds_one_weight_file(tmp_path: Path) -> None:
    """As OctConv's authors publish theirs."""
    data = params(TENSORS)
    found = read_tensors(tar(tmp_path / "a01.tar", a01_dot_params=data, a01_dot_json=b"{}"))
    assert list(found) == list(TENSORS)
    with pytest.raises(CheckpointError, match=r"one weight file is expected, this one has 2 \(a.params, b.pth\)"):
        read_tensors(tar(tmp_path / "two.tar", a_dot_params=data, b_dot_pth=data))
    with pytest.raises(CheckpointError, match=r"one weight file is expected, this one has 0 \(none\)"):
        read_tensors(tar(tmp_path / "none.tar", readme_dot_txt=b"hello"))
    whole = tar(tmp_path / "cut.tar", a01_dot_params=data).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:700])
    with pytest.raises(CheckpointError, match=r"cut.tar (is truncated|cannot be read)"):
        read_tensors(tmp_path / "cut.tar")


def test_packed_members_are_refused_before_they_are_unpacked(tmp_path: Path) -> None:
    """A zip of zeros is a thousandth of what it becomes."""
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(50_000_000))
    assert (tmp_path / "bomb.pth").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="its members are compressed, and torch compresses none"):
        read_tensors(tmp_path / "bomb.pth")
