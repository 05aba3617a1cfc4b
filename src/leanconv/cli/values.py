"""Values as people type them: options of a model, sizes, amounts, convolutions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from leanconv.errors import LeanconvError, shown
from leanconv.plain_text import BadText, read_json

if TYPE_CHECKING:
    from leanconv.spec import ConvSpec

__all__ = [
    "read_amount",
    "read_contract",
    "read_conv",
    "read_model",
    "read_options",
    "read_size",
    "read_sizes",
    "read_value",
]


_LONGEST = 4096
"""Characters of a list without quotes."""


def read_options(texts: Sequence[str], *, where: str = "--set") -> dict[str, Any]:
    """`["alpha=0.5", "name=x"]` as a dictionary of typed values; they were given `where`."""
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise LeanconvError(f"{where} {shown(text)}: expected OPTION=VALUE")
        settings[name.strip()] = read_value(value.strip())
    return settings


def read_model(text: str) -> tuple[str, dict[str, Any]]:
    """`"o_resnet20(multiplier=3.625)"` as a name and its options; a name alone, or a folder, has none.

    >>> read_model("oct_resnet50(alpha=0.25, num_classes=10)")
    ('oct_resnet50', {'alpha': 0.25, 'num_classes': 10})
    """
    name, bracket, rest = text.partition("(")
    if not bracket or os.path.exists(text):
        return text, {}
    if not rest.endswith(")"):
        raise LeanconvError(f"{shown(text)}: the options of a model stand in parentheses, NAME(OPTION=VALUE,...)")
    from leanconv.rewrites.steps import split_options

    return name.strip(), read_options(
        [option for option in split_options(rest[:-1]) if option.strip()], where=shown(text)[1:-1]
    )


def read_value(text: str) -> Any:
    """A number, boolean, null or list where the text is one, else the text itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return read_json(text)
    except BadText:
        pass
    if "," in text and len(text) <= _LONGEST:
        return [read_value(part.strip()) for part in text.strip("()[]").split(",") if part.strip()]
    return text


def read_size(text: str) -> tuple[int, ...]:
    """`"3,224,224"` (or 3x224x224) as a tuple."""
    parts = text.lower().replace("x", ",").split(",")
    if not all(_is_count(part.strip()) for part in parts) or len(parts) < 2:
        raise LeanconvError(f"--size {shown(text)}: expected channels and lengths above 0, for example 3,224,224")
    return tuple(map(int, parts))


def _is_count(text: str) -> bool:
    return re.fullmatch(r"0*[1-9][0-9]{0,8}", text) is not None


def read_sizes(texts: Sequence[str]) -> tuple[Any, ...]:
    """The shape of the only input, or a tuple of shapes for several."""
    shapes = tuple(map(read_size, texts))
    return shapes[0] if len(shapes) == 1 else shapes


def read_contract(
    mean: str | None, std: str | None, crop: float | None, interpolation: str | None, exif: bool | None
) -> dict[str, Any]:
    """The fields of an input contract that a command line names."""
    given: dict[str, Any] = {"crop": crop, "interpolation": interpolation, "exif": exif}
    for name, text in (("mean", mean), ("std", std)):
        if text is not None:
            try:
                given[name] = tuple(float(part) for part in text.split(","))
            except ValueError:
                raise LeanconvError(f"--{name} {text!r}: expected a number per channel, R,G,B from 0 to 1") from None
            if not all(0 <= value <= 1 for value in given[name]):
                raise LeanconvError(f"--{name} {text}: expected values from 0 to 1; divide those of 0 to 255 by 255")
    return {name: value for name, value in given.items() if value is not None}


def read_amount(text: str, option: str) -> float:
    """`"150M"`, `"1.5G"` or a plain number."""
    units = {"k": 1e3, "m": 1e6, "g": 1e9}
    body = text.strip().lower()
    factor = units.get(body[-1:], 1.0)
    try:
        value = float(body[:-1] if factor != 1.0 else body) * factor
    except ValueError:
        raise LeanconvError(f"{option} {text!r}: expected a number, optionally with k, M or G") from None
    if not value > 0:
        raise LeanconvError(f"{option} {text!r}: expected a number above 0")
    return value


def read_conv(text: str) -> ConvSpec:
    """`"64,128,3"`, `"64,128,3,2"` or `"64,128,1x3x3"` as a convolution with same-sized padding, 2D unless KERNEL says.

    >>> read_conv("64,128,3,2").stride
    (2, 2)
    """
    from leanconv.spec import ConvSpec

    parts = [part.strip() for part in text.split(",")]
    kernel = parts[2].lower().split("x") if len(parts) in (3, 4) else []
    if not kernel or not all(map(_is_count, (*parts[:2], *parts[3:], *kernel))):
        raise LeanconvError(
            f"--conv {text!r}: expected IN,OUT,KERNEL[,STRIDE] above 0, for example 64,128,3 or 8,8,3x3x3"
        )
    if len(kernel) > 3:
        raise LeanconvError(f"--conv {text!r}: a kernel has one to three axes, got {len(kernel)}")
    sides = tuple(map(int, kernel)) if len(kernel) > 1 else (int(kernel[0]),) * 2
    stride = int(parts[3]) if len(parts) == 4 else 1
    return ConvSpec(
        in_channels=int(parts[0]),
        out_channels=int(parts[1]),
        kernel_size=sides,
        stride=(stride,) * len(sides),
        padding=tuple(side // 2 for side in sides),
    )
