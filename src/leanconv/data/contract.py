"""The input contract: what a network was trained to be fed, in plain data that everybody who feeds it obeys.

It is fixed when training starts (or by whoever published the weights, or by the options of a verb), kept in the model's
story, and never estimated again: mean and std of other pictures are another network's input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from leanconv.errors import DataError, LeanconvError, unknown
from leanconv.schema import Count, Fault, Flag, ListOf, Maybe, Number, Record, Text
from leanconv.story import Story, remember, story_of

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "CONTRACT",
    "INTERPOLATIONS",
    "RESIZES",
    "ClipContract",
    "InputContract",
    "amended",
    "attach",
    "contract_of",
    "for_size",
    "from_timm",
    "from_torchvision",
    "match_classes",
    "published",
]

RESIZES = ("square", "shorter_side", "whole", "inside")
"""The central square, `crop` of the shorter side, is brought to the size in one step (leanconv's own); the shorter side
is brought to size / crop, then the centre is cut (timm, torchvision); the whole image is brought to a square of
size / crop, whatever its shape, then the centre is cut; the image is fed whole, and a detector itself brings its
shorter side to that of size, or its longer side to `longest` where that is less."""

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""Pillow's, all of them over the whole area of a pixel that becomes smaller."""


_MOST_VALUES, _LONGEST_SIDE = 2**28, 2**16
"""Of one input: a GB in single precision; and of what it is cut from, in pixels."""


@dataclass(frozen=True, kw_only=True)
class ClipContract:
    """How clips are taken of a video: every `rate`-th frame at `fps` a second (None: as the file has them).

    `short_side` is the length in pixels to which the shorter side is brought; a video is tested on `clips` clips, of
    each `crops` squares.
    """

    rate: int
    fps: float | None
    short_side: int
    clips: int = 10
    crops: int = 1


@dataclass(frozen=True, kw_only=True)
class InputContract:
    """What the inputs of a network are.

    Args:
        size: shape of one input, (3, H, W) or (3, frames, H, W).
        mean, std: of each channel, of values in `value_range`; what is fed is (value - mean) / std.
        resize: one of `RESIZES`.
        interpolation: one of `INTERPOLATIONS`.
        crop: the share of the resized image that is kept, above 0 and up to 1.
        channel_order: of the colours; leanconv reads RGB.
        value_range: what the pixels 0 and 255 become before mean and std; leanconv uses (0, 1).
        exif: whether photographs are turned as their EXIF record says.
        class_names: of the outputs, in order; None where nobody has said them.
        clip: for networks for clips.
        longest: of detectors, the limit of the longer side in pixels.
        class_ids: of detectors, the classes' numbers in files of COCO's format.

    Raises `LeanconvError` for values that nobody could obey.

    >>> InputContract(size=(3, 32, 32), mean=(0.5,) * 3, std=(0.25,) * 3).at((3, 24, 24)).size
    (3, 24, 24)
    """

    size: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: str = "square"
    interpolation: str = "bilinear"
    crop: float = 1.0
    channel_order: str = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)
    exif: bool = True
    class_names: tuple[str, ...] | None = None
    clip: ClipContract | None = None
    longest: int | None = None
    class_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.resize not in RESIZES:
            raise unknown("resize rule", self.resize, RESIZES)
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", self.interpolation, INTERPOLATIONS)
        if (self.resize == "inside") != (self.longest is not None):
            raise LeanconvError("an input contract has longest, the limit of the longer side, with resize=inside alone")
        if self.class_ids is not None and len(self.class_ids) != len(self.class_names or ()):
            raise LeanconvError("an input contract has a number for each of its class names, or none")
        if self.channel_order != "RGB" or self.value_range != (0.0, 1.0):
            raise LeanconvError(
                f"an input contract with channel_order {self.channel_order} and value_range {list(self.value_range)}:"
                " leanconv feeds RGB from 0 to 1; put what is missing into mean and std"
            )
        if not 0 < self.crop <= 1:
            raise LeanconvError(f"crop is the share of the image that is kept, above 0 and up to 1, got {self.crop}")
        if len(self.size) not in (3, 4) or self.size[0] != len(self.mean) or len(self.mean) != len(self.std):
            raise LeanconvError(
                f"an input contract of size {list(self.size)} needs {self.size[0] if self.size else 3} values of mean"
                f" and of std, got {len(self.mean)} and {len(self.std)}"
            )
        if prod(self.size) > _MOST_VALUES or self.size[-1] / self.crop > _LONGEST_SIDE:
            raise LeanconvError(f"an input contract of size {list(self.size)}, crop {self.crop:g}: nothing is so large")
        if self.clip is not None and self.clip.short_side > _LONGEST_SIDE:
            raise LeanconvError(f"an input contract of short side {self.clip.short_side}: no frame is so large")
        if not all(value > 0 for value in self.std):
            raise LeanconvError(f"std must be above 0 in every channel, got {list(self.std)}")
        if (len(self.size) == 4) != (self.clip is not None):
            raise LeanconvError(f"an input contract of size {list(self.size)}: clip belongs to (3, frames, H, W) alone")

    def at(self, size: Sequence[int]) -> InputContract:
        """The same at another resolution or number of frames; the short side of clips keeps its ratio to the size.

        Of images (3, H, W) for clips (3, frames, H, W): every other frame at 30 a second, cropped as the images were.
        """
        clip = self.clip
        if clip is None and len(size) == 4 and len(self.size) == 3:
            clip = ClipContract(rate=2, fps=30.0, short_side=round(size[-1] / self.crop))
        elif clip is not None and size[-1] != self.size[-1]:
            clip = replace(clip, short_side=round(clip.short_side * size[-1] / self.size[-1]))
        return replace(self, size=tuple(size), clip=clip)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        data = asdict(self)
        for name in ("longest", "class_ids"):  # of detectors alone
            if data[name] is None:
                del data[name]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> InputContract:
        """The inverse of `to_json`; `LeanconvError` for what is no contract."""
        try:
            CONTRACT.check(data, "")
        except Fault as error:
            raise LeanconvError(f"not an input contract: {error}") from error
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        try:
            if values.get("clip") is not None:
                values["clip"] = ClipContract(**values["clip"])
            return cls(**values)
        except TypeError as error:
            raise LeanconvError(f"not an input contract: {error}") from error


