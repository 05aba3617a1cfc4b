"""`leanconv doctor`: what this machine is, what is installed, and which extras are incomplete."""

from __future__ import annotations

import re

import typer

from leanconv.cli.options import JsonOption
from leanconv.cli.output import print_json
from leanconv.machine import this_machine, versions

_NEEDED_BY = {
    "train": "train, demo, eval and table on data sets, and pictures of curves",
    "video": "everything that reads videos",
    "export": "export, bench on onnxruntime and openvino, predict with exported files",
    "detect": "train, eval, table and compare of detectors",
    "hub": "push, and models named hf:OWNER/NAME",
}
"""Extra -> the verbs that cannot do without; a test compares the names."""


def run(json: JsonOption = False) -> None:
    """Check the installation.

    The machine, its devices and threads, whether the kernels of `lc.accelerate` were built, versions, and what is
    missing of which extra.
    """
    machine = _machine()
    packages = {extra: versions(names) for extra, names in _required().items()}
    missing = {extra: [name for name, found in names.items() if found is None] for extra, names in packages.items()}
    if json:
        print_json({"machine": machine, "packages": packages, "missing": missing, "needed_by": _NEEDED_BY})
    else:
        for name, value in machine.items():
            typer.echo(f"{name:10} {value}")
        for extra, names in packages.items():
            listed = ", ".join(f"{name} {found or 'MISSING'}" for name, found in names.items())
            needed = f"  (for {_NEEDED_BY[extra]})" if extra in _NEEDED_BY else ""
            typer.echo(f"{extra:10} {listed}{needed}")
        for extra, absent in missing.items():
            if absent:
                typer.echo(f"for {_NEEDED_BY.get(extra, 'every verb')}: pip install 'leanconv[{extra}]'")
    if missing["core"]:
        raise typer.Exit(1)


def _required() -> dict[str, list[str]]:
    """The packages that leanconv itself (core) and each of its extras need, from its own metadata."""
    from importlib.metadata import requires

    found: dict[str, list[str]] = {"core": []}
    for text in requires("leanconv") or []:
        name, extra = text.partition(";")[0], re.search(r"extra\s*==\s*['\"](\w+)['\"]", text)
        group = extra[1] if extra else "core"
        if group not in ("dev", "docs"):  # for work on leanconv itself
            found.setdefault(group, []).append(re.split(r"[^\w.-]", name)[0])
    return found


def _machine() -> dict[str, str]:
    import torch

    from leanconv import __version__
    from leanconv.kernels.library import NAMES, load, missing

    here = this_machine()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none, training and timing run on the CPU"
    return {
        "leanconv": __version__,
        "python": here.python,
        "system": here.system,
        "cpu": f"{here.cpu}{', ' if here.vectors else ''}{here.vectors}",
        "memory": f"{here.memory_bytes / 2**30:.1f} GiB",
        "cores": str(here.cores),
        "threads": f"{torch.get_num_threads()} in torch",
        "cuda": gpu,
        "kernels": missing() or f"built, with {NAMES[load().lanes]}",
    }
