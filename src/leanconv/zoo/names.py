"""Looking names up: the zoo's (`resnet20`), its detectors' (`detection/mask_rcnn`), `timm/NAME`, `torchvision/NAME`,
somebody's own `package.module:function`.

Everything wrong with a name or an option is found here and said in one line, whichever library it concerns.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import reduce
from typing import Any, NamedTuple

from torch import nn

from leanconv.errors import LeanconvError, UnknownName, unknown
from leanconv.story import is_own_code
from leanconv.zoo.detection import DETECTORS
from leanconv.zoo.networks import ZOO

__all__ = ["construct", "list_models", "size_of_name", "to_be_fetched", "without_downloads"]


def construct(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The network called `name`, as its constructor gives it.

    Raises `UnknownName` for a name or an option that does not exist, `LeanconvError` for a value that the
    constructor refuses.
    """
    with _working_folder_importable():
        source = _find(name)
        _check_options(name, source.origin, options)
        model = _call(name, source, options)
    if not isinstance(model, nn.Module):
        raise LeanconvError(
            f"{name} returned a {type(model).__name__}, not an nn.Module: name a function that builds a network"
        )
    return model


def list_models(pattern: str = "*") -> list[str]:
    """The names that fit a glob `pattern`: the zoo's, or with "detection/..." its detectors, with "timm/..." and
    "torchvision/..." those libraries' own.

    >>> list_models("o_resnet1*")
    ['o_resnet110', 'o_resnet110_imagenet40']
    """
    if pattern.startswith("timm/"):
        names: Iterable[str] = _timm_names()
    elif pattern.startswith("torchvision/"):
        names = _torchvision_names()
    elif pattern.startswith("detection/"):
        names = _detectors()
    else:
        names = ZOO
    chosen = [name for name in names if fnmatchcase(name, pattern)]
    return sorted(chosen, key=lambda name: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", name)])


def size_of_name(name: str) -> tuple[int, ...] | None:
    """The input size that `name` was made for, without the batch axis; None where nobody has said it.

    Raises `UnknownName` for what is no name at all.
    """
    if name in ZOO:
        return ZOO[name].size
    if is_own_code(name):
        return None
    source = _find(name)
    library, _, inner = name.partition("/")
    if library == "detection":
        options = inspect.signature(source.origin).parameters
        return (3, options["min_size"].default, options["max_size"].default)
    if library == "torchvision":
        return _torchvision_size(inner)
    import timm

    size = getattr(timm.get_pretrained_cfg(inner), "input_size", None)
    return None if size is None else tuple(size)


def without_downloads(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` for rebuilding a saved model, whose weights come from the folder and not from the net.

    Where torchvision's `weights` decide more than the weights (a detector's frozen norms) they stay, and where they
    decide the preprocessing and the second classifier (Inception, GoogLeNet) these are said instead.
    """
    options = dict(options)
    if name.startswith("detection/") and options.get("backbone_args"):
        options["backbone_args"] = without_downloads(_backbone_of(name, options), options["backbone_args"])
    elif name.startswith("timm/"):
        for option in ("pretrained", "checkpoint_path"):
            options.pop(option, None)
    elif name.startswith("torchvision/"):
        home = _find(name).origin.__module__
        if re.fullmatch(r"torchvision\.models\.(video\.)?\w+", home):
            given = options.pop("weights", None)
            if given is not None and home.endswith(("googlenet", "inception")):
                options.setdefault("transform_input", True)
                options.setdefault("aux_logits", home.endswith("inception"))
                options.setdefault("init_weights", False)
    return options


def to_be_fetched(name: str, options: Mapping[str, Any]) -> str | None:
    """The address of a file that building the network with these options would fetch, as torchvision's `weights` do.

    None where there is none, or where it lies in torch's cache.
    """
    library, _, inner = name.partition("/")
    if library == "detection":
        return to_be_fetched(_backbone_of(name, options), options.get("backbone_args") or {})
    if library != "torchvision":
        return None
    from torch.hub import get_dir
    from torchvision import models

    for option in ("weights", "weights_backbone"):
        if isinstance(given := options.get(option), str):
            try:
                found = models.get_weight(given) if "." in given else models.get_model_weights(inner)[given]
            except (KeyError, ValueError, AttributeError):
                continue
            url = str(found.url)
            if not os.path.isfile(os.path.join(get_dir(), "checkpoints", os.path.basename(url))):
                return url
    return None


class _Source(NamedTuple):
    """What to call, and the function whose signature and module say which options are legal."""

    build: Callable[..., Any]
    origin: Callable[..., Any]


def _find(name: str) -> _Source:
    if name in ZOO:
        return _Source(ZOO[name].builder, ZOO[name].builder)
    library, _, inner = name.partition("/")
    if library == "detection":
        if name not in _detectors():
            raise unknown("model", name, _detectors())
        kind = DETECTORS[inner]
        return _Source(lambda **options: kind(**options).build(construct), kind)
    if library == "timm":
        import timm

        if not timm.is_model(inner):
            raise unknown("model", name, _timm_names())
        return _Source(
            lambda **options: timm.create_model(inner, **options), timm.model_entrypoint(inner.partition(".")[0])
        )
    if library == "torchvision":
        from torchvision import models

        if name not in _torchvision_names():
            raise unknown("model", name, _torchvision_names())
        build = models.get_model_builder(inner)
        if "weights_backbone" in inspect.signature(build).parameters:  # by default it would download some
            return _Source(lambda **options: build(**{"weights_backbone": None, **options}), build)
        return _Source(build, build)
    if is_own_code(name):
        function = _import(name)
        return _Source(function, function)
    near = unknown("model", name, ZOO)
    for other in (_timm_names(), _torchvision_names()):
        same = [full for full in other if full.partition("/")[2] == name]
        if same:
            raise UnknownName(f"unknown model {name!r}: it is not in the zoo, but {same[0]!r} exists")
    raise near


def _detectors() -> list[str]:
    return [f"detection/{name}" for name in DETECTORS]


def _backbone_of(name: str, options: Mapping[str, Any]) -> str:
    """What the detector called `name` is built on."""
    default = inspect.signature(_find(name).origin).parameters["backbone"].default
    return str(options.get("backbone", default))


def _timm_names() -> list[str]:
    import timm

    return [f"timm/{name}" for name in timm.list_models()]


def _torchvision_names() -> list[str]:
    from torchvision import models

    return [f"torchvision/{name}" for name in models.list_models()]


def _torchvision_size(name: str) -> tuple[int, ...] | None:
    """From the preprocessing of the library's own weights: the crop, and 16 frames or more where it takes video.

    Of a detector (R-CNN) its shorter and its longest side, as its builder has them where nothing else is said.
    """
    from torchvision import models

    if models.get_model_builder(name).__module__.startswith("torchvision.models.detection."):
        if "rcnn" not in name:
            return None
        return (3, 320, 640) if "_320_" in name else (3, 800, 1333)
    weights = models.get_model_weights(name).DEFAULT
    crop = getattr(weights.transforms, "keywords", {}).get("crop_size")
    if crop is None:
        return None
    height, width = (crop, crop) if isinstance(crop, int) else crop
    if models.get_model_builder(name).__module__.startswith("torchvision.models.video"):
        return (3, max(16, weights.meta.get("min_temporal_size", 0)), height, width)
    return (3, height, width)


@contextmanager
def _working_folder_importable() -> Iterator[None]:
    """Let `my_nets:build` mean ./my_nets.py, also where an installed command runs us; behind everything installed."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _import(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UnknownName(
                f"unknown model {name!r}: no module {error.name!r} on the Python path or in {os.getcwd()}"
            ) from None
        raise LeanconvError(f"{name}: {module_name} could not be imported: {error}") from error
    except Exception as error:
        raise LeanconvError(f"{name}: {module_name} could not be imported: {type(error).__name__}: {error}") from error
    try:
        function = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise unknown(
            f"function in {module_name}", attribute, [key for key, value in vars(module).items() if callable(value)]
        ) from None
    if not callable(function):
        raise LeanconvError(f"{name} is a {type(function).__name__}, not a function that builds a network")
    return function


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters that a keyword can name, None where Python does not say."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None
    return {name: p for name, p in parameters.items() if p.kind is not p.POSITIONAL_ONLY and name != "self"}


def _check_options(name: str, origin: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse what the signature refuses, before anything is built."""
    known = _parameters(origin)
    if known is None:
        return
    if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        for option in options:
            if option not in known:
                raise _unknown_option(name, option, known)
    single = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    missing = [k for k, p in known.items() if p.kind in single and p.default is p.empty and k not in options]
    if missing:
        raise LeanconvError(f"{name} needs a value for {', '.join(missing)}: set it as an option, {missing[0]}=...")


def _unknown_option(name: str, option: str, known: Iterable[str]) -> UnknownName:
    legal = sorted(set(known) - {"args", "kwargs"})
    near = get_close_matches(option, legal, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return UnknownName(f"{name} has no option {option!r}{hint}: its options are {', '.join(legal) or 'none'}")


def _call(name: str, source: _Source, options: Mapping[str, Any]) -> Any:
    """Call the builder; what a foreign constructor says about a bad option becomes one line with the name in front."""
    try:
        return source.build(**options)
    except LeanconvError:
        raise
    except Exception as error:
        stray = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, TypeError) and stray and stray[2] in options:
            # **kwargs hand the option on to a class of the same file: its parameters are the legal ones
            inner = getattr(sys.modules.get(source.origin.__module__), stray[1], None)
            known = {**(_parameters(source.origin) or {}), **((_parameters(inner) if inner else None) or {})}
            raise _unknown_option(name, stray[2], known) from error
        if not options and ":" in name:
            raise  # the user's own function failed by itself: its traceback is what helps
        given = ", ".join(f"{option}={value!r}" for option, value in options.items()) or "no options"
        raise LeanconvError(f"{name} cannot be built with {given}: {type(error).__name__}: {error}") from error
