"""Reading other people's weight files without running anything that is in them.

Safetensors, or what torch's `weights_only` loader takes: tensors in plain containers. A pickle that names any other
object is refused, because reading it would run code of its author's choice.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from leanconv.errors import CheckpointError

__all__ = ["read_tensors"]

_WRAPPERS = ("state_dict", "model_state", "model_state_dict", "model")


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of the file `path` by name, on the CPU, out of the wrappings that training loops put around them.

    Wrappings are a dictionary entry called state_dict, model_state, model_state_dict or model, and the prefix
    `module.` of data-parallel training. Raises `CheckpointError` for a file that is missing, damaged, of another
    format, without tensors, or whose reading would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    content: Any = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange or not content:
        told = f"{strange[0]} is none" if strange else "it is empty"
        raise CheckpointError(
            f"{path} holds no plain dictionary of tensors ({told}); looked for them in {', '.join(_WRAPPERS)}, too"
        )
    tensors = {str(name): value for name, value in content.items()}
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors, it is damaged or incomplete: {error}") from error
    return tensors


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is None:
            raise CheckpointError(
                f"{path} is no weight file that torch can read: it is damaged, or of another format"
            ) from None
        raise CheckpointError(
            f"{path} holds more than tensors ({named[1]}), and reading that would run code from the file: where you "
            "trust its author, take the tensors out once and import the new file: "
            f"torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'tensors.pth')"
        ) from None
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read, it is damaged or incomplete: {first or 'it ends early'}"
        ) from None
