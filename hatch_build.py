"""The build of the package: where a C++ compiler is there, the C library of the kernels is built into it.

Without a compiler, or with LEANCONV_KERNELS=0, the package is built without; everything then works on the composed
path, and `leanconv doctor` says what is missing. With LEANCONV_KERNELS=1 a failure is an error: for building wheels.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("src/leanconv/kernels")


class CustomBuildHook(BuildHookInterface):
    """Run by hatchling before it builds a wheel, also the one of an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library beside its sources, and say that the wheel is for this platform."""
        wanted = os.environ.get("LEANCONV_KERNELS", "")
        if wanted == "0":
            return
        spec = importlib.util.spec_from_file_location("kernels_build", Path(self.root, KERNELS, "build.py"))
        assert spec is not None  # the file is part of these sources
        assert spec.loader is not None
        build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(build)
        try:
            library = build.build()
        except build.BuildError as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"leanconv is installed without its kernels, on the composed path: {error}")
            return
        build_data["artifacts"].append(f"/{library.relative_to(Path(self.root).resolve()).as_posix()}")
        if version == "standard":
            build_data["pure_python"] = False
            # For any Python, ctypes loads it; cibuildwheel gives the platform its portable name.
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
