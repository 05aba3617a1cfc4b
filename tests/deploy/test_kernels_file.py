"""An exported file with kernels: the same outputs without leanconv, and nothing in it, or beside it, is trusted."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import leanconv as lc
from kernels_library import library
from leanconv.cli import main
from leanconv.data import InputContract, attach
from leanconv.deploy import BACKENDS, bench, onnxruntime_runner
from leanconv.deploy.exported import ExportedNetwork
from leanconv.deploy.program_nodes import LIBRARY_NAME, uses_kernels
from leanconv.errors import ExportError, NothingToRewrite
from leanconv.kernels.library import NoLibrary, load

SIZE = (4, 9, 13)


@pytest.fixture(autouse=True)
def _library() -> None:
    library()


def net() -> nn.Module:
    """Two programs with something between them that stays with onnxruntime."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding=1, stride=2, groups=4),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A network and its file, to be copied before it is changed."""
    library()
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = net()
    lc.export(model, folder / "net.onnx", size=SIZE, kernels=True)
    return model, folder / "net.onnx"


ALONE = """
import sys
import numpy, onnxruntime

options = onnxruntime.SessionOptions()
options.register_custom_ops_library("./libleanconv_kernels.so")
session = onnxruntime.InferenceSession("net.onnx", options)
for batch in (1, 3):
    given = numpy.load(f"given{batch}.npy")
    numpy.save(f"found{batch}.npy", session.run(None, {"input": given})[0])
assert not {"leanconv", "torch"} & set(sys.modules)
"""


def assert_runs_alone(model: nn.Module, folder: Path, size: tuple[int, ...]) -> None:
    """The script, in a process and a folder of its own, gives what torch gives, to 1e-5 of the largest output."""
    given = {batch: torch.randn(batch, *size) for batch in (1, 3)}
    for batch, x in given.items():
        np.save(folder / f"given{batch}.npy", x.numpy())
    script = ALONE.replace("libleanconv_kernels.so", LIBRARY_NAME)
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for batch, x in given.items():
        with torch.no_grad():
            wanted = model(x).numpy()
        found = np.load(folder / f"found{batch}.npy")
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_it_runs_without_leanconv(made: tuple[nn.Module, Path]) -> None:
    model, path = made
    assert sorted(file.name for file in path.parent.iterdir()) == sorted([LIBRARY_NAME, path.name])
    assert [node.op_type for node in onnx.load(str(path)).graph.node if node.domain == "leanconv"] == ["Program"] * 2
    assert_runs_alone(model, path.parent, SIZE)


LARGE = {
    "chains, one of which sorts its columns": (
        nn.Conv2d(3, 64, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1, groups=16),
        nn.Conv2d(64, 64, 1, groups=4),
        nn.ReLU(),
        nn.Conv2d(64, 96, 3, padding=1, stride=2, groups=16),
        nn.Conv2d(96, 96, 1),
    ),
    "blocks": (nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, stride=2)),
}


@pytest.mark.parametrize("kind", LARGE)
def test_threads_of_a_session_share_an_image(kind: str, tmp_path: Path) -> None:
    """Of a network that is large enough; batches smaller than the threads, and others."""
    import onnxruntime

    size = (3, 67, 129)
    path = tmp_path / "net.onnx"
    lc.export(nn.Sequential(*LARGE[kind]).eval(), path, size=size, kernels=True)
    found = {}
    for threads in (1, 3):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.register_custom_ops_library(str(tmp_path / LIBRARY_NAME))
        session = onnxruntime.InferenceSession(str(path), options)
        for batch in (1, 2, 5):
            x = torch.linspace(-2, 2, batch * 3 * 67 * 129).reshape(batch, *size).numpy()
            for _ in range(3):
                (found[threads, batch],) = session.run(None, {"input": x})
    for batch in (1, 2, 5):
        assert np.array_equal(found[1, batch], found[3, batch])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("o_resnet20", {"multiplier": 3.625}, (3, 32, 32)),
        ("d_resnet20", {}, (3, 32, 32)),
        ("o_resnet20", {}, (3, 20, 44)),
        ("igc_l24m2", {}, (3, 32, 32)),
    ],
)
def test_networks_of_the_papers(name: str, options: dict[str, Any], size: tuple[int, ...], tmp_path: Path) -> None:
    model = lc.create_model(name, **options).eval()
    report = lc.export(model, tmp_path / "net.onnx", size=size, kernels=True)
    assert report.files == (tmp_path / "net.onnx", tmp_path / LIBRARY_NAME)
    assert_runs_alone(model, tmp_path, size)


