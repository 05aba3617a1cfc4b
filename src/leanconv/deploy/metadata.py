"""The input contract in an exported file, so that whoever feeds the file need not have leanconv, nor guess.

It is one JSON text under one key in all formats: `metadata_props` of ONNX, `rt_info` of OpenVINO, an extra file of
`.pt2`. Its fields are those of `InputContract`, and what the file's input tensor is: `dtype` and `layout`.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanconv.data.contract import InputContract
from leanconv.deploy.external_data import check_external_data
from leanconv.errors import ExportError, LeanconvError, need
from leanconv.files import settle
from leanconv.plain_text import read_json

__all__ = ["DTYPES", "KEY", "FileInput", "input_of"]

KEY = "leanconv.input"
"""Where the text is: this key, in OpenVINO the path `leanconv`, `input`."""

DTYPES = ("float32", "uint8")
"""What goes into a file: values normalised by the contract, or pixels from 0 to 255 as they are decoded."""


@dataclass(frozen=True, kw_only=True)
class FileInput:
    """What the only input of an exported file is: `contract` and `dtype`, one of `DTYPES`.

    For float32 the values (pixels / 255 - mean) / std are fed, for uint8 the pixels, which the file scales and
    normalises itself. Either way it is (batch, 3, H, W), or (batch, 3, frames, H, W) for clips.
    """

    contract: InputContract
    dtype: str = "float32"

    def to_text(self) -> str:
        """JSON, the field names in a fixed order."""
        layout = "NCHW" if self.contract.clip is None else "NCTHW"
        layout = "CHW" if self.contract.resize == "inside" else layout  # a detector's is one image
        return json.dumps({"dtype": self.dtype, "layout": layout, **self.contract.to_json()})

    @classmethod
    def from_text(cls, text: str, where: str = "the text") -> FileInput:
        """The inverse of `to_text`. Raises `LeanconvError`, naming `where`, for what is no such text."""
        try:
            data: dict[str, Any] = dict(read_json(text))
            dtype = data.pop("dtype")
            del data["layout"]
            if dtype not in DTYPES:
                raise LeanconvError(f"dtype {dtype!r} is none of {', '.join(DTYPES)}")
            return cls(contract=InputContract.from_json(data), dtype=dtype)
        except (ValueError, TypeError, KeyError) as error:
            raise LeanconvError(
                f"{where}: what it says about its input ({KEY}) cannot be read: {error}; export it again"
            ) from error


def input_of(path: str | os.PathLike[str]) -> FileInput | None:
    """What the exported file at `path` (.onnx, .xml, .pt2) says about its input, None where it says nothing.

    Raises `LeanconvError` for a file that is not there, is none of these, says something that cannot be read or takes
    weights from outside of its folder, `MissingExtra` where the package that reads it is not installed.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise ExportError(f"{path}: expected a file that export wrote, .onnx, .xml or .pt2")
    settle(path.parent, path.name)
    if not os.path.isfile(path):
        raise ExportError(f"{path}: there is no such file")
    text = _READERS[path.suffix](path)
    return None if text is None else FileInput.from_text(text, str(path))


def _of_onnx(path: Path) -> str | None:
    try:
        import onnx
    except ImportError as error:
        raise need("onnx", "export", "reading an ONNX file") from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own
        raise ExportError(f"{path} is no ONNX file, or is damaged: {error}") from error
    check_external_data(path, model)
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def _of_openvino(path: Path) -> str | None:
    from xml.etree import ElementTree

    try:  # as text: reading the network would need OpenVINO, and the weights beside it
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ExportError(f"{path} is no OpenVINO network, or is damaged: {error}") from error
    place = root.find("rt_info/" + KEY.replace(".", "/"))
    return None if place is None else place.get("value")


def _of_pt2(path: Path) -> str | None:
    """Without torch, which would run what is pickled there."""
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(f"/extra/{KEY}"):
                    return archive.read(name).decode()
                if name.endswith(".wrapper_metadata.json"):  # compiled by AOTInductor
                    return json.loads(archive.read(name)).get(KEY)  # type: ignore[no-any-return]
    except (zipfile.BadZipFile, ValueError) as error:
        raise ExportError(f"{path} is no .pt2 archive, or is damaged: {error}") from error
    return None


_READERS = {".onnx": _of_onnx, ".xml": _of_openvino, ".pt2": _of_pt2}
