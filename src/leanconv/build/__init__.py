"""Names to models, and models to folders and back. A saved model is a folder of two files, never a pickle:

story.json            how the model came to be (name, options, rewrites, elastic step), replayed by `load`
weights.safetensors   its tensors
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from leanconv import __version__
from leanconv.build import beside, hub
from leanconv.build.folder import (
    FORMAT_VERSION,
    STORY_FILE,
    WEIGHTS_FILE,
    digest,
    read_record,
    read_tensors,
    reason_of,
    tensors_to_write,
    weights_of,
    write,
)
from leanconv.build.made import create_model, replay, replay_untrusted
from leanconv.build.proof import ADVICE, prove_same
from leanconv.data.contract import InputContract, attach, published
from leanconv.dryrun import ModelHolder, as_module, check_sizes, image_size, is_detector
from leanconv.dryrun import default_size as told_size
from leanconv.elastic import ElasticNet, from_settings
from leanconv.errors import CheckpointError, LeanconvError, shown
from leanconv.offline import no_network
from leanconv.seeds import isolated
from leanconv.story import Story, begun, is_own_code, remember, story_of
from leanconv.weights import fill
from leanconv.weights import read_tensors as read_weights
from leanconv.weights.plain import PLAIN
from leanconv.zoo import ZOO, list_models
from leanconv.zoo.names import construct, size_of_name, to_be_fetched, without_downloads

__all__ = [
    "create_model",
    "default_size",
    "is_folder",
    "list_models",
    "load",
    "located",
    "resolve",
    "save",
    "with_new_classifier",
    "published",
    "from_settings",
    "isolated",
    "construct",
    "to_be_fetched",
    "without_downloads",
]


def default_size(name_or_folder: str) -> tuple[int, ...]:
    """The input size a name, or a folder made by `save`, was made for, without the batch axis: (3, H, W), (3, T, H, W).

    Raises `LeanconvError` where nobody has said it (a dotted path, a one-stage detector), asking for the size.

    >>> default_size("o_resnet20")
    (3, 32, 32)
    """
    if is_folder(name_or_folder):
        saved = read_record(Path(name_or_folder)).get("size")
        size = None if saved is None else tuple(saved)
    else:
        size = size_of_name(name_or_folder)
    if size is None:
        raise LeanconvError(f"{name_or_folder}: its input size is not known: give it, for example 3,224,224")
    return size


def located(name: str | os.PathLike[str]) -> str:
    """The folder of the saved model that "hf:OWNER/NAME" means, fetched unless it is here; any other name as it is.

    A model that `save` wrote and `leanconv push` pushed is taken as it is. One that timm has published (config.json and
    model.safetensors) is built by its name, filled and saved beside the hub's cache, with the input contract and the
    class names that it says. Nothing of either is run. Raises as `leanconv.build.hub.fetch` and `load`.

    >>> located("resnet20")
    'resnet20'
    """
    if not hub.is_on_hub(name):
        return os.fspath(name)
    found = hub.fetch(str(name))
    if isinstance(found, Path):
        return str(found)
    if not (found.folder / STORY_FILE).exists():
        model = create_model(found.name, **found.options)
        fill(model, read_weights(found.weights), PLAIN, source=str(name))
        if found.contract is not None:
            attach(model, found.contract)
        save(model.eval(), found.folder, size=None if found.contract is None else found.contract.size)
    return str(found.folder)


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

    The files are written under temporary names; before they get their own, the model is built again from them and
    compared with this one: classes, settings, buffers, modes, `requires_grad`, and the outputs on a small probe. What
    the story does not build but plain data can say is kept beside it (modes, frozen and tied parameters, drawn buffers,
    changed numbers such as a stride); what remains is refused by name. An existing model is replaced only by a new
    one that is complete and proven.
    Raises `LeanconvError` where it is not known how the model is built, `CheckpointError` where that and the files do
    not lead to this model, or cannot be written.
    """
    folder = Path(folder)
    model = as_module(model)
    story = story or begun(model, source, source_options)
    if story.model is None:
        raise LeanconvError(
            f"{folder}: nothing says how this {type(model).__name__} is built, so it could not be loaded again: "
            f"{_how(model, folder)}"
        )
    with model.at() if isinstance(model, ElasticNet) else nullcontext():  # whatever is in force just now
        _write_proven(model, folder, story, size)
    return folder


def load(folder: str | os.PathLike[str], *, trust_code: bool = False) -> nn.Module:
    """The model that `save` wrote to `folder`, with its story, on the CPU, each part in the mode it was saved in.

    The text "hf:OWNER/NAME" means a model of the Hugging Face hub, see `located`; nothing else reaches the network. A
    story that builds the network with somebody's own function ("package.module:function") imports and runs that
    code, which only `trust_code=True` allows. The global random state is left alone.
    Raises `CheckpointError` naming the file and what is wrong with it: missing, truncated, of an unknown format, or
    weights that do not fit the story.
    """
    folder = Path(located(folder))
    record = read_record(folder)
    tensors = read_tensors(folder, record)
    try:
        story = Story.from_json(record["story"])
        if story.contract is not None:
            InputContract.from_json(story.contract)
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / STORY_FILE} is damaged: its story cannot be read: {error}") from error
    if is_own_code(str(story.model)) and not trust_code:
        raise CheckpointError(
            f"{folder / STORY_FILE}: this model is built by {shown(story.model)[1:-1]}, and loading it would run that "
            "code: pass trust_code=True (--trust-code) if you trust whoever wrote it"
        )
    model = replay_untrusted(story, folder, tensors)
    _restore(folder, model, record, tensors)
    if digest(weights_of(folder)) != record["weights"]["sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE} is not the file that {STORY_FILE} was written for (an interrupted save, or the "
            "file was changed): save the model again"
        )
    return model