_CHANNELS = ListOf(Number(-1e6, 1e6), longest=4096, shortest=1)

CONTRACT = Record(
    {
        "size": ListOf(Count(1, 2**20), longest=8, shortest=1),
        "mean": _CHANNELS,
        "std": ListOf(Number(above=0, high=1e6), longest=4096, shortest=1),
    },
    {
        "resize": Text(40),
        "interpolation": Text(40),
        "crop": Number(above=0, high=1),
        "channel_order": Text(40),
        "value_range": ListOf(Number(-1e6, 1e6), longest=2, shortest=2),
        "exif": Flag(),
        "class_names": Maybe(ListOf(Text(1000), longest=1_000_000)),
        "longest": Maybe(Count(1, 2**16)),
        "class_ids": Maybe(ListOf(Count(0, 2**53), longest=1_000_000)),
        "clip": Maybe(
            Record(
                {"rate": Count(1, 10_000), "fps": Maybe(Number(above=0, high=10_000)), "short_side": Count(1, 2**20)},
                {"clips": Count(1, 10_000), "crops": Count(1, 3)},
            )
        ),
    },
)
"""What the JSON of a contract must be."""


def contract_of(model: nn.Module) -> InputContract | None:
    """The contract of `model`, None where nobody has said it. Raises `LeanconvError` for one that cannot be obeyed."""
    story = story_of(model)
    return None if story is None or story.contract is None else InputContract.from_json(story.contract)


def attach(model: nn.Module, contract: InputContract) -> None:
    """Let `model` be fed as `contract` says: `save` stores it, and rewrites and elastic steps hand it on."""
    remember(model, replace(story_of(model) or Story(), contract=contract.to_json()))


def for_size(story: Story, size: Sequence[Any]) -> Story:
    """`story` of a network that is now given inputs of `size`: its contract, where it has one, says so too.

    A contract is for one input; of several (`size` is a list of shapes) it stays as it is.
    """
    if story.contract is None or not all(isinstance(length, int) for length in size):
        return story
    return replace(story, contract=InputContract.from_json(story.contract).at(size).to_json())


