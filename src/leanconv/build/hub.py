"""Models of the Hugging Face hub: `hf:OWNER/NAME` becomes a folder here, and a saved model becomes a repository there.

This is the only part of leanconv that reaches the network, and only where a caller has written `hf:` or pushes. Two
files of a repository are read, nothing else, and nothing of them is run: story.json and weights.safetensors of a model
that `save` wrote, or config.json and model.safetensors of one that timm has published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from leanconv.build.folder import STORY_FILE, WEIGHTS_FILE
from leanconv.data.contract import InputContract, from_timm
from leanconv.errors import CheckpointError, LeanconvError, need

__all__ = ["CARD_FILE", "PREFIX", "TimmModel", "fetch", "is_on_hub", "push"]

PREFIX = "hf:"
"""What a name begins with that means a repository of the hub."""

CARD_FILE = "README.md"

_CONFIG, _TIMM_WEIGHTS = "config.json", "model.safetensors"
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_NOT_FROM_STRANGERS = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Options of timm that would load other files than the repository's."""


@dataclass(frozen=True, kw_only=True)
class TimmModel:
    """A network that timm has published: how it is built, its weights, and how inputs are made (None: not said).

    `folder` is where it is kept once `save` has written it.
    """

    name: str
    options: Mapping[str, Any]
    weights: Path
    contract: InputContract | None
    folder: Path


def is_on_hub(name: object) -> bool:
    """Whether `name` is written as `hf:OWNER/NAME`."""
    return isinstance(name, str) and name.startswith(PREFIX)


def fetch(name: str) -> Path | TimmModel:
    """The saved model that `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION` means, downloaded unless it is here already.

    A folder with story.json and weights.safetensors in the hub's own cache, or what timm's files say. Without a network
    what was fetched before is taken. Raises `LeanconvError` for what is no such name, `MissingExtra` without
    huggingface_hub, `CheckpointError` for a repository that is not there, is closed, or holds neither.
    """
    repository, revision = _parts(name)
    story = _file(name, repository, revision, STORY_FILE)
    if story is not None:
        commit = story.parent.name
        if _file(name, repository, commit, WEIGHTS_FILE) is None:
            raise CheckpointError(f"{name} has a {STORY_FILE} without {WEIGHTS_FILE}: push the model again")
        return story.parent
    config = _file(name, repository, revision, _CONFIG)
    weights = None if config is None else _file(name, repository, config.parent.name, _TIMM_WEIGHTS)
    if config is None or weights is None:
        raise CheckpointError(
            f"{name} holds neither a model of leanconv ({STORY_FILE}, {WEIGHTS_FILE}) nor one of timm ({_CONFIG},"
            f" {_TIMM_WEIGHTS}); pickled weights are not read from strangers: download them and use import-weights"
        )
    return _timm_model(name, repository, config, weights)