def test_what_runs_files_runs_it(made: tuple[nn.Module, Path]) -> None:
    """eval, compare and predict take files as networks."""
    model, path = made
    x = torch.randn(3, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ExportedNetwork(path)(x), model(x), rtol=1e-5, atol=1e-6)


def test_pixels_go_in(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    attach(model, InputContract(size=(3, 12, 12), mean=(0.5,) * 3, std=(0.25,) * 3))
    report = lc.export(model, tmp_path / "net.onnx", input_type="uint8", kernels=True)
    assert report.max_abs_difference < 1e-5
    assert "with leanconv's kernels" in report.backend
    assert LIBRARY_NAME in report.remarks[0]


def test_a_backend_of_the_benchmark() -> None:
    rows = bench({"net": net()}, SIZE, backends=["onnxruntime", "onnxruntime_kernels"], rounds=2, batch=2, threads=2)
    assert [(row.backend, row.problem) for row in rows] == [("onnxruntime", None), ("onnxruntime_kernels", None)]
    assert rows[1].max_abs_difference is not None
    assert rows[1].max_abs_difference < 1e-5
    assert all(name.isidentifier() for name in BACKENDS)  # query tables name columns after them


def session(path: Path, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(load().path))
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_two_sessions_in_two_threads_at_once(made: tuple[nn.Module, Path]) -> None:
    """Each of them with two threads for the images of a batch, and both shared by two callers."""
    model, path = made
    sessions = [session(path, threads=2) for _ in range(2)]
    batches = [torch.randn(5, *SIZE) for _ in range(12)]
    with torch.no_grad():
        wanted = [model(x) for x in batches]

    def answer(index: int) -> Any:
        return sessions[index % 2].run(None, {"input": batches[index].numpy()})[0]

    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, expected in zip(pool.map(answer, range(12)), wanted, strict=True):
                torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-6)


def test_an_empty_batch(made: tuple[nn.Module, Path]) -> None:
    assert session(made[1]).run(None, {"input": np.zeros((0, *SIZE), np.float32)})[0].shape == (0, 5)


def damaged(path: Path, folder: Path, damage: Callable[[Any, Any], None]) -> Path:
    """The file after `damage(graph, first node)`."""
    model = onnx.load(str(path))
    damage(model.graph, next(node for node in model.graph.node if node.domain == "leanconv"))
    onnx.save(model, str(folder / "damaged.onnx"))
    return folder / "damaged.onnx"


def plans(node: Any) -> list[Any]:
    return [attribute for attribute in node.attribute if attribute.name.startswith("plan_")]


def cut_plans(graph: Any, node: Any) -> None:
    for plan in plans(node):
        del plan.ints[-20:]


def larger_input(graph: Any, node: Any) -> None:
    for plan in plans(node):
        plan.ints[11] = 1000  # the height


def other_version(graph: Any, node: Any) -> None:
    for plan in plans(node):
        plan.ints[0] = 99


def no_plans(graph: Any, node: Any) -> None:
    for plan in plans(node):
        node.attribute.remove(plan)


def empty_plans(graph: Any, node: Any) -> None:
    for plan in plans(node):
        del plan.ints[:]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_plans, r"cannot be run \(it is cut off, or refers to itself\)"),
        (larger_input, r"cannot be run \(a step would read or write outside of its memory\)"),
        (other_version, r"cannot be run \(it was written by another version of leanconv\).*export the model again"),
        (no_plans, "a node Program has no plan for the vectors of this machine"),
        (empty_plans, r"no plan for the vectors of this machine|cannot be run \(it is cut off"),
    ],
)
def test_a_damaged_plan_makes_no_session(
    damage: Callable[[Any, Any], None], words: str, made: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=words):
        onnxruntime_runner(damaged(made[1], tmp_path, damage))


def few_weights(graph: Any, node: Any) -> None:
    weights = next(one for one in graph.initializer if one.name == node.input[0])
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights)[:40], weights.name))


