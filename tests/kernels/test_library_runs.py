"""The C library computes what programs say, at any size, from any thread; NaN and infinity pass as in torch."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings

from kernels_library import assert_near, drawn, library, run, sanitized
from leanconv.kernels import build as builder
from leanconv.kernels.blocks import in_blocks
from leanconv.kernels.fuse import fused
from leanconv.kernels.library import Library, NoLibrary, Runnable, load
from leanconv.kernels.pack import PLAN_VERSION
from leanconv.kernels.program import (
    ZERO,
    Activation,
    Buffer,
    ClipConv,
    Conv,
    Pool,
    Program,
    Stage,
    Volume,
    Window,
    Wire,
)
from random_dense import dense_programs
from random_programs import computed, programs


def single(stage: Stage, buffer: Buffer, out: Buffer, *, activation: Activation | None = None) -> Program:
    return Program(
        buffers=(buffer, out),
        steps=(
            Conv(
                reads=tuple(Wire(0, c) for c in range(buffer.channels)),
                writes=1,
                order=tuple(range(out.channels)),
                stages=(stage,),
                activation=activation or Activation(),
            ),
        ),
        inputs=(0,),
        outputs=(tuple(Wire(1, c) for c in range(out.channels)),),
    )


@settings(max_examples=60, deadline=None)
@given(programs())
def test_random_programs(program: Program) -> None:
    inputs = drawn(program)
    expected = computed(program, [x.double() for x in inputs])
    for one in (program, fused(program)):
        runnable = Runnable(one, library())
        assert_near(run(one, inputs, runnable=runnable), expected)
        alone = run(one, inputs, runnable=runnable)  # in an arena that was used
        assert_near(alone, expected)
        for threads in (2, 3):  # images by whoever has time, then each image in pieces
            shared = run(one, inputs, runnable=runnable, threads=threads, least=1)
            assert all(torch.equal(got, wanted) for got, wanted in zip(shared, alone, strict=True))


@settings(max_examples=60, deadline=None)
@given(dense_programs())
def test_random_dense_programs(program: Program) -> None:
    assume(in_blocks(program, 8, 16) is not None)  # few have too much to gather
    inputs = drawn(program)
    expected = computed(program, [x.double() for x in inputs])
    for one in (program, fused(program)):
        for lanes in (library().lanes, 8):
            runnable = Runnable(one, library(), lanes=lanes)
            assert_near(run(one, inputs, runnable=runnable), expected)
            alone = run(one, inputs, runnable=runnable)  # in an arena that was used
            assert_near(alone, expected)
            shared = run(one, inputs, runnable=runnable, threads=3, least=1)
            assert all(torch.equal(got, wanted) for got, wanted in zip(shared, alone, strict=True))


def ragged(kernel: int, *, channels: int = 3, width: int = 13) -> Program:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, channels, kernel, kernel)).astype(np.float32)
    stage = Stage(weight=weight, bias=np.ones(5, np.float32), padding=(kernel // 2, kernel // 2))
    return single(stage, Buffer(channels, 6, width), Buffer(5, 6, width), activation=Activation(low=0.0))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinity_and_nan_reach_the_same_pixels_as_in_torch(kernel: int, value: float) -> None:
    """The last vector of a row is cut off, an odd slot is filled up: neither may spread what is no number."""
    program = ragged(kernel)
    (x,) = drawn(program)
    x[0, 1, 2, 12] = value  # the last column
    x[1, 2, 5, 0] = value
    (got,), (wanted,) = run(program, [x]), computed(program, [x])
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())
    finite = wanted.isfinite()
    assert torch.allclose(got[finite], wanted[finite], rtol=1e-5, atol=1e-5)
    assert 0 < int(finite.sum()) < finite.numel()


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("size", [(9, 9), (11, 37)])
def test_a_window_with_nan_or_infinity_is_what_torch_makes_of_it(largest: bool, size: tuple[int, int]) -> None:
    maps, made = Buffer(3, *size), Buffer(3, *((side + 1) // 2 for side in size))
    wires = [tuple(Wire(number, c) for c in range(3)) for number in range(2)]
    window = {"kernel": (1, 3, 3), "stride": (1, 2, 2), "padding": (0, 1, 1)}
    step = Window(reads=wires[0], writes=1, largest=largest, **window)  # type: ignore[arg-type]
    program = Program(buffers=(maps, made), steps=(step,), inputs=(0,), outputs=(wires[1],))
    (x,) = drawn(program)
    x[0, 0, 2, 3], x[0, 1, 5, 8], x[1, 2, 0, 0], x[1, 0, 8, 8] = torch.nan, torch.inf, -torch.inf, torch.nan
    (got,), (wanted,) = run(program, [x]), computed(program, [x])
    assert 0 < int(got.isnan().sum()) < got.numel() // 4
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_an_image_after_one_of_infinities_is_as_it_would_be_alone() -> None:
    program = ragged(3)
    (x,) = drawn(program, images=3)
    x[1] = float("inf")
    (alone,) = run(program, [x[2:].clone()])
    runnable = Runnable(program, library())
    assert torch.equal(run(program, [x], runnable=runnable)[0][2:], alone)
    assert torch.equal(run(program, [x[2:].clone()], runnable=runnable)[0], alone)


@pytest.mark.parametrize("curve", ["silu", "hardswish"])
def test_curves_far_out(curve: str) -> None:
    """From where e^x overflows to where it vanishes, to 1e-6 of each number."""
    stage = Stage(weight=np.ones((1, 1, 1, 1), np.float32), bias=np.zeros(1, np.float32))
    program = single(stage, Buffer(1, 1, 4001), Buffer(1, 1, 4001), activation=Activation(curve=curve))  # type: ignore[arg-type]
    x = torch.linspace(-120, 120, 4001).reshape(1, 1, 1, -1)
    (got,), (wanted,) = run(program, [x]), computed(program, [x.double()])
    assert torch.allclose(got.double(), wanted, rtol=1e-6, atol=1e-30)


def test_two_threads_at_once_and_images_over_threads() -> None:
    program = ragged(3, channels=16, width=33)
    runnable = Runnable(program, library())
    batches = [drawn(program, images=5) for _ in range(8)]
    expected = [run(program, batch)[0] for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            got = list(pool.map(lambda batch: run(program, batch, runnable=runnable, threads=2)[0], batches))
            assert all(torch.equal(one, wanted) for one, wanted in zip(got, expected, strict=True))


def test_the_mean_is_of_the_pixels_alone() -> None:
    program = Program(
        buffers=(Buffer(2, 3, 5), Buffer(2, 1, 1)),
        steps=(Pool(reads=(Wire(0, 1), Wire(0, 0)), writes=1),),
        inputs=(0,),
        outputs=((Wire(1, 0), Wire(1, 1)),),
    )
    x = torch.stack([torch.full((3, 5), 2.0), torch.arange(15.0).reshape(3, 5)])[None]
    assert run(program, [x])[0].flatten().tolist() == [7.0, 2.0]


def clip(channels: int, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Program:
    """Channelwise 3 x 3 x 3 of clips of (frames, height, width)."""
    rng = np.random.default_rng(0)
    wires = tuple(Wire(0, c) for c in range(channels))
    step = Volume(
        reads=wires,
        writes=1,
        frames=size[0],
        stride=stride,
        padding=(1, 1, 1),
        weight=rng.standard_normal((channels, 3, 3, 3)).astype(np.float32),
        bias=rng.standard_normal(channels).astype(np.float32),
        activation=Activation(low=0.0),
    )
    frames, height, width = step.sides((size[0] * size[1], size[2]))
    return Program(
        buffers=(Buffer(channels, size[0] * size[1], size[2]), Buffer(channels, frames * height, width)),
        steps=(step,),
        inputs=(0,),
        outputs=(tuple(Wire(1, c) for c in range(channels)),),
    )


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 7, 7), (5, 13, 19), (4, 33, 56)])
def test_filters_over_time_are_those_of_torch(size: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
    """Prime channels, one and many frames; numbers that are none reach the same pixels."""
    program = clip(7, size, stride)
    (x,) = drawn(program)
    assert_near(run(program, [x]), computed(program, [x.double()]))
    x[0, 3, -1, -1], x[1, 0, 0, 0] = float("nan"), float("inf")
    (got,), (wanted,) = run(program, [x]), computed(program, [x])
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())


def test_steps_are_timed() -> None:
    program = ragged(3)
    runnable = Runnable(program, library())
    run(program, drawn(program), runnable=runnable)
    assert runnable.time().shape == (1,)
    assert runnable.time()[0] > 0


def test_a_plan_of_another_version_is_not_run() -> None:
    program = ragged(1)
    runnable = Runnable(program, library())
    runnable.packed.plan[0] = 99
    with pytest.raises(NoLibrary, match=f"does not run plans of version {PLAN_VERSION}: build it again"):
        run(program, drawn(program), runnable=runnable)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    with pytest.raises(NoLibrary, match=r"was not built \(no kernels.so\): .*python -m leanconv.kernels.build"):
        load(path)
    path.write_text("no library")
    with pytest.raises(NoLibrary, match="is no library of leanconv's kernels"):
        Library(path)


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = library().path
    monkeypatch.setattr("leanconv.kernels.library.digest", lambda: "others")
    with pytest.raises(NoLibrary, match="was built from other sources than those beside it"):
        Library(path)


def test_no_compiler_and_a_failing_one_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert builder.compiler() is None
    with pytest.raises(builder.BuildError, match="no C\\+\\+ compiler was found: install g\\+\\+ or clang\\+\\+"):
        builder.build(tmp_path / "out.so")
    failing = tmp_path / "c++"
    failing.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no such flag')\n")
    failing.chmod(0o755)
    with pytest.raises(builder.BuildError, match="failed with exit code 1: no such flag"):
        builder.build(tmp_path / "out.so")
    assert not (tmp_path / "out.so").exists()


# ------------------------------------------------------------------------------------------------ other builds, slow

_UNDER = """
import sys
from pathlib import Path
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.strategies import integers
import test_library_runs as tests
from leanconv.kernels import trained
from leanconv.kernels.fuse import fused
from leanconv.kernels.library import Library, Runnable
from random_pieces import differences, pieces
from random_dense import dense_programs
from random_programs import computed, programs