def push(
    folder: str | Path, repository: str, *, card: str, private: bool = False, replace_card: bool = False
) -> tuple[str, bool]:
    """Write the two files of the saved model in `folder` and `card` (README.md) to `repository` (OWNER/NAME), as one
    commit; returns the address, and whether the card was written.

    The repository is made where there is none. A README.md that is there already stays, unless `replace_card`. The
    token is that of huggingface_hub: HF_TOKEN, or what `hf auth login` has stored. Raises as `fetch`.
    """
    repository, revision = _parts(f"{PREFIX}{repository.removeprefix(PREFIX)}")
    if revision is not None:
        raise LeanconvError(f"{repository}@{revision}: models are pushed to the main branch, leave out @{revision}")
    api = _hub().HfApi(library_name="leanconv")
    with _said_in_a_line(f"{PREFIX}{repository}"):
        api.create_repo(repository, private=private or None, exist_ok=True)
        new_card = replace_card or not api.file_exists(repository, CARD_FILE)
        add = _hub().CommitOperationAdd
        files: dict[str, Any] = {name: Path(folder) / name for name in (WEIGHTS_FILE, STORY_FILE)}
        files |= {CARD_FILE: card.encode()} if new_card else {}
        api.create_commit(
            repository,
            [add(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()],
            commit_message="A model saved by leanconv",
        )
    return f"{api.endpoint}/{repository}", new_card


def _parts(name: str) -> tuple[str, str | None]:
    found = _REPOSITORY.fullmatch(name.removeprefix(PREFIX))
    if found is None:
        raise LeanconvError(f"{name!r}: expected hf:OWNER/NAME, or hf:OWNER/NAME@REVISION, as the hub calls the model")
    return found["repository"], found["revision"]


def _hub() -> Any:
    try:
        for part in ("constants", "errors", "utils"):
            import_module(f"huggingface_hub.{part}")
        return import_module("huggingface_hub")
    except ImportError as error:
        raise need("huggingface_hub", "hub", "a model of the Hugging Face hub") from error


def _file(name: str, repository: str, revision: str | None, file: str) -> Path | None:
    """The `file` of the repository in the hub's cache, None where the repository has no such file."""
    hub = _hub()
    with _said_in_a_line(name):
        try:
            return Path(hub.hf_hub_download(repository, file, revision=revision, library_name="leanconv"))
        except hub.errors.LocalEntryNotFoundError:
            raise
        except hub.errors.EntryNotFoundError:
            return None


@contextmanager
def _said_in_a_line(name: str) -> Iterator[None]:
    """What the hub or the way there answers, as one error that says what to do.

    The library's advice is not printed, its progress only on a terminal.
    """
    import logging
    import sys

    hub = _hub()
    errors, log = hub.errors, logging.getLogger("huggingface_hub")
    before, where = log.level, hub.constants.ENDPOINT
    log.setLevel(logging.ERROR)
    quiet = not sys.stderr.isatty() and not hub.utils.are_progress_bars_disabled()
    if quiet:
        hub.utils.disable_progress_bars()
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(f"{name} is open only to those whom its owner admits: ask at {where}, log in") from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: {where} has no such model, or it is private: look at the name, or log in (HF_TOKEN, or hf auth"
            " login)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the model has no such revision at {where}") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{name}: {where} cannot be reached, and the model is not in the cache: try again, or name a folder"
        ) from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        told = (
            "log in with a token that may do this (HF_TOKEN, or hf auth login)" if code in (401, 403) else "try later"
        )
        raise CheckpointError(f"{name}: {where} answered {code} {error.response.reason_phrase}: {told}") from error
    except (LeanconvError, ImportError):
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a cut line, a full disk, what the hub's library refuses
        told = " ".join((f"{error}: {error.__cause__}" if error.__cause__ else str(error)).split())[:300]
        raise CheckpointError(f"{name}: {told}") from error
    except Exception as error:
        if not type(error).__module__.startswith("http"):  # the transport's own errors have no base of the library's
            raise
        raise CheckpointError(f"{name}: {where} cannot be reached ({type(error).__name__}): try again") from error
    finally:
        log.setLevel(before)
        if quiet:
            hub.utils.enable_progress_bars()


def _timm_model(name: str, repository: str, config: Path, weights: Path) -> TimmModel:
    """What timm's config.json says, as data: an architecture that timm has, plain options, the input contract."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        architecture, cfg = str(content["architecture"]), dict(content.get("pretrained_cfg") or content)
        options = {
            "num_classes": int(content.get("num_classes", cfg.get("num_classes"))),
            **content.get("model_args", {}),
        }
        contract = from_timm(cfg)
        names = content.get("label_names") or cfg.get("label_names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{name}: its {_CONFIG} is not one of timm's ({type(error).__name__}: {error})"
        ) from error
    if strange := sorted(set(options) & set(_NOT_FROM_STRANGERS)):
        raise CheckpointError(
            f"{name}: its {_CONFIG} asks for {strange[0]}, which loads something else than its weights"
        )
    if contract is not None and isinstance(names, list) and len(names) == options["num_classes"]:
        contract = replace(contract, class_names=tuple(map(str, names)))
    home = Path(_hub().constants.HF_HOME) / "leanconv"
    return TimmModel(
        name=f"timm/{architecture}",
        options=options,
        weights=weights,
        contract=contract,
        folder=home / repository.replace("/", "--") / config.parent.name,
    )
