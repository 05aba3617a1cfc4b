"""What several verbs share: options, reading values from text, finding the model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from leanconv.errors import LeanconvError

if TYPE_CHECKING:
    from torch import nn

    from leanconv.data import ImageData, VideoData
    from leanconv.recipes import Recipe
    from leanconv.rewrites import Rewritten

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name (leanconv list), timm/NAME, torchvision/NAME, package:function or a saved folder."
    ),
]
SetOption = Annotated[
    list[str], typer.Option("--set", metavar="OPTION=VALUE", help="An option of the model; any number of times.")
]
RewriteOption = Annotated[
    list[str],
    typer.Option(
        "--rewrite", metavar="STEM:OPTION=VALUE,...", help="For example osep:overlap=1; any number of times, in order."
    ),
]
SizeOption = Annotated[
    str | None, typer.Option("--size", metavar="C,H,W", help="Input size; by default the one the model was made for.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-code", help="Let a saved folder import the code its story names (package:function).")
]


class Found(NamedTuple):
    """A model from the command line: as named, as rewritten (None without --rewrite), and its input size."""

    model: nn.Module
    rewritten: Rewritten | None
    size: tuple[int, ...]

    @property
    def final(self) -> nn.Module:
        """The model after its rewrites."""
        return self.rewritten.model if self.rewritten else self.model


def find(
    name: str, options: Sequence[str], steps: Sequence[str], size: str | None, *, trust_code: bool = False
) -> Found:
    """Build or load the model that the options describe."""
    from leanconv.build import default_size, resolve
    from leanconv.rewrites import parse_step, rewrite

    model = resolve(name, read_settings(options), trust_code=trust_code)
    shape = read_size(size) if size else default_size(name)
    done = rewrite(model, *map(parse_step, steps), size=shape) if steps else None
    return Found(model, done, shape)


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """`["alpha=0.5", "name=x"]` as a dictionary of typed values."""
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise LeanconvError(f"--set {text!r}: expected OPTION=VALUE")
        settings[name.strip()] = read_value(value.strip())
    return settings


def read_value(text: str) -> Any:
    """A number, boolean, null or list where the text is one, else the text itself."""
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        pass
    if "," in text:
        return [read_value(part.strip()) for part in text.strip("()[]").split(",") if part.strip()]
    return text


def read_size(text: str) -> tuple[int, ...]:
    """`"3,224,224"` (or 3x224x224) as a tuple."""
    parts = text.lower().replace("x", ",").split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts) or len(parts) < 2:
        raise LeanconvError(f"--size {text!r}: expected channels and lengths above 0, for example 3,224,224")
    return tuple(map(int, parts))


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


def say_json(data: Any) -> None:
    """Print `data` as JSON."""
    typer.echo(json.dumps(data, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value)


def write_json(data: Any, path: Path) -> None:
    """Write `data` to `path`, complete or not at all."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(data, indent=2, default=_plain) + "\n")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise LeanconvError(f"{path}: cannot be written ({error.strerror})") from error


def configuration(
    model: nn.Module, size: tuple[int, ...], width: float | None, resolution: int | None
) -> tuple[nn.Module, tuple[int, ...]]:
    """An elastic network as the plain one at `width` and `resolution` (default: the largest), any other as it is."""
    from leanconv.elastic import ElasticNet

    if not isinstance(model, ElasticNet):
        if width is not None or resolution is not None:
            raise LeanconvError(
                "--width and --resolution are for elastic networks; this one has a single configuration"
            )
        return model, size
    side = resolution or max(model.resolutions)
    return model.extract(width=width or model.widths[1], resolution=side), (*size[:-2], side, side)


class Opened(NamedTuple):
    """A network from the command line, the data to test it on, and its recipe where it is a run's."""

    network: nn.Module
    data: ImageData | VideoData
    recipe: Recipe | None


def open_run(folder: str, data: str | None, side: int | None, *, trust_code: bool = False) -> Opened:
    """The network in a run folder or saved model, and the images or videos that the options, or the run's recipe, name.

    A run on videos reads other ones as its own; a saved network for clips takes every other frame at 30 per second.
    """
    from leanconv.build import default_size, load
    from leanconv.recipes import change, open_data, read_recipe

    path = Path(folder)
    config = path / "config.yaml"
    model = path / "model" if config.exists() else path
    if config.exists() and not model.exists():
        raise LeanconvError(f"{path}: this run is not finished: leanconv train --resume --out {path}")
    network = load(model, trust_code=trust_code)
    recipe = read_recipe(config) if config.exists() else None
    if recipe is not None and (data is None or recipe.data.video is not None):
        changes = [] if side is None else [f"data.size={side}"]
        changes += [] if data is None else [f"data.spec={data}"]
        return Opened(network, open_data(change(recipe, changes)), recipe)
    if data is None:
        raise LeanconvError(f"{path} is a saved model, not a run folder: say which images or videos with --data")
    try:
        size = default_size(str(model))
    except LeanconvError:
        if side is None:
            raise
        size = (3, side, side)
    return Opened(network, open_inputs(data, (*size[:-1], side or size[-1])), recipe)


def open_inputs(spec: str, size: Sequence[int], **options: Any) -> ImageData | VideoData:
    """The images, or for a `size` with frames the videos, of `spec`; `options` are those of `open_images`."""
    from leanconv.data import open_images, open_videos

    if len(size) == 4:
        return open_videos(spec, frames=size[1], size=size[-1], **options)
    return open_images(spec, size=size[-1], **options)
