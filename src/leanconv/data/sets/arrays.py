"""Small images that come as one block of pixels, and pickles read without trusting them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from leanconv import pickles
from leanconv.data.sets.paths import user_path
from leanconv.errors import DataError, shown

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ArrayImages", "Pixels", "as_array", "first_folder", "read_pickle"]

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
    root = user_path(path)
    for folder in (root, *(root / name for name in names)):
        if (folder / needed).is_file():
            return folder
    raise DataError(
        f"{kind}:{path}: no file {needed} there or in {', '.join(names)}: unpack the published archive and name the "
        "folder that holds it"
    )


def read_pickle(path: Path) -> dict[bytes, Any]:
    """The dictionary in a pickle of Python 2 or 3, keys as bytes, arrays rebuilt from their bytes; `DataError` for
    anything but plain data."""
    try:
        content = pickles.read_pickle(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: not a readable CIFAR file: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable CIFAR file: it {_verb(error)}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary, found a {type(content).__name__}")
    return {key.encode() if isinstance(key, str) else key: value for key, value in content.items()}


def as_array(value: Any) -> npt.NDArray[Any]:
    """A list of numbers, or the array of a pickle, as numpy's; `ValueError` for anything else."""
    if not isinstance(value, pickles.Array):
        return np.array(value)
    values = np.frombuffer(value.data, dtype=np.dtype((">" if value.big_endian else "<") + value.code))
    return values.reshape(value.shape, order="F" if value.columns_first else "C")


def _verb(error: Exception) -> str:
    text = shown(str(error), 160)[1:-1]
    if isinstance(error, pickles.ForeignName):
        return f"{text}, which no image file needs"
    return text.removeprefix("it ") if isinstance(error, EOFError) else f"holds {text}"
