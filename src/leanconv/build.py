"""Names to models, and models to folders and back. A saved model is a folder of two files, never a pickle:

story.json            how the model came to be (name, options, rewrites, elastic step), replayed by `load`
weights.safetensors   its tensors
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from leanconv import __version__
from leanconv.dryrun import ModelHolder, as_module
from leanconv.elastic import ElasticNet, from_settings
from leanconv.errors import CheckpointError, LeanconvError
from leanconv.files import whole_folder
from leanconv.rewrites import replay
from leanconv.story import Story, begun, is_own_code, remember
from leanconv.zoo import ZOO, list_models
from leanconv.zoo.names import construct, size_of_name, without_downloads

__all__ = ["create_model", "default_size", "is_folder", "list_models", "load", "resolve", "save"]

STORY_FILE = "story.json"
WEIGHTS_FILE = "weights.safetensors"
FORMAT_VERSION = 1


def create_model(name: str, /, **options: Any) -> nn.Module:
    """The network called `name`, freshly initialized, in train mode as constructors give it; it remembers its story.

    `name` is one of `list_models()`, "timm/NAME", "torchvision/NAME" (both without pretrained weights unless an option
    asks for them) or "package.module:function". `options` are the keywords of what builds it.
    Raises `UnknownName` for a name or an option that does not exist, `LeanconvError` for a value that the
    constructor refuses.

    >>> sum(p.numel() for p in create_model("resnet20").parameters())
    269722
    """
    model = construct(name, options)
    remember(model, Story(model=name, options=options))
    return model


def default_size(name_or_folder: str) -> tuple[int, ...]:
    """The input size a name, or a folder made by `save`, was made for, without the batch axis: (3, H, W), (3, T, H, W).

    Raises `LeanconvError` where nobody has said it (a dotted path, a detector), asking for the size.

    >>> default_size("o_resnet20")
    (3, 32, 32)
    """
    if is_folder(name_or_folder):
        saved = _read_record(Path(name_or_folder)).get("size")
        size = None if saved is None else tuple(saved)
    else:
        size = size_of_name(name_or_folder)
    if size is None:
        raise LeanconvError(f"{name_or_folder}: its input size is not known: give it, for example 3,224,224")
    return size


def resolve(name_or_folder: str, options: Mapping[str, Any] | None = None, *, trust_code: bool = False) -> nn.Module:
    """The model of a name with `options`, or of a folder made by `save`, whose options are in its story already."""
    if not is_folder(name_or_folder):
        return create_model(name_or_folder, **(options or {}))
    if options:
        raise LeanconvError(
            f"{name_or_folder} is a saved model, its options are fixed by its story: {', '.join(options)} cannot be set"
        )
    return load(name_or_folder, trust_code=trust_code)


def save(
    model: nn.Module | ModelHolder,
    folder: str | os.PathLike[str],
    *,
    source: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    story: Story | None = None,
    size: Sequence[int] | None = None,
) -> Path:
    """Write `model` to `folder` (made if need be) as story.json and weights.safetensors; returns the folder.

    A network of one's own needs `source`, how it is built: "package.module:function" (or a class), with its keywords
    in `source_options`; `rewrite` and `make_elastic` take the same. What leanconv has done to it since is recorded
    already (in the model's story; another one can be given as `story`). `size` is kept as the default input size.

    The model is built again first, so that what is saved can be loaded, and the files are written under temporary
    names: an existing model is replaced only when the new one is complete.
    Raises `LeanconvError` where it is not known how the model is built, `CheckpointError` when that does not lead to
    this model or the files cannot be written.
    """
    folder = Path(folder)
    model = as_module(model)
    story = story or begun(model, source, source_options)
    if story.model is None:
        raise LeanconvError(
            f"{folder}: nothing says how this {type(model).__name__} is built, so it could not be loaded again: "
            f"{_how(model, folder)}"
        )
    tensors, aliases = _tensors(model)
    shapes = {name: tensors[aliases.get(name, name)] for name in (*tensors, *aliases)}
    _fill(
        f"{folder}: not saved: this model is not what {story.model} and the steps since build",
        _replay(story),
        shapes,
        "the model",
    )
    if size is None:
        size = _size(model, story)
    record = {
        "format": "leanconv model",
        "format_version": FORMAT_VERSION,
        "leanconv": __version__,
        "story": story.to_json(),
        "size": None if size is None else list(size),
        "training": model.training,
        "aliases": aliases,
    }
    try:
        json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LeanconvError(
            f"{folder}: the story of this model cannot be written down ({error}): "
            "options must be numbers, strings and lists"
        ) from None
    _write(folder, tensors, record)
    return folder


def load(folder: str | os.PathLike[str], *, trust_code: bool = False) -> nn.Module:
    """The model that `save` wrote to `folder`, with its story, on the CPU, in the train or eval mode it was saved in.

    A story that builds the network with somebody's own function ("package.module:function") imports and runs that
    code, which only `trust_code=True` allows. Nothing is downloaded, and the global random state is left alone.
    Raises `CheckpointError` naming the file and what is wrong with it: missing, truncated, of an unknown format, or
    weights that do not fit the story.
    """
    folder = Path(folder)
    record = _read_record(folder)
    tensors = _read_tensors(folder, record)
    try:
        story = Story.from_json(record["story"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / STORY_FILE} is damaged: its story cannot be read: {error}") from error
    if is_own_code(str(story.model)) and not trust_code:
        raise CheckpointError(
            f"{folder / STORY_FILE}: this model is built by {story.model}, and loading it would run that code: "
            "pass trust_code=True if you trust whoever wrote it"
        )
    try:
        model = _replay(story)
    except (LeanconvError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / STORY_FILE}: the story cannot be replayed: {_reason(error)}") from error
    _fill(f"{folder}: the weights do not fit the story", model, tensors, WEIGHTS_FILE)
    if _digest(folder / WEIGHTS_FILE) != record["weights"]["sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} is not the file that {STORY_FILE} was written for (an interrupted save, or the "
            "file was changed): save the model again"
        )
    return model.train(record["training"])


# --------------------------------------------------------------------------------------------------------- the replay


def _replay(story: Story) -> nn.Module:
    """The model of `story`, its weights drawn anew."""
    with torch.random.fork_rng(devices=[]):
        name = str(story.model)  # `save` and `load` have seen to it
        model = create_model(name, **without_downloads(name, story.options))
        for stem, settings in story.steps:
            if stem == "elastic":
                model = from_settings(model, settings)
            else:
                model = replay(model, [(stem, settings)])
    remember(model, story)
    return model


def _size(model: nn.Module, story: Story) -> tuple[int, ...] | None:
    """The input size of `model`, as far as its story says it."""
    if isinstance(model, ElasticNet):
        return tuple(model.settings["size"])
    try:
        size = size_of_name(str(story.model))
    except LeanconvError:
        return None
    for _, settings in story.steps:
        if "widths" in settings:  # made elastic
            size = tuple(settings["size"])
        elif "extract" in settings and size is not None:  # one configuration of it
            axes = min(len(size) - 1, 2)
            size = (*size[:-axes], *(int(settings["extract"]["resolution"]),) * axes)
    return size


def _fill(complaint: str, model: nn.Module, tensors: Mapping[str, Tensor], holder: str) -> None:
    """Load `tensors` into the replayed `model`; where names or shapes differ, raise with the first of each kind."""
    _adopt_dtypes(model, tensors)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in tensors]
    odd = [name for name in tensors if name in wanted and tensors[name].shape != wanted[name].shape]
    try:
        # Not a comparison of names alone: an elastic BatchNorm makes room for the statistics that it is given.
        loaded = model.load_state_dict({name: tensors[name] for name in tensors if name not in odd}, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{complaint}: {_reason(error)}") from error
    shapes = [f"{n} ({holder} {tuple(tensors[n].shape)}, story {tuple(wanted[n].shape)})" for n in odd]
    kinds = (
        (f"missing in {holder}", missing),
        (f"only in {holder}", loaded.unexpected_keys),
        ("of another shape", shapes),
    )
    parts = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for what, names in kinds if names
    ]
    if parts:
        raise CheckpointError(f"{complaint}: {'; '.join(parts)}")


def _adopt_dtypes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the saved dtype: a model saved in half precision comes back in half precision."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, own in (*module._parameters.items(), *module._buffers.items()):
            saved = tensors.get(f"{prefix}.{key}" if prefix else key)
            if own is not None and saved is not None and own.dtype != saved.dtype:
                own.data = own.data.to(saved.dtype)


# ---------------------------------------------------------------------------------------------------------- the files


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of `model` with every tensor in memory of its own, and alias -> name for those that are the same."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[tuple[torch.device, int]] = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or tensor.is_meta:
            what = "on the meta device, without values" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise CheckpointError(f"{name} cannot be saved: it is {what}; only tensors with values can")
        where = (tensor.device, tensor.data_ptr())
        key = (*where, tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        own = tensor.detach().cpu().contiguous()
        # Views of one storage that are not the same tensor must not be written as one.
        tensors[name] = own.clone() if storage in storages else own
        storages.add(storage)
    return tensors, aliases


def _write(folder: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Both files: a new folder as a whole, in an existing one the two files, the story last."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: a model is saved to a folder, name another one")

    def complain(reason: str) -> CheckpointError:
        needed = _megabytes(sum(tensor.nbytes for tensor in tensors.values()))
        return CheckpointError(
            f"{folder}: the model could not be saved: {reason}; {needed} are needed, {_free(folder.absolute())} free "
            "there; nothing was changed, free some space or name another folder"
        )

    with whole_folder(folder, complain, last=STORY_FILE, also=(SafetensorError,)) as draft:
        save_file(dict(tensors), draft / WEIGHTS_FILE)
        weights = {
            "file": WEIGHTS_FILE,
            "bytes": (draft / WEIGHTS_FILE).stat().st_size,
            "sha256": _digest(draft / WEIGHTS_FILE),
        }
        text = json.dumps({**record, "weights": weights}, indent=2)
        (draft / STORY_FILE).write_text(text + "\n", encoding="utf-8")


def _read_record(folder: Path) -> dict[str, Any]:
    """story.json, checked as far as the reader relies on it."""
    path = folder / STORY_FILE
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder: name one that save has written")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a saved model: it has no {STORY_FILE}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != "leanconv model":
        raise CheckpointError(f"{path} was not written by leanconv: its format is not 'leanconv model'")
    if record.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {record.get('format_version')}, this leanconv ({__version__}) reads "
            f"{FORMAT_VERSION}: it was written by leanconv {record.get('leanconv')}, use that one"
        )
    problem = _problem(record)
    if problem:
        raise CheckpointError(f"{path} is damaged: {problem}")
    return record


def _problem(record: Mapping[str, Any]) -> str | None:
    """What is missing or of the wrong type in a record, or None."""
    kinds = {"story": dict, "training": bool, "aliases": dict, "weights": dict}
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            return f"{key} must be a JSON {kind.__name__}, got {record.get(key)!r}"
    for outer, key, kind in (("story", "model", str), ("weights", "bytes", int), ("weights", "sha256", str)):
        if not isinstance(record[outer].get(key), kind):
            return f"{outer}.{key} must be a JSON {kind.__name__}, got {record[outer].get(key)!r}"
    return None


def _read_tensors(folder: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """weights.safetensors with its aliases."""
    path = folder / WEIGHTS_FILE
    try:
        size = path.stat().st_size
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a saved model: it has no {WEIGHTS_FILE}") from None
    except (OSError, SafetensorError) as error:
        whole = record["weights"]["bytes"]
        cut = f"it has {size} bytes of {whole}, it was truncated" if size < whole else _reason(error)
        raise CheckpointError(f"{path} cannot be read: {cut}; copy or save it again") from error
    for alias, name in record["aliases"].items():
        if name not in tensors:
            raise CheckpointError(
                f"{folder}: the weights do not fit the story: {name}, also called {alias}, is missing in {WEIGHTS_FILE}"
            )
        tensors[alias] = tensors[name]
    return tensors


def is_folder(name: str) -> bool:
    """Whether `name` means a folder: it exists, or it is written like a path. A model's name wins: say ./resnet20."""
    if name in ZOO or name.startswith(("timm/", "torchvision/")):
        return False
    return os.sep in name or name.startswith(".") or Path(name).is_dir()


def _how(model: nn.Module, folder: Path) -> str:
    """What to do about a model that nothing says how to build, as a line to type where that can be guessed."""
    for inner in ("module", "_orig_mod"):  # DistributedDataParallel, torch.compile
        if isinstance(getattr(model, inner, None), nn.Module):
            return f"save its .{inner}"
    own = model.model if isinstance(model, ElasticNet) else model
    source, options = _guess(own)
    if source is None:
        return (
            "put what builds it into a function of a module and pass source='package.module:function', with its "
            "arguments as source_options={...}"
        )
    extra = "" if not options else ", source_options={" + ", ".join(f"{name!r}: ..." for name in options) + "}"
    return (
        f"lc.save(model, {str(folder)!r}, source={source!r}{extra}); "
        f"it is loaded with lc.load({str(folder)!r}, trust_code=True)"
    )


def _guess(model: nn.Module) -> tuple[str | None, list[str]]:
    """The class of `model` as a `source`, and the arguments that it cannot do without; None where no other process
    could import it."""
    kind = type(model)
    home = kind.__module__.partition(".")[0]
    if home in ("__main__", "builtins", "torch", "leanconv") or "<" in kind.__qualname__:
        return None, []
    single = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(kind).parameters.values()
    needed = [p.name for p in parameters if p.kind in single and p.default is p.empty]
    return f"{kind.__module__}:{kind.__qualname__}", needed


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    """The words of an error, on one line and without the file name, which the message has already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    words = " ".join(text.split())
    return words if isinstance(error, LeanconvError | OSError) else f"{type(error).__name__}: {words}"


def _free(folder: Path) -> str:
    """Space left on the disk of `folder`, or of the nearest parent that exists."""
    while not folder.exists():
        folder = folder.parent
    return _megabytes(shutil.disk_usage(folder).free)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