library = Library(Path(sys.argv[1]))
lanes = int(sys.argv[2])
torch.manual_seed(0)  # one draw in thousands has outputs so small that rounding on the way is more than 1e-5 of them

@seed(0)
@settings(max_examples=int(sys.argv[3]), deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(programs() | dense_programs())
def check(program):
    inputs = tests.drawn(program)
    runnable = Runnable(fused(program), library, lanes)
    tests.assert_near(tests.run(program, inputs, runnable=runnable), computed(program, [x.double() for x in inputs]))

check()
trained.Runnable = lambda program, **options: Runnable(program, library, lanes, **options)
torch.manual_seed(5)  # the same for whatever programs came before; one piece is near 1e-5, of whatever numbers

@seed(0)
@settings(max_examples=int(sys.argv[3]), deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(pieces(), integers(1, 2))
def check_gradients(drawn, threads):
    torch.set_num_threads(threads)
    piece, size = drawn
    assert differences(piece, *size) <= 1e-5

check_gradients()
print("same")
"""


def compared(path: Path, lanes: int, examples: int, preload: str = "") -> None:
    """Random programs, and gradients of random pieces, on another build of the library, in a process of its own."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", _UNDER, str(path), str(lanes), str(examples)],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": "/usr/bin:/bin",
            "LD_PRELOAD": preload,
            "ASAN_OPTIONS": "detect_leaks=0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join([str(here), str(here.parent), str(here.parents[1] / "src")]),
        },
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.strip() == "same"
    assert "runtime error" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [16, 4])
