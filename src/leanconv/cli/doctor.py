"""`leanconv doctor`: what is installed, what the machine is, and what is missing for which verb."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import typer

from leanconv.cli.common import JsonOption, say_json

_EXTRAS = {
    "core": ("torch", "torchvision", "timm", "safetensors", "rich", "typer", "omegaconf"),
    "train": ("lightning", "tensorboard", "scikit-learn", "pyarrow", "matplotlib"),
    "export": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}


def run(json: JsonOption = False) -> None:
    """Check the installation: versions, devices, threads, and what is missing for which verb."""
    packages = {extra: {name: _version(name) for name in names} for extra, names in _EXTRAS.items()}
    missing = {extra: [name for name, found in names.items() if found is None] for extra, names in packages.items()}
    facts = {"machine": _machine(), "packages": packages, "missing": missing}
    if json:
        say_json(facts)
    else:
        for name, value in _machine().items():
            typer.echo(f"{name:10} {value}")
        for extra, names in packages.items():
            told = ", ".join(f"{name} {found or 'MISSING'}" for name, found in names.items())
            typer.echo(f"{extra:10} {told}")
        for extra, absent in missing.items():
            if absent:
                typer.echo(f"install the missing ones with: pip install 'leanconv[{extra}]'")
    if missing["core"]:
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, str]:
    import torch

    from leanconv import __version__

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none, training and timing run on the CPU"
    return {
        "leanconv": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(os.cpu_count()),
        "threads": f"{torch.get_num_threads()} in torch",
        "cuda": device,
    }
