"""Reading other people's weight files without running anything that is in them.

    safetensors               a header and bytes
    torch                     zip or the older form: torch's `weights_only` loader, with plain data for what training
                              loops keep beside tensors (`pickles.ALLOWED`)
    pickles of arrays         as VMZ's Caffe2 files: the machine of `pickles`
    MXNet .params             `mxnet_params`
    a .tar with one of these  as OctConv's authors publish theirs

What a file is, its first bytes say, not its name. A pickle that names anything else is refused, because reading it
would run code of its author's choice.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from leanconv.errors import CheckpointError
from leanconv.pickles import ForeignName, read_pickle
from leanconv.weights.container import WeightFile, find_weights
from leanconv.weights.mxnet_params import MXNET_MAGIC, read_params
from leanconv.weights.torch_files import LEGACY_TORCH, read_legacy, read_zip

__all__ = ["read_tensors"]

_WEIGHT_FILES = (".params", ".pth", ".pt", ".pkl", ".pyth", ".ckpt", ".safetensors")


def read_tensors(
    path: str | os.PathLike[str], *, entry: str | None = None, ema: bool = False, ignore: Sequence[str] = ()
) -> WeightFile:
    """The tensors of the file `path` by name, on the CPU, out of the wrappings that training loops put around them.

    The dictionary that holds them is found wherever it is: by its name (state_dict, model, ...), or as the only one
    with tensors. Prefixes of wrappers (`module.`, `model.`, `_orig_mod.`, ...) are taken off, and of two sets of
    weights the ordinary one is taken; the result says what was done.

    Args:
        entry: take the tensors from this entry of the file, dotted ("ema.module"); "." is the whole file.
        ema: take the moving average of the weights instead, where the file has one.
        ignore: patterns of names ("data_preprocessor.*") of tensors that belong to no network.

    Raises `CheckpointError` for a file that is missing, truncated, damaged or of an unknown format, that holds no
    tensors or several sets of which none is named, or whose reading would run code.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: there is no such file")
    try:
        content = _content(path, str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return find_weights(
        content, str(path), entry=entry, ema=ema, ignore=(ignore,) if isinstance(ignore, str) else ignore
    )


def _content(file: Path | bytes, name: str) -> Any:
    """Whatever plain data the file `name` is."""
    try:
        return _by_first_bytes(file, name)
    except ForeignName as error:
        raise CheckpointError(_would_run(name, error.name)) from None
    except EOFError as error:
        raise CheckpointError(f"{name} is truncated, copy or download it again: {_line(error)}") from None
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be read, it is damaged or of another format: {_line(error)}") from None


def _by_first_bytes(file: Path | bytes, name: str) -> Any:
    head = _first_bytes(file, 512)
    if head[257:262] == b"ustar":
        return _content(*_from_tar(_all_bytes(file), name))
    if head[:2] == b"PK":
        return read_zip(file)
    if head.startswith(LEGACY_TORCH):
        return read_legacy(file)
    if len(head) >= 8 and int.from_bytes(head[:8], "little") == MXNET_MAGIC:
        return read_params(_all_bytes(file))
    if head[8:9] == b"{" or name.endswith(".safetensors"):
        return _safetensors(_all_bytes(file))
    if head[:1] == b"\x80" or head[:1] in (b"(", b"}", b"c"):
        return read_pickle(_all_bytes(file))
    kind = f"it starts with {head[:8]!r}" if head else "it is empty"
    packed = ", which is a packed file: unpack it first" if head[:2] == b"\x1f\x8b" else ""
    raise CheckpointError(
        f"{name} is no weight file that can be read ({kind}{packed}): known are torch's, safetensors, MXNet's .params "
        "and pickles of arrays"
    )


def _first_bytes(file: Path | bytes, count: int) -> bytes:
    if isinstance(file, bytes):
        return file[:count]
    with file.open("rb") as opened:
        return opened.read(count)


def _all_bytes(file: Path | bytes) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def _line(text: object) -> str:
    """Words of a file, or about one, as a part of one line."""
    return " ".join(str(text).split())[:200]


def _would_run(name: str, called: str) -> str:
    return (
        f"{name} holds more than tensors ({_line(called)[:80]}), and reading that would run code from the file: where "
        "you trust its author, take the tensors out once and import the new file: "
        f"torch.save(torch.load({Path(name).name!r}, weights_only=False)['state_dict'], 'tensors.pth')"
    )


def _from_tar(data: bytes, name: str) -> tuple[bytes, str]:
    """The one weight file in a tar archive."""
    try:
        with tarfile.open(fileobj=BytesIO(data), mode="r:") as archive:
            members = [m for m in archive.getmembers() if m.isfile() and Path(m.name).suffix in _WEIGHT_FILES]
            if len(members) != 1:
                held = ", ".join(_line(m.name)[:60] for m in members[:4]) or "none"
                raise ValueError(f"an archive with one weight file is expected, this one has {len(members)} ({held})")
            member = members[0]
            opened = archive.extractfile(member) if member.offset_data + member.size <= len(data) else None
            if opened is None:
                raise EOFError(f"{_line(member.name)[:60]} in it has {member.size} bytes")
            return opened.read(), f"{name}/{_line(Path(member.name).name)[:60]}"
    except (tarfile.TarError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _safetensors(data: bytes) -> Any:
    header = int.from_bytes(data[:8], "little")
    if header + 8 > len(data):
        raise EOFError(f"its header has {header} bytes, {max(len(data) - 8, 0)} are there")
    ends = [
        int(end)
        for end in re.findall(rb'"data_offsets"\s*:\s*\[\s*\d{1,18}\s*,\s*(\d{1,18})\s*\]', data[8 : header + 8])
    ]
    if header + 8 + max(ends, default=0) > len(data):
        raise EOFError(f"its tensors have {max(ends)} bytes, {len(data) - 8 - header} are there")
    try:
        return load_safetensors(data)
    except (SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(str(error)) from error