def test_other_vectors(lanes: int, tmp_path: Path) -> None:
    """Vectors of sixteen on whatever this machine has, and of four as on ARM."""
    library()  # or skip
    path = builder.build(tmp_path / "other.so", vectors=(lanes, 8), emulates_avx512=True, flags=("-O1",))
    compared(path, lanes, 60)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_under_sanitizers(tmp_path: Path) -> None:
    """Neither memory beside an arena or an array is touched, nor anything done that C++ leaves open."""
    path, asan = sanitized(tmp_path)
    compared(path, 8, 60, preload=asan)


def test_the_library_needs_nothing_but_the_c_library() -> None:
    """So that a wheel runs where no compiler, and no C++ library, is installed."""
    done = subprocess.run(["ldd", str(library().path)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no ldd here")
    assert "libstdc++" not in done.stdout
    assert ctypes.CDLL(str(library().path)).leanconv_runs(5) == 0


def test_what_is_added_lies_under_the_sum_of_a_high_narrow_map() -> None:
    """Bands of odd numbers of rows of eight would end within a vector of sixteen: what it adds would be added twice."""
    channels, wires = 32, [tuple(Wire(number, c) for c in range(32)) for number in range(3)]
    maps = Buffer(channels, 300, 7)
    stage = Stage(
        weight=np.random.default_rng(0).standard_normal((channels, channels, 1, 1)).astype(np.float32),
        bias=np.zeros(channels, np.float32),
    )
    step = Conv(reads=wires[0], writes=2, order=tuple(range(channels)), stages=(stage,), residual=wires[1])
    program = Program(buffers=(maps,) * 3, steps=(step,), inputs=(0, 1), outputs=(wires[2],))
    inputs = drawn(program)
    assert_near(run(program, inputs), computed(program, [x.double() for x in inputs]))


@pytest.mark.parametrize(("channels", "groups"), [(37, 1), (38, 1), (38, 2)])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("second", [False, True])
def test_channels_far_apart_are_gathered(channels: int, groups: int, threads: int, second: bool) -> None:
    """Pixels by pixels over clips of more pixels than a band has, one channel of which is zeros."""
    rng, made = np.random.default_rng(0), 40
    wires = [tuple(Wire(number, c) for c in range(channels)) for number in range(2)]
    added, out = (tuple(Wire(number, c) for c in range(made)) for number in (2, 3))
    weight = rng.standard_normal((made, channels // groups, 1, 1)).astype(np.float32)
    stage = Stage(weight=weight, bias=rng.standard_normal(made).astype(np.float32), groups=groups)
    other = Stage(weight=rng.standard_normal((made, made, 1, 1)).astype(np.float32), bias=np.zeros(made, np.float32))
    steps = (
        Volume(reads=wires[0], writes=1, frames=4),
        Conv(
            reads=(*wires[1][:5], ZERO, *wires[1][6:]),
            writes=3,
            order=tuple(range(made)),
            stages=(stage, other) if second else (stage,),
            between=tuple(range(made)) if second else (),
            residual=added,
            activation=Activation(low=0.0),
        ),
    )
    buffers = (Buffer(channels, 84, 17), Buffer(channels, 84, 17), Buffer(made, 84, 17), Buffer(made, 84, 17))
    program = Program(buffers=buffers, steps=steps, inputs=(0, 2), outputs=(out,))
    inputs = drawn(program, 1)
    assert_near(run(program, inputs, threads=threads, least=1000), computed(program, [x.double() for x in inputs]))


@pytest.mark.parametrize("width", [15, 16])
def test_rows_of_clips_that_are_whole_vectors_and_others(width: int) -> None:
    rng = np.random.default_rng(0)
    into, out = (tuple(Wire(number, c) for c in range(channels)) for number, channels in ((0, 3), (1, 9)))
    step = ClipConv(
        reads=into,
        writes=1,
        frames=3,
        padding=(1, 1, 1),
        weight=rng.standard_normal((9, 3, 3, 3, 3)).astype(np.float32),
        bias=rng.standard_normal(9).astype(np.float32),
        activation=Activation(curve="silu"),
    )
    buffers = (Buffer(3, 3 * 11, width), Buffer(9, 3 * 11, width))
    program = Program(buffers=buffers, steps=(step,), inputs=(0,), outputs=(out,))
    inputs = drawn(program)
    assert_near(run(program, inputs), computed(program, [x.double() for x in inputs]))
