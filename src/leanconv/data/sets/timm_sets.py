"""`timm:NAME?root=..`: what timm's readers can index (folders, tar files, torchvision's sets, ...)."""

from __future__ import annotations

import io
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor

from leanconv.data.contract import match_classes
from leanconv.data.limits import open_image
from leanconv.data.sets.splits import ImageSet, check_labels
from leanconv.errors import DataError, LeanconvError, need, shown, unknown
from leanconv.offline import no_network

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["timm_set"]

_OPTIONS = ("root", "train_split", "test_split", "download", "class_map", "num_classes")


@dataclass(frozen=True)
class _Reader:
    """A data set of timm's (its `reader` gives encoded files) or of torchvision's (items are images)."""

    where: str
    dataset: Any
    labels: Tensor

    def name(self, index: int) -> str:
        reader = getattr(self.dataset, "reader", None)
        return f"{self.where} image {index}" if reader is None else str(reader.filename(index))

    def read(self, index: int) -> Image.Image:
        from PIL import Image

        reader = getattr(self.dataset, "reader", None)
        image: Any = self.dataset[index][0] if reader is None else reader[index][0]
        if isinstance(image, Image.Image):
            return image
        if not isinstance(image, bytes):
            with image as file:
                image = file.read()
        return open_image(io.BytesIO(image))


def timm_set(text: str) -> ImageSet:
    """Open timm's data set `NAME?option=value&...`.

    Options: root, train_split, test_split, download, class_map, num_classes. `torch/cifar10?root=DIR` is torchvision's
    CIFAR-10, `?root=DIR` a folder. Nothing is downloaded unless `download=true`.
    Raises `DataError` when timm cannot open it or cannot index it (a stream), `UnknownName` for an unknown option.
    """
    name, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in _OPTIONS:
            raise unknown("option of a timm data set", option, _OPTIONS)
    count = options.pop("num_classes", None)
    splits = options.pop("train_split", "train"), options.pop("test_split", "validation")
    train = _open(name, splits[0], options)
    test = _open(name, splits[1], options)
    names = _class_names(train.dataset)
    if names is None:
        if count is not None and (not count.isdecimal() or len(count) > 9):
            raise DataError(f"timm:{text}: num_classes must be a whole number, got {shown(count)}")
        names = tuple(str(label) for label in range(int(count) if count else int(train.labels.max()) + 1))
    check_labels(train.where, train.labels, names, every_class=True)
    own = _class_names(test.dataset)
    remarks: tuple[str, ...] = ()
    check_labels(test.where, test.labels, own or names, every_class=False)
    if own is not None and own != names:  # timm numbers the classes of each part by themselves
        places, told = match_classes(test.where, own, names, what=train.where)
        test = replace(test, labels=torch.tensor(places, dtype=torch.int64)[test.labels])
        remarks = (told,) if told else ()
    remarks = (*remarks, *_check_apart(text, train, test))
    return ImageSet(train=train, test=test, class_names=names, remarks=remarks)


def _check_apart(text: str, train: _Reader, test: _Reader) -> tuple[str, ...]:
    """A sentence where images are in both parts; `DataError` where these are one: timm takes a folder without parts
    for either."""
    both = _files(train) & _files(test)
    if both and both == _files(test):
        raise DataError(
            f"timm:{text}: all of its test images are also its training images: timm found no such parts"
            f" ({train.where.rpartition('(')[2][:-1]}, {test.where.rpartition('(')[2][:-1]}) and took the whole for"
            " each; name them with train_split=, test_split=, or write folder:DIR to have it split"
        )
    return (f"{len(both)} test images are also used for training, for example {min(both)}",) if both else ()


def _files(half: _Reader) -> set[str]:
    """The files of a part where its reader knows them."""
    reader = getattr(half.dataset, "reader", None)
    samples = getattr(reader, "samples", None)
    if samples is None or not all(isinstance(sample[0], str) for sample in samples):
        return set()
    return {str(sample[0]) for sample in samples}


def _open(name: str, split: str, options: dict[str, str]) -> _Reader:
    try:
        from timm.data.dataset_factory import create_dataset
    except ImportError as error:
        raise need("timm", "train", "reading timm's data sets") from error
    where = f"timm:{name} ({split})"
    if name.partition("/")[0] in ("wds", "tfds"):  # whose locations may be commands (pipe:...)
        raise _a_stream(where)
    download = options.get("download", "false").lower() in ("1", "true", "yes")
    try:
        make: Any = create_dataset  # timm declares some arguments narrower than it accepts
        with nullcontext() if download else no_network():
            dataset = make(
                name,
                root=options.get("root"),
                split=split,
                class_map=options.get("class_map", ""),
                download=download,
            )
    except LeanconvError:
        raise
    except Exception as error:  # timm's readers raise whatever the library behind them raises
        raise DataError(
            f"{where}: timm cannot open it: {_line(error).rstrip('.')}; nothing is downloaded unless the name says"
            " download=true"
        ) from error
    if not callable(getattr(dataset, "__getitem__", None)) or not callable(getattr(dataset, "__len__", None)):
        raise _a_stream(where)
    return _Reader(where, dataset, torch.as_tensor(_labels(where, dataset), dtype=torch.int64))


def _a_stream(where: str) -> DataError:
    return DataError(
        f"{where}: a stream that cannot be indexed, and training shuffles by number; unpack it to folder:PATH"
    )


def _labels(where: str, dataset: Any) -> list[int]:
    reader = getattr(dataset, "reader", None)
    samples = getattr(reader, "samples", None)
    if samples is not None:
        return [int(sample[1]) for sample in samples]
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = getattr(dataset, "_labels", None)
    if targets is not None:
        return [int(target) for target in targets]
    if reader is not None and getattr(reader, "label_key", None) is not None:
        return [int(label) for label in reader.dataset[reader.label_key]]
    raise DataError(f"{where}: the reader does not list its labels, and they are needed before the images are read")


def _class_names(dataset: Any) -> tuple[str, ...] | None:
    classes = getattr(dataset, "classes", None)
    if classes is not None:
        return tuple(str(name) for name in classes)
    numbers: dict[str, int] | None = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if not numbers:
        return None
    return tuple(str(name) for name in sorted(numbers, key=lambda key: numbers[key]))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