def with_new_classifier(
    folder: str | os.PathLike[str], num_classes: int, *, trust_code: bool = False
) -> tuple[nn.Module, tuple[str, ...]]:
    """The model in `folder` for other classes, and the names of the layers that were drawn anew for them.

    They are those that come out otherwise when the story builds the network with this `num_classes`; everything else
    keeps what was saved. Raises as `load`, and `LeanconvError` where the network cannot be built for so many classes.
    """
    model = load(folder, trust_code=trust_code)
    story = story_of(model) or Story()
    story = replace(story, options={**story.options, "num_classes": num_classes})
    if story.contract is not None:  # its names are of the classes before
        story = replace(story, contract={**story.contract, "class_names": None})
    try:
        with no_network():
            other = replay(story)
    except TypeError as error:
        raise LeanconvError(
            f"{folder}: {story.model} takes no num_classes, so a new classifier cannot be made: {reason_of(error)}"
        ) from error
    shapes = {name: p.shape for name, p in model.named_parameters()}
    changed = {name.rpartition(".")[0] for name, p in other.named_parameters() if shapes.get(name) != p.shape}
    for name in sorted(changed):
        layer = other.get_submodule(name)
        layer.train(model.get_submodule(name).training)
        model.set_submodule(name, layer)
    if [(n, p.shape) for n, p in model.named_parameters()] != [(n, p.shape) for n, p in other.named_parameters()]:
        raise LeanconvError(f"{folder}: with num_classes={num_classes} {story.model} is another network")
    remember(model, story)
    return model, tuple(sorted(changed))


# ------------------------------------------------------------------------------------------- the proof and the replay


def _write_proven(model: nn.Module, folder: Path, story: Story, size: Sequence[int] | None) -> None:
    """Both files of `model`, if what they lead to is `model`."""
    tensors, aliases = tensors_to_write(model)
    complaint = f"{folder}: not saved: this model is not what {story.model} and the steps since build"
    built = replay(story)
    shapes = {name: tensors[aliases.get(name, name)] for name in (*tensors, *aliases)}
    _fill(complaint, built, shapes, "the model", f"; {ADVICE}")
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
        **beside.gather(model, built, tensors),
    }
    try:
        json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LeanconvError(
            f"{folder}: the story of this model cannot be written down ({error}): "
            "options must be numbers, strings and lists"
        ) from None

    def prove(draft: Path) -> None:
        """What `load` does with what was written, on the network that its story has built already."""
        written = read_record(draft)
        _restore(draft, built, written, read_tensors(draft, written))
        probe = size or told_size(model)
        prove_same(model, built, None if probe is None else check_sizes(probe), complaint)

    write(folder, tensors, record, prove)


def _restore(folder: Path, model: nn.Module, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Fill a rebuilt `model` with everything that the files of `folder` hold."""
    loose = frozenset(record.get("loose", ()))
    _fill(
        f"{folder}: the weights do not fit the story",
        model,
        {name: tensor for name, tensor in tensors.items() if name not in loose},
        WEIGHTS_FILE,
    )
    try:
        beside.restore(model, record, tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / STORY_FILE} is damaged: {reason_of(error)}") from error


def _size(model: nn.Module, story: Story) -> tuple[int, ...] | None:
    """The input size of `model`, as far as its story says it."""
    if isinstance(model, ElasticNet):
        return tuple(model.settings["size"])
    if is_detector(model):  # whose options say it
        return image_size(model)
    try:
        size = size_of_name(str(story.model))
    except LeanconvError:
        return None
    for stem, settings in story.steps:
        if stem == "inflate" and size is not None:
            size = (size[0], int(settings["frames"]), *size[1:])
        elif "widths" in settings:  # made elastic
            size = tuple(settings["size"])
        elif "extract" in settings and size is not None:  # one configuration of it
            axes = min(len(size) - 1, 2)
            size = (*size[:-axes], *(int(settings["extract"]["resolution"]),) * axes)
    return size


def _fill(complaint: str, model: nn.Module, tensors: Mapping[str, Tensor], holder: str, advice: str = "") -> None:
    """Load `tensors` into the replayed `model`; where names or shapes differ, raise with the first of each kind."""
    _adopt_dtypes(model, tensors)
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in tensors]
    odd = [name for name in tensors if name in wanted and tensors[name].shape != wanted[name].shape]
    try:
        # Not a comparison of names alone: an elastic BatchNorm makes room for the statistics that it is given.
        loaded = model.load_state_dict({name: tensors[name] for name in tensors if name not in odd}, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{complaint}: {reason_of(error)}") from error
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
        raise CheckpointError(f"{complaint}: {'; '.join(parts)}{advice}")


def _adopt_dtypes(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers the saved dtype: a model saved in half precision comes back in half precision."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for key, own in (*module._parameters.items(), *module._buffers.items()):
            saved = tensors.get(f"{prefix}.{key}" if prefix else key)
            if own is not None and saved is not None and own.dtype != saved.dtype:
                own.data = own.data.to(saved.dtype)


def is_folder(name: str) -> bool:
    """Whether `name` means a folder: it exists, or it is written like a path. A model's name wins: say ./resnet20."""
    if name in ZOO or name.startswith(("timm/", "torchvision/", "detection/")):
        return False
    return os.sep in name or name.startswith(".") or os.path.isdir(name)


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