def amended(contract: InputContract | None, size: Sequence[int], given: Mapping[str, Any]) -> InputContract | None:
    """`contract` for inputs of `size` with the fields that somebody has `given` now; None where nobody says enough.

    Without a contract `given` must have `mean` and `std`: they are never guessed. The rest is then the central square
    in one bilinear step, or with a `crop` the shorter side and a central cut, as timm and torchvision do; of clips 7/8.

    >>> amended(None, (3, 8, 8), {"mean": (0.5,) * 3, "std": (0.2,) * 3, "crop": 0.875}).resize
    'shorter_side'
    """
    if contract is None:
        if not {"mean", "std"} <= given.keys():
            return None
        rule = {"resize": "shorter_side" if "crop" in given else "square", "crop": 0.875 if len(size) == 4 else 1.0}
        contract = InputContract(size=(size[0], *size[-2:]), **{**rule, **given})
    return replace(contract.at(size), **given)


def from_timm(cfg: Mapping[str, Any]) -> InputContract | None:
    """The contract of weights that timm publishes, by its `pretrained_cfg`; None where it has a rule of its own."""
    resize = {"center": "shorter_side", "squash": "whole"}.get(cfg.get("crop_mode") or "center")
    interpolation = cfg.get("interpolation") or "bicubic"
    if resize is None or interpolation not in INTERPOLATIONS or len(cfg["mean"]) != cfg["input_size"][0]:
        return None
    return InputContract(
        size=tuple(cfg["input_size"]),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        resize=resize,
        interpolation=interpolation,
        crop=cfg.get("crop_pct") or 0.875,
        exif=False,  # timm reads photographs as they lie in the file
    )


def from_torchvision(weights: Any) -> InputContract | None:
    """The contract of torchvision's `weights`, by their `transforms()`; None where these do not classify images."""
    rule = weights.transforms()
    if not all(hasattr(rule, name) for name in ("crop_size", "resize_size", "mean", "std", "interpolation")):
        return None
    [side], [resized] = rule.crop_size[:1], rule.resize_size[:1]
    if (len(rule.crop_size) > 1 and rule.crop_size[1] != side) or len(rule.resize_size) > 1:
        return None
    names = weights.meta.get("categories")
    return InputContract(
        size=(3, side, side),
        mean=tuple(rule.mean),
        std=tuple(rule.std),
        resize="shorter_side",
        interpolation=rule.interpolation.value,
        crop=side / resized,
        exif=False,  # torchvision too
        class_names=None if names is None else tuple(names),
    )


def published(name: str, options: Mapping[str, Any], model: nn.Module) -> InputContract | None:
    """The contract of the weights that `create_model(name, **options)` took from timm or torchvision, None without."""
    library, _, inner = name.partition("/")
    if library == "timm" and options.get("pretrained"):
        return from_timm(model.pretrained_cfg)  # type: ignore[arg-type]
    if library == "torchvision" and options.get("weights") is not None:
        from torchvision.models import get_model_weights

        weights = options["weights"]
        return from_torchvision(get_model_weights(inner)[weights] if isinstance(weights, str) else weights)
    return None


def match_classes(
    where: str, names: Sequence[str], wanted: Sequence[str], *, what: str = "the network"
) -> tuple[tuple[int, ...], str | None]:
    """For each of the classes `names` its place among those `wanted`, and a sentence where not all are there.

    Classes are matched by name. Where one side has numbers for names, which name nothing, and as many classes as the
    other, they are matched by number. Raises `DataError` for a class that `what` does not know.

    >>> match_classes("folder:PART", ["c", "b"], ["a", "b", "c"])
    ((2, 1), "folder:PART has none of the class 'a', which the network knows")
    """
    place = {name: number for number, name in enumerate(wanted)}
    if len(names) == len(wanted) and set(names) != set(wanted) and (_numbered(names) or _numbered(wanted)):
        unnamed = where if _numbered(names) else what
        return tuple(range(len(names))), f"{unnamed} names no classes, so {where} is matched by number"
    foreign = [name for name in names if name not in place]
    if foreign:
        raise DataError(
            f"{where}: the class {foreign[0]!r} ({len(foreign)} of {len(names)}) is none of the {len(wanted)} that"
            f" {what} knows ({', '.join(map(str, wanted[:5]))}{', ...' if len(wanted) > 5 else ''}), and classes are"
            " matched by name: rename it, or leave it out"
        )
    absent = [name for name in wanted if name not in set(names)]
    told = None
    if absent:
        rest = f"the class {absent[0]!r}" if len(absent) == 1 else f"{len(absent)} classes ({', '.join(absent[:5])})"
        told = f"{where} has none of {rest}, which {what} knows"
    return tuple(place[name] for name in names), told


def _numbered(names: Sequence[str]) -> bool:
    """Whether the names are the numbers of the classes."""
    return list(names) == [str(number) for number in range(len(names))]
