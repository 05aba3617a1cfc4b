"""From a name or a story to a network: asked for here, or by a story that somebody else may have written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from leanconv.build import hub
from leanconv.build.bounds import TooMuch, bounded
from leanconv.build.folder import STORY_FILE, reason_of
from leanconv.data.contract import attach, published
from leanconv.elastic import from_settings
from leanconv.errors import CheckpointError, LeanconvError, shown
from leanconv.offline import no_network
from leanconv.rewrites import replay as replay_steps
from leanconv.seeds import isolated
from leanconv.story import Story, is_own_code, remember
from leanconv.zoo.names import construct, to_be_fetched, without_downloads

__all__ = ["create_model", "replay", "replay_untrusted"]


def create_model(name: str, /, **options: Any) -> nn.Module:
    """The network called `name`, freshly initialized, in train mode as constructors give it; it remembers its story.

    `name` is one of `list_models()`, "timm/NAME", "torchvision/NAME" (both without pretrained weights unless an option
    asks for them) or "package.module:function". `options` are the keywords of what builds it.
    Raises `UnknownName` for a name or an option that does not exist, `LeanconvError` for a value that the
    constructor refuses.

    >>> sum(p.numel() for p in create_model("resnet20").parameters())
    269722
    """
    if hub.is_on_hub(name):
        raise LeanconvError(f"{name} is a trained model and not a name to build one by: load it")
    model = construct(name, options)
    remember(model, Story(model=name, options=options))
    if (contract := published(name, options, model)) is not None:
        attach(model, contract)
    return model


def replay(story: Story) -> nn.Module:
    """The model of `story`, its weights drawn anew."""
    with isolated("replay"):  # what a constructor draws is the same when it is saved and when it is loaded
        name = str(story.model)  # `save` and `load` have seen to it
        model = create_model(name, **without_downloads(name, story.options))
        for stem, settings in story.steps:
            if stem == "elastic":
                model = from_settings(model, settings)
            else:
                model = replay_steps(model, [(stem, settings)])
    remember(model, story)
    return model


def replay_untrusted(story: Story, folder: Path, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model of a story that anybody may have written: no network is asked, and no more is made than the file fills.

    Whatever goes wrong on the way is the story's fault.
    """
    path, name = folder / STORY_FILE, str(story.model)
    own = is_own_code(name)  # which is trusted, or it would not have come here
    limits = nullcontext() if own else bounded(sum(tensor.nbytes for tensor in tensors.values()), len(tensors))
    with no_network() as asked:
        try:
            if not own and (url := to_be_fetched(name, without_downloads(name, story.options))):
                asked.append(url)
                raise LeanconvError(url)
            with limits:
                return replay(story)
        except TooMuch as error:
            raise CheckpointError(f"{path}: the weights do not fit the story: {error}") from error
        except Exception as error:
            if asked:
                raise CheckpointError(
                    f"{path}: building {shown(name)[1:-1]} would fetch {shown(asked[0], 120)[1:-1]}, and a saved model"
                    " is loaded without a network: build it by its name once, which keeps what was fetched, or save it"
                    " without the option that asks for it"
                ) from error
            raise CheckpointError(f"{path}: the story cannot be replayed: {reason_of(error)}") from error