def two_maps(graph: Any, node: Any) -> None:
    node.input.append(node.input[1])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (few_weights, r"a node Program has 40 weights, its plan reads \d+"),
        (two_maps, "a node Program has 3 inputs and 1 outputs, its plan 2 and 1"),
    ],
)
def test_a_node_that_does_not_fit_its_plan_is_not_run(
    damage: Callable[[Any, Any], None], words: str, made: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    run = onnxruntime_runner(damaged(made[1], tmp_path, damage))
    with pytest.raises(Exception, match=words):
        run(torch.randn(1, *SIZE))


def test_maps_of_another_size_are_refused(made: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def free(graph: Any, node: Any) -> None:
        graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"

    run = onnxruntime_runner(damaged(made[1], tmp_path, free))
    with pytest.raises(Exception, match=r"\(1, 4, 9, 14\), expected \(1, 4, 9, 13\): .* the size that it was exported"):
        run(torch.randn(1, 4, 9, 14))


def test_a_library_beside_a_file_is_not_loaded(made: tuple[nn.Module, Path], tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(made[1].read_bytes())
    (tmp_path / LIBRARY_NAME).write_text("somebody else's")
    assert ExportedNetwork(tmp_path / "net.onnx")(torch.randn(1, *SIZE)).shape == (1, 5)


def test_without_the_library_it_says_what_to_do(
    made: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("leanconv.kernels.library.load.__wrapped__.__defaults__", (tmp_path / "none.so",))
    load.cache_clear()
    try:
        with pytest.raises(NoLibrary, match=r"net\.onnx: .*with kernels.*python -m leanconv\.kernels\.build"):
            onnxruntime_runner(made[1])
        with pytest.raises(NoLibrary, match=r"python -m leanconv\.kernels\.build"):
            lc.export(net(), tmp_path / "folder" / "net.onnx", size=SIZE, kernels=True)
        assert not (tmp_path / "folder").exists()
    finally:
        load.cache_clear()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("net.xml", {}, r"kernels are for \.onnx files"),
        ("net.pt2", {}, r"kernels are for \.onnx files"),
        ("net.onnx", {"precision": "fp16"}, "kernels compute in fp32 alone, and fp16 was asked for"),
        ("net.onnx", {"precision": "int8", "data": []}, "kernels compute in fp32 alone, and int8 was asked for"),
        ("net.onnx", {"dynamic_size": True}, "programs of kernels are made for one size of input"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    name: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=words):
        lc.export(net(), tmp_path / name, size=SIZE, kernels=True, **options)
    assert list(tmp_path.iterdir()) == []


def test_file_and_library_are_written_together_or_not_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys.modules["leanconv.deploy.export"], "copy_library", full)
    with pytest.raises(ExportError, match="No space left on device"):
        lc.export(net(), tmp_path / "net.onnx", size=SIZE, kernels=True)
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_a_piece_is_refused(tmp_path: Path) -> None:
    dense = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 2))
    with pytest.raises(NothingToRewrite, match=r"net\.onnx: with kernels: no part of Sequential gains by it"):
        lc.export(dense, tmp_path / "net.onnx", size=SIZE, kernels=True)
    assert list(tmp_path.iterdir()) == []


def test_the_verb_refuses_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["export", "d_resnet20", str(tmp_path / "net.pt2"), "--kernels"])
    assert end.value.code == 2
    assert "kernels are for .onnx files" in capsys.readouterr().err


def test_plain_files_need_no_library(tmp_path: Path) -> None:
    lc.export(nn.Sequential(nn.Conv2d(4, 4, 3)), tmp_path / "net.onnx", size=SIZE)
    assert not uses_kernels(tmp_path / "net.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_clips_run_in_onnxruntime_and_in_torch() -> None:
    """Five axes go into a program as four, and come out of it as five."""
    clips = nn.Sequential(
        nn.Conv3d(3, 6, 1),
        nn.Conv3d(6, 6, 3, padding=1, groups=6, stride=2),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(6, 6, 3, padding=1, groups=6),
    ).eval()
    rows = bench({"clips": clips}, (3, 4, 9, 14), backends=["leanconv", "onnxruntime_kernels"], batch=2, rounds=2)
    assert [row.problem for row in rows] == [None, None]
    assert all(row.max_abs_difference < 1e-5 for row in rows if row.max_abs_difference is not None)
