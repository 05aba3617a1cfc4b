"""`leanconv push`: a saved model as a repository of the Hugging Face hub, with a card."""

from __future__ import annotations

import json as _json
from pathlib import Path
from typing import Annotated, Any

import typer

from leanconv.cli.options import JsonOption, TrustOption
from leanconv.cli.output import print_json
from leanconv.errors import LeanconvError


def run(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="A run folder, or a saved model.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Where on the hub; made where it is not.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository that others do not see.")] = False,
    replace_card: Annotated[
        bool, typer.Option("--replace-card", help="Write the card also where the repository has a README.md already.")
    ] = False,
    show_card: Annotated[bool, typer.Option("--show-card", help="Print the card, and push nothing.")] = False,
    json: JsonOption = False,
    trust_code: TrustOption = False,
) -> None:
    """Push a saved model to the Hugging Face hub.

    Its two files and a card that says what it is, what it costs, what it scored and how its inputs are made. It is
    loaded first, so that nothing broken is published; hf:OWNER/NAME is then its name in every verb. The token is
    huggingface_hub's: HF_TOKEN, or hf auth login.
    """
    from leanconv.build.hub import is_on_hub, push
    from leanconv.train.runfolder import saved_model

    if is_on_hub(model):
        raise LeanconvError(f"{model} is on the hub already: name the folder of a saved model, or a run")
    folder = saved_model(model)
    card = _card(folder, Path(model), repository, trust_code)
    if show_card:
        typer.echo(card, nl=False)
        return
    address, new_card = push(folder, repository, card=card, private=private, replace_card=replace_card)
    if json:
        print_json({"address": address, "model": f"hf:{repository}", "card": new_card})
        return
    typer.echo(f"pushed: {address}; next: leanconv predict hf:{repository} FILES")
    if not new_card:
        typer.echo("its README.md was there already and stays as it is (--replace-card)")


def _card(folder: Path, run: Path, repository: str, trust_code: bool) -> str:
    """The card of the saved model in `folder`, with the test of the `run` that it belongs to, where it does."""
    from leanconv import __version__
    from leanconv.build import load
    from leanconv.cost import measure
    from leanconv.data.contract import contract_of
    from leanconv.report import model_card
    from leanconv.story import story_of

    network = load(folder, trust_code=trust_code)
    contract, story = contract_of(network), story_of(network)
    evaluation = run / "evaluation.json"
    tested: Any = _json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.exists() else None
    return model_card(
        repository,
        {} if story is None else story.to_json(),
        cost=None if contract is None else measure(network, contract.size),
        tested=tested,
        version=__version__,
    )
