"""The two files of a saved model, as files: written whole, and read with everything that can be wrong with them.

What they mean is said elsewhere; here a record is a JSON object with known keys, and tensors have names.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leanconv import __version__
from leanconv.data.contract import CONTRACT
from leanconv.errors import CheckpointError, LeanconvError, shown
from leanconv.files import found, settle, whole_folder
from leanconv.plain_text import read_json
from leanconv.schema import Count, Either, Fault, Flag, Items, ListOf, MapOf, Maybe, Plain, Record, Text

__all__ = [
    "FORMAT_VERSION",
    "STORY_FILE",
    "WEIGHTS_FILE",
    "digest",
    "read_record",
    "read_tensors",
    "reason_of",
    "tensors_to_write",
    "weights_of",
    "write",
]

STORY_FILE = "story.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT_VERSION = 1


def tensors_to_write(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of `model` with every tensor in memory of its own, and alias -> name for those that are the same."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            what = "on the meta device, without values" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{name} cannot be saved: it is {what}; only tensors with values can")
        where = (tensor.device, tensor.data_ptr())
        key = (*where, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        own = tensor.detach().cpu().contiguous()
        # Views of one storage that are not the same tensor must not be written as one.
        tensors[name] = own.clone() if storage in storages else own
        storages.add(storage)
    return tensors, aliases


def write(
    folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any], prove: Callable[[Path], None]
) -> None:
    """Both files: a new folder as a whole, in an existing one the two files together.

    `prove` is given the folder in which they are before they get their names; where it raises, nothing was written.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: a model is saved to a folder, name another one")

    def complain(reason: str) -> CheckpointError:
        needed = _megabytes(sum(tensor.nbytes for tensor in tensors.values()))
        return CheckpointError(
            f"{folder}: the model could not be saved: {reason}; {needed} are needed, {_free(folder.absolute())} free "
            "there; nothing was changed, free some space or name another folder"
        )

    with whole_folder(folder, complain, last=STORY_FILE, also=(SafetensorError,)) as draft:
        save_file(dict(tensors), draft / WEIGHTS_FILE)
        weights = {
            "file": WEIGHTS_FILE,
            "bytes": (draft / WEIGHTS_FILE).stat().st_size,
            "sha256": digest(draft / WEIGHTS_FILE),
        }
        text = json.dumps({**record, "weights": weights}, indent=2)
        (draft / STORY_FILE).write_text(text + "\n", encoding="utf-8")
        prove(draft)


def read_record(folder: Path) -> dict[str, Any]:
    """story.json, checked as far as the reader relies on it."""
    path = folder / STORY_FILE
    if not os.path.isdir(folder):
        raise CheckpointError(f"{folder}: there is no such folder: name one that save has written")
    settle(folder, STORY_FILE)
    try:
        record = read_json(found(folder, STORY_FILE, STORY_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a saved model: it has no {STORY_FILE}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != "leanconv model":
        raise CheckpointError(f"{path} was not written by leanconv: its format is not 'leanconv model'")
    if record.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {shown(record.get('format_version'))}, this leanconv ({__version__}) reads "
            f"{FORMAT_VERSION}: it was written by leanconv {shown(record.get('leanconv'))}, use that one"
        )
    try:
        _RECORD.check(record, "")
    except Fault as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return record


_NAMES = ListOf(Text(1000))
_SIZE = ListOf(Count(1, 2**20), longest=8, shortest=1)
_STORY = Record(
    {"model": Text(1000)},
    {
        "options": MapOf(Plain(), longest=1000),
        "knobs": MapOf(Plain(), longest=1000),  # as leanconv 0.1 called them
        "steps": ListOf(Items((Text(100), MapOf(Plain(), longest=1000))), longest=1000),
        "contract": Maybe(CONTRACT),
    },
)
_RECORD = Record(
    {
        "story": _STORY,
        "training": Flag(),
        "aliases": MapOf(Text(1000)),
        "weights": Record({"bytes": Count(), "sha256": Text(64)}, others=Plain()),
    },
    {
        "size": Maybe(Either(_SIZE, ListOf(_SIZE, longest=100))),
        # Later than the others:
        "modes": _NAMES,
        "frozen": _NAMES,
        "tied": MapOf(Text(1000)),
        "loose": _NAMES,
        "settings": MapOf(MapOf(Plain())),
    },
    others=Plain(),
)


def read_tensors(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """weights.safetensors with its aliases."""
    path = weights_of(folder)
    try:
        size = path.stat().st_size
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a saved model: it has no {WEIGHTS_FILE}") from None
    except (OSError, SafetensorError) as error:
        whole = record["weights"]["bytes"]
        cut = f"it has {size} bytes of {whole}, it was truncated" if size < whole else reason_of(error)
        raise CheckpointError(f"{path} cannot be read: {cut}; copy or save it again") from error
    for alias, name in record["aliases"].items():
        if name not in tensors:
            raise CheckpointError(
                f"{folder}: the weights do not fit the story: {name}, also called {alias}, is missing in {WEIGHTS_FILE}"
            )
        tensors[alias] = tensors[name]
    return tensors


def tensor_names(folder: Path) -> tuple[str, ...]:
    """The names in weights.safetensors, of which only the head is read; none where there is no such file."""
    try:
        with safe_open(weights_of(folder), framework="pt") as file:
            return tuple(file.keys())
    except (OSError, SafetensorError):
        return ()


def weights_of(folder: Path) -> Path:
    """Where the weights of the saved model in `folder` are."""
    return found(folder, STORY_FILE, WEIGHTS_FILE)


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason_of(error: Exception) -> str:
    """The words of an error, on one line and without the file name, which the message has already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = " ".join(text.split())
    words = words if len(words) <= 400 else f"{words[:290]} ... {words[-100:]}"
    return words if isinstance(error, LeanconvError | OSError) else f"{type(error).__name__}: {words}"


def _free(folder: Path) -> str:
    """Space left on the disk of `folder`, or of the nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return _megabytes(shutil.disk_usage(folder).free)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
