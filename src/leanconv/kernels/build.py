"""Builds the C library of the kernels with whatever C++ compiler is there: python -m leanconv.kernels.build

The hook of the package's build (`hatch_build.py`) loads this file by its path, before leanconv or anything else is
installed: it imports only the standard library.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["LIBRARY", "NATIVE", "BuildError", "build", "compiler", "digest"]

NATIVE = Path(__file__).resolve().parent / "native"
LIBRARY = NATIVE.parent / ("_kernels.dylib" if sys.platform == "darwin" else "_kernels.so")

_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra")
_MAPS = ("dense", "winograd", "depthwise", "elementwise", "volumes", "windows", "clips")
_PLAIN = ("run", "team", *_MAPS, "check", "onnxruntime")
"""What is compiled once, for any machine."""
_VECTORS = {16: ("-mavx512f", "-mavx2", "-mfma"), 8: ("-mavx2", "-mfma"), 4: ()}
"""Floats of a vector -> what the compiler is told to use for them. Vectors of four are NEON on ARM."""


class BuildError(RuntimeError):
    """No compiler, or one that does not take the sources."""


def digest() -> str:
    """Which sources these are: a library built from others is not used."""
    files = sorted(path for path in NATIVE.iterdir() if path.suffix in (".h", ".cpp"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()[:16]


def compiler() -> str | None:
    """The C++ compiler: $CXX, or the first of c++, g++, clang++; None where there is none or the system is unknown."""
    if sys.platform not in ("linux", "darwin"):
        return None
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((found for name in names if (found := shutil.which(name))), None)


def build(
    out: Path = LIBRARY,
    *,
    flags: Sequence[str] = (),
    vectors: Sequence[int] = (),
    emulates_avx512: bool = False,
    command: str | None = None,
) -> Path:
    """Compile the library to `out`, whole or not at all.

    `vectors` says for which sizes of vectors; by default all that this kind of machine may have, and which of them runs
    is chosen at run time. `flags` are added to every call of the compiler. `emulates_avx512` compiles vectors of
    sixteen for AVX2, so that a machine without AVX-512 can test them.

    Raises `BuildError` with what the compiler said.
    """
    command = command or compiler()
    if command is None:
        raise BuildError("no C++ compiler was found: install g++ or clang++, or name one in the variable CXX")
    vectors = vectors or ((16, 8) if platform.machine() in ("x86_64", "AMD64") else (4,))
    with tempfile.TemporaryDirectory(prefix="leanconv-kernels-") as folder:
        defines = [f"-DLEANCONV_HAS_{lanes}" for lanes in vectors]
        defines += ["-DLEANCONV_EMULATES_AVX512"] * emulates_avx512
        defines.append(f'-DLEANCONV_SOURCES="{digest()}"')
        start = [command, *_FLAGS, *flags]
        calls = [[*start, *defines, "-c", str(NATIVE / f"{name}.cpp"), "-o", f"{folder}/{name}.o"] for name in _PLAIN]
        for lanes in vectors:
            options = _VECTORS[8 if emulates_avx512 and lanes == 16 else lanes]
            names = [f"-DLEANCONV_LANES={lanes}", f"-DLEANCONV_TABLE=leanconv_kernels_{lanes}"]
            calls.append([*start, *options, *names, "-c", str(NATIVE / "kernels.cpp"), "-o", f"{folder}/{lanes}.o"])
        _all(calls)
        made = Path(folder, out.name)
        _all([[command, "-shared", *flags, *(call[-1] for call in calls), "-o", str(made)]])
        beside = out.with_name(f".{out.name}.{os.getpid()}")
        shutil.copyfile(made, beside)
        os.replace(beside, out)
    return out


def _all(calls: Sequence[Sequence[str]]) -> None:
    """Run the compiler several times at once."""
    running = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for call in calls]
    said = [process.communicate()[0] for process in running]
    for call, process, text in zip(calls, running, said, strict=True):
        if process.returncode:
            raise BuildError(f"{' '.join(call)} failed with exit code {process.returncode}: {text.strip()[-2000:]}")


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(str(error))
