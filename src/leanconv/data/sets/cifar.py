"""`cifar10:PATH` and `cifar100:PATH`: the published archives, unpacked; the Python version or the binary one.

    cifar-10-batches-py/data_batch_1 .. 5, test_batch      pickled: {data: (n, 3072), labels: [n]}
    cifar-10-batches-bin/data_batch_1.bin .. 5             records of 1 label and 3072 bytes (red, green, blue planes)
    cifar-100-python/train, test                           pickled, fine_labels
    cifar-100-binary/train.bin, test.bin                   records of a coarse and a fine label and 3072 bytes

Pickles are read by `leanconv.pickles`, which runs nothing of them and rebuilds arrays of numbers from their bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leanconv.data.sets.arrays import ArrayImages, Pixels, as_array, first_folder, read_pickle
from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import ImageSet, check_labels
from leanconv.errors import DataError, shown

__all__ = ["cifar10", "cifar100"]

_BYTES = 3 * 32 * 32


class _Layout(NamedTuple):
    kind: str
    classes: int
    folders: tuple[str, str]
    train: tuple[str, ...]
    test: str
    meta: tuple[str, bytes]
    labels: bytes
    label_bytes: int


_TEN = _Layout(
    "cifar10", 10, ("cifar-10-batches-py", "cifar-10-batches-bin"), tuple(f"data_batch_{n}" for n in range(1, 6)),
    "test_batch", ("batches.meta", b"label_names"), b"labels", 1,
)  # fmt: skip
_HUNDRED = _Layout(
    "cifar100", 100, ("cifar-100-python", "cifar-100-binary"), ("train",), "test", ("meta", b"fine_label_names"),
    b"fine_labels", 2,
)  # fmt: skip


def cifar10(path: str) -> ImageSet:
    """CIFAR-10 in `path`, the unpacked folder or the one above it. Raises `DataError` for missing or broken files."""
    return _read(path, _TEN)


def cifar100(path: str) -> ImageSet:
    """CIFAR-100 with its 100 fine labels; as `cifar10`."""
    return _read(path, _HUNDRED)


def _read(path: str, layout: _Layout) -> ImageSet:
    root = user_path(path)
    for folder in (root, *(root / name for name in layout.folders)):
        if (folder / f"{layout.test}.bin").is_file():
            suffix = ".bin"
            break
    else:
        folder, suffix = first_folder(path, layout.folders, layout.test, layout.kind), ""
    halves = []
    for what, files in (("training", layout.train), ("test", (layout.test,))):
        parts = [_file(folder / (name + suffix), layout) for name in files]
        where = f"{layout.kind} {what}"
        pixels = np.concatenate([part[0] for part in parts])
        images = ArrayImages.of(where, pixels, np.concatenate([part[1] for part in parts]))
        halves.append(images)
    names = _names(folder, layout)
    for half in halves:
        check_labels(half.where, half.labels, names, every_class=half is halves[0])
    return ImageSet(train=halves[0], test=halves[1], class_names=names)


def _file(path: Path, layout: _Layout) -> tuple[Pixels, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    if not path.is_file():
        raise DataError(f"{path}: missing, the archive was not unpacked completely")
    if path.suffix == ".bin":
        content = np.fromfile(path, dtype=np.uint8)
        record = layout.label_bytes + _BYTES
        if not len(content) or len(content) % record:
            raise DataError(f"{path}: {len(content)} bytes are no whole number of records of {record}: truncated?")
        rows = content.reshape(-1, record)
        planes, labels = rows[:, layout.label_bytes :], rows[:, layout.label_bytes - 1]
    else:
        data = read_pickle(path)
        missing = [key.decode() for key in (b"data", layout.labels) if key not in data]
        if missing:
            raise DataError(f"{path}: no {missing[0]!r} in it, expected data and {layout.labels.decode()}")
        planes, labels = (_array(path, data, key) for key in (b"data", layout.labels))
        if planes.dtype != np.uint8 or planes.ndim != 2 or planes.shape[1] != _BYTES:
            raise DataError(f"{path}: expected {_BYTES} bytes per image, found {planes.dtype} of shape {planes.shape}")
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise DataError(f"{path}: expected a whole number as label, found {labels.dtype} of shape {labels.shape}")
    pixels = np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return pixels, labels.astype(np.int64)


def _array(path: Path, data: dict[bytes, Any], key: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        return as_array(data[key])
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: {key.decode()} is no array of numbers: {shown(str(error))[1:-1]}") from error


def _names(folder: Path, layout: _Layout) -> tuple[str, ...]:
    """The class names of the archive's meta file, the numbers where it has none (they are not needed to train)."""
    file, key = layout.meta
    text = folder / ("fine_label_names.txt" if layout.classes == 100 else "batches.meta.txt")
    names: list[str] = []
    if (folder / file).is_file():
        held = read_pickle(folder / file).get(key)
        if not isinstance(held, list) or not all(isinstance(name, str | bytes) for name in held):
            raise DataError(f"{folder / file}: expected the names of the classes, {key.decode()}, as a list of texts")
        names = [name.decode("latin-1") if isinstance(name, bytes) else name for name in held]
    elif text.is_file():
        names = text.read_text(errors="replace").split()
    return tuple(names) if len(names) == layout.classes else tuple(str(number) for number in range(layout.classes))
