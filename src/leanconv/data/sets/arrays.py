"""Small images that come as one block of pixels, and pickles read without trusting them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from leanconv.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ArrayImages", "Pixels", "first_folder", "read_pickle"]

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ArrayImages:
    """`pixels` (n, height, width, 3) and their labels; `where` names the set in messages."""

    where: str
    pixels: Pixels
    labels: Tensor

    @classmethod
    def of(cls, where: str, pixels: Pixels, labels: npt.ArrayLike) -> ArrayImages:
        """With labels from any array; raises `DataError` where there is not one label per image."""
        numbers = torch.as_tensor(np.asarray(labels, dtype=np.int64).reshape(-1))
        if len(numbers) != len(pixels):
            raise DataError(f"{where}: {len(pixels)} images but {len(numbers)} labels")
        return cls(where, pixels, numbers)

    def name(self, index: int) -> str:
        return f"{self.where} image {index}"

    def read(self, index: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(self.pixels[index])


def first_folder(path: str, names: tuple[str, ...], needed: str, kind: str) -> Path:
    """The folder that holds the file `needed`: `path` itself, or one of `names` in it; `DataError` otherwise."""
    root = Path(path).expanduser()
    for folder in (root, *(root / name for name in names)):
        if (folder / needed).is_file():
            return folder
    raise DataError(
        f"{kind}:{path}: no file {needed} there or in {', '.join(names)}: unpack the published archive and name the "
        "folder that holds it"
    )


class _Plain(pickle.Unpickler):
    """Rebuilds numbers, texts, lists, dictionaries and numpy arrays; any other global is refused, so no code runs."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return _latin1
        raise pickle.UnpicklingError(f"it would import {module}.{name}, which no image file needs")


def _latin1(text: Any, _encoding: Any = None) -> bytes:
    return str(text).encode("latin1")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("it would build an array of another class")
    return np.ndarray.__new__(np.ndarray, shape, code)


def read_pickle(path: Path) -> dict[bytes, Any]:
    """The dictionary in a pickle of Python 2 or 3, keys as bytes; `DataError` for anything but plain data."""
    try:
        with path.open("rb") as file:
            content = _Plain(file, encoding="bytes").load()
    except Exception as error:  # a broken pickle raises nearly anything
        raise DataError(f"{path}: not a readable CIFAR file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary, found a {type(content).__name__}")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}
