"""`parquet:TRAIN,TEST`: encoded images in parquet files, columns `image` {bytes, path} and `label`.

The encoded bytes are held in memory, as a parquet file cannot be read by row; a set larger than half of the machine's
memory is refused.
"""

from __future__ import annotations

import glob
import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from leanconv.data.contract import match_classes
from leanconv.data.limits import open_image
from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import ImageSet, check_labels, split_by_class
from leanconv.errors import DataError, need
from leanconv.machine import memory_bytes

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["parquet"]


@dataclass(frozen=True)
class _Rows:
    where: str
    encoded: Any  # pyarrow LargeBinaryArray
    paths: Any  # pyarrow StringArray, or None where the files have no paths
    labels: Tensor

    def name(self, index: int) -> str:
        path = self.paths[index].as_py() if self.paths is not None else None
        return f"{self.where} row {index}" + (f" ({path})" if path else "")

    def read(self, index: int) -> Image.Image:
        data = self.encoded[index].as_py()
        if data is None:
            raise ValueError("image.bytes is empty")
        return open_image(io.BytesIO(data))


def parquet(paths: str, *, testing: bool = False) -> ImageSet:
    """Read `TRAIN,TEST`, or split `TRAIN` alone; each is a file, or a pattern such as `train-*.parquet`.

    Class names come from the files' own metadata where they have it, and every file's labels are brought to the order
    of the first; else the names are the numbers up to the largest training label. With `testing` a single file is not
    split but is all test. Raises `DataError` for a missing file or column, a label out of range, a class that only
    some of the files know, and a class without training images.
    """
    parts = [part.strip() for part in paths.split(",")]
    if not 1 <= len(parts) <= 2 or not all(parts):
        raise DataError(f"parquet:{paths}: expected parquet:TRAIN,TEST or one file to be split")
    if testing:
        parts = parts[-1:]
    train, names = _rows(parts[0])
    if names is None:
        top = int(train.labels.max()) if len(train.labels) else 0
        names = tuple(str(label) for label in range(top + 1))
    check_labels(parts[0], train.labels, names, every_class=not testing)
    if testing:
        return ImageSet(train=None, test=train, class_names=names)
    if len(names) < 2:
        raise DataError(f"{parts[0]}: every label is {names[0]}, expected at least two classes")
    if len(parts) == 1:
        keys = [f"{index}" for index in range(len(train.labels))]
        halves = split_by_class(train, keys)
        return ImageSet(train=halves[0], test=halves[1], class_names=names)
    test, own = _rows(parts[1])
    remarks: tuple[str, ...] = ()
    if own is None:
        check_labels(parts[1], test.labels, names, every_class=False)
        if not all(name.isdigit() for name in names):
            remarks = (f"{parts[1]} names no classes: its labels are taken for the numbers of {parts[0]}'s",)
    else:
        check_labels(parts[1], test.labels, own, every_class=False)
        labels, remarks = _matched(parts[1], test.labels, own, names, parts[0])
        test = replace(test, labels=labels)
    return ImageSet(train=train, test=test, class_names=names, remarks=remarks)


def _matched(
    where: str, labels: Tensor, own: tuple[str, ...], names: tuple[str, ...], holder: str
) -> tuple[Tensor, tuple[str, ...]]:
    """The `labels`, which number the classes `own`, as numbers of `names`, and what to say about it."""
    if len(set(own)) < len(own):
        raise DataError(f"{where}: two of its classes have the same name, of {', '.join(own[:5])}")
    used = sorted(set(labels.tolist()))  # a name that no image has is no class of this file
    places, told = match_classes(where, [own[label] for label in used], names, what=holder)
    table = torch.zeros(len(own), dtype=torch.int64)
    table[used] = torch.tensor(places, dtype=torch.int64)
    return table[labels], (told,) if told else ()


def _rows(pattern: str) -> tuple[_Rows, tuple[str, ...] | None]:
    """The rows of all files of the pattern, their labels in the order of the first file's names; these names."""
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
    except ImportError as error:
        raise need("pyarrow", "train", "reading parquet files") from error
    path = str(user_path(pattern))
    files = [path] if os.path.exists(path) else sorted(glob.glob(path))
    if not files:
        raise DataError(f"{pattern}: no such parquet file (relative paths start at {Path.cwd().name}/)")
    _check_memory(pattern, files)
    tables, named = [], []
    try:
        for file in files:
            schema = pq.read_schema(file)
            _check_columns(file, schema)
            tables.append(pq.read_table(file, columns=["image", "label"]))
            named.append(_class_names(schema))
        table = pa.concat_tables([part.replace_schema_metadata() for part in tables])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{pattern}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    image = table["image"]
    if pa.types.is_struct(image.type):
        encoded = pc.struct_field(image, "bytes")
        has_path = image.type.get_field_index("path") >= 0
        paths = pc.struct_field(image, "path").combine_chunks() if has_path else None
    else:
        encoded, paths = image, None
    if nulls := table["label"].null_count:
        raise DataError(f"{pattern}: {nulls} rows have no label, expected a class number in every row")
    labels = []
    for file, part, own in zip(files, tables, named, strict=True):
        numbers = torch.from_numpy(part["label"].cast(pa.int64()).to_numpy().copy())
        if own != named[0]:
            if own is None or named[0] is None:
                which = file if own is None else files[0]
                raise DataError(
                    f"{pattern}: {which} names no classes and others do, so nobody knows what its labels are"
                )
            check_labels(file, numbers, own, every_class=False)
            numbers, _ = _matched(file, numbers, own, named[0], files[0])
        labels.append(numbers)
    rows = _Rows(pattern, encoded.cast(pa.large_binary()).combine_chunks(), paths, torch.cat(labels))
    return rows, named[0]


def _check_columns(file: str, schema: Any) -> None:
    import pyarrow as pa

    missing = [name for name in ("image", "label") if schema.get_field_index(name) < 0]
    if missing:
        raise DataError(
            f"{file}: no column {missing[0]!r}, expected image {{bytes, path}} and label,"
            f" found {', '.join(schema.names)}"
        )
    kind = schema.field("image").type
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            found = ", ".join(kind.field(number).name for number in range(kind.num_fields))
            raise DataError(f"{file}: column 'image' has no field 'bytes' with the encoded image, found {found}")
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{file}: column 'image' must hold encoded images as bytes, found {kind}")
    if not pa.types.is_integer(schema.field("label").type):
        raise DataError(f"{file}: column 'label' must hold whole numbers, found {schema.field('label').type}")


def _check_memory(pattern: str, files: list[str]) -> None:
    needed = sum(os.path.getsize(file) for file in files)
    have = memory_bytes()
    if have and needed > have // 2:
        raise DataError(
            f"{pattern}: {needed / 2**30:.1f} GiB of encoded images, more than half of the {have / 2**30:.1f} GiB"
            " of memory where they would have to be held; unpack them to folder:PATH"
        )


def _class_names(schema: Any) -> tuple[str, ...] | None:
    """The names that the Hugging Face writer leaves in a file's metadata, or None."""
    note = (schema.metadata or {}).get(b"huggingface")
    if note is None:
        return None
    try:
        names = json.loads(note)["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return None
    return tuple(str(name) for name in names)
